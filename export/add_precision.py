"""A graph of another precision for a bundle: written from its FP32 graph, compared with it, added.

Needs onnx and no torch.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from flawline.export import ExportError
from flawline.export.graphs import GraphContext
from flawline.export.parity import Parity, compare, require_parity
from flawline.export.scoring import score_images, select_images
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.console import log
from flawline.runtime.engines import tolerances
from flawline.runtime.precisions import PRECISIONS
from flawline.train.progress import Bars, Progress

PARITY_IMAGES = 200  # test images on which a graph is compared


def add_graph(
    bundle: Bundle, precision: str, data: Path, parity_images: int = PARITY_IMAGES
) -> Bundle:
    """Write a bundle's graph of another precision, prove it on real images, and add it.

    Args:
        bundle: the bundle to add to; its FP32 graph is the reference.
        precision: a name in PRECISIONS that has a writer.
        data: the data set that the bundle was built on.
        parity_images: number of its test images to compare on, next to the held-out good ones.

    Raises:
        ExportError: the precision cannot be written, or its decisions, scores or maps leave their
            tolerance. The bundle stays as it was.
        DataError: the data set cannot be used.
    """
    bars = Bars()
    try:
        model, parity = _write_and_compare(bundle, precision, data, parity_images, bars)
    finally:
        bars.close()
    summary, *notes = parity.describe()
    log(f"{precision} against fp32: {summary}")
    for note in notes:
        log(note)
    score_tolerance, map_tolerance = tolerances(bundle.manifest, precision)
    try:
        remedy = "use another precision or train again"
        require_parity(parity, score_tolerance, map_tolerance, remedy)
    except ExportError as error:
        raise ExportError(f"{precision} was not added: {error}") from error
    return add_model(bundle, precision, model)


def _write_and_compare(
    bundle: Bundle, precision: str, data: Path, parity_images: int, progress: Progress
) -> tuple[bytes, Parity]:
    manifest = bundle.manifest
    selection = select_images(data, manifest.geometry, manifest.bit_depth, parity_images)
    context = GraphContext(
        fp32_islands=manifest.fp32_islands,
        good_images=selection.train,
        score_std=manifest.score.std,
        progress=progress,
    )
    fp32 = bundle.model().read_bytes()
    model = write_graph(fp32, precision, context)
    images = selection.images
    reference = score_images(fp32, "fp32", bundle.map_size, images, progress)
    results = score_images(model, precision, bundle.map_size, images, progress)
    score_tolerance, _ = tolerances(manifest, precision)
    parity = compare(
        selection.paths,
        reference,
        results,
        bundle.calibration.threshold,
        score_tolerance,
        manifest.score.std,
    )
    return model, parity


def write_graph(fp32: bytes, precision: str, context: GraphContext) -> bytes:
    """Write the graph of a precision from the FP32 graph, with the writer listed in PRECISIONS.

    Raises ExportError for a precision that is unknown or has no writer.
    """
    writable = []
    for known in PRECISIONS.values():
        if known.writer is not None:
            writable.append(known.name)
    if precision not in writable:
        raise ExportError(
            f"there is no graph of precision {precision!r} to write; choose one of "
            f"{', '.join(writable)}"
        )
    writer = resolve_name(str(PRECISIONS[precision].writer))
    model: bytes = writer(fp32, context)
    return model
