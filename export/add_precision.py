"""A graph of another precision for a bundle: written from its FP32 graph, compared with it, added.

Needs onnx and no torch.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from flawline.export import ExportError
from flawline.export.frame_scores import with_deciding_tiles
from flawline.export.graphs import WRITERS, GraphContext
from flawline.export.parity import Parity, compare, require_parity, score_images
from flawline.export.selection import PARITY_IMAGES, select_images
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.console import log
from flawline.runtime.tolerances import Tolerances
from flawline.train.progress import Bars, Progress


def add_graph(
    bundle: Bundle, precision: str, data: Path, test_images: int = PARITY_IMAGES
) -> Bundle:
    """Write a bundle's graph of another precision, prove it on real images, and add it.

    Args:
        bundle: the bundle to add to; its FP32 graph is the reference.
        precision: a name in WRITERS.
        data: the data set that the bundle was built on; the graph is compared on good images, those
            that are held out if there are any, and on test images.
        test_images: how many test images to compare on at most.

    Raises:
        ExportError: the precision cannot be written, or its decisions, scores or maps leave their
            tolerance. The bundle stays as it was.
        DataError: the data set cannot be used.
    """
    with Bars() as bars:
        model, parity = _write_and_compare(bundle, precision, data, test_images, bars)
    summary, *notes = parity.describe()
    log(f"{precision} against fp32: {summary}")
    for note in notes:
        log(note)
    try:
        remedy = "use another precision or train again"
        require_parity(parity, Tolerances.of(bundle.manifest, precision), remedy)
    except ExportError as error:
        raise ExportError(f"{precision} was not added: {error}") from error
    return add_model(bundle, precision, model)


def _write_and_compare(
    bundle: Bundle, precision: str, data: Path, test_images: int, progress: Progress
) -> tuple[bytes, Parity]:
    manifest = bundle.manifest
    selection = select_images(
        data,
        manifest.graph_input,
        manifest.file_bit_depth,
        manifest.folds,
        test_images,
        manifest.excluded_images,
    )
    context = GraphContext(
        fp32_islands=manifest.fp32_islands,
        good_images=selection.train_inputs,
        score_std=manifest.score.std,
        progress=progress,
    )
    fp32 = bundle.model().read_bytes()
    selection, _ = with_deciding_tiles(selection, fp32, bundle.map_size, progress)
    model = write_graph(fp32, precision, context)
    images = selection.inputs
    reference = score_images(fp32, "fp32", bundle.map_size, images, progress)
    results = score_images(model, precision, bundle.map_size, images, progress)
    parity = compare(
        selection.paths,
        reference,
        results,
        bundle.calibration.threshold,
        Tolerances.of(manifest, precision),
        manifest.score.std,
    )
    return model, parity


def write_graph(fp32: bytes, precision: str, context: GraphContext) -> bytes:
    """Write the graph of a precision from the FP32 graph, with the writer listed in WRITERS.

    Raises ExportError for a precision that is unknown or has no writer.
    """
    if precision not in WRITERS:
        raise ExportError(
            f"there is no graph of precision {precision!r} to write; choose one of "
            f"{', '.join(WRITERS)}"
        )
    writer = resolve_name(WRITERS[precision])
    model: bytes = writer(fp32, context)
    return model
