"""The FP32 graph of a method, and the same for a camera's frames."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from flawline.commands import command_line
from flawline.export import ExportError
from flawline.export.graphs import evenly_spaced
from flawline.export.graphs.edit import islands_in
from flawline.export.graphs.prologue import PROLOGUE
from flawline.export.graphs.source import with_source
from flawline.export.graphs.teaching import with_teaching
from flawline.export.graphs.to_onnx import choose_outputs, node_types, onnx_from_module
from flawline.export.selection import ImageSelection
from flawline.runtime.console import log
from flawline.runtime.image import Geometry, Image, resize
from flawline.runtime.manifest import Manifest
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.source_images import SourceSizes
from flawline.train.blocks.fused import fp32_islands
from flawline.train.data import PreparedImages, open_data
from flawline.train.method import Method

# Good images that are compared with a camera's frames before a training.
IMAGES_CHECKED = 5


@dataclass(frozen=True)
class ExportedGraph:
    """A serialised FP32 graph with its outputs and its FP32 islands.

    `source` are the camera's frames that it takes; with None it takes prepared images.
    """

    model: bytes
    outputs: tuple[str, ...]
    fp32_islands: tuple[str, ...]
    source: SourceFrame | None = None


def export_graph(
    method: Method, outputs: tuple[str, ...] | None = None, static_batch: int | None = None
) -> ExportedGraph:
    """Serialise the fused form of a fitted method.

    `outputs` are GRAPH_OUTPUTS, ("score",) for a graph without the map, or None for the method's.
    `static_batch` is the only batch size that the graph accepts; None makes it any. Raises
    ExportError for outputs that the method lacks.
    """
    outputs = choose_outputs(method, outputs)
    module = method.fused()
    model = onnx_from_module(module, method.geometry, outputs, static_batch)
    model = with_teaching(model, method.teaching())
    log(f"exported {node_types(model).total()} ONNX nodes, {len(model) / 1e6:.1f} MB")
    return ExportedGraph(model, outputs, islands_in(model, fp32_islands(module)))


def for_source(exported: ExportedGraph, source: SourceFrame, geometry: Geometry) -> ExportedGraph:
    """Return the graph that takes a camera's frames, and prepares them itself.

    Raises ExportError for a graph that it cannot be put in front of.
    """
    graph = with_source(exported.model, source, geometry)
    log(
        f"the graph takes frames of {source}: {graph.nodes} nodes and {graph.macs / 1e6:.1f} "
        f"million multiply-accumulates prepare them"
    )
    islands = (*exported.fp32_islands, PROLOGUE)
    return replace(exported, model=graph.model, fp32_islands=islands, source=source)


def require_source(source: SourceFrame, sizes: SourceSizes | None) -> None:
    """Refuse a camera's frames that are far from the sizes that the detector was trained on.

    Raises ExportError.
    """
    if sizes is not None and sizes.fault(source.height, source.width) is not None:
        raise ExportError(
            f"--source {source} is far from the sizes that the detector was trained on "
            f"({sizes.describe()}); give the size of the camera's frames, or train on images of it"
        )


def require_source_of_data(
    source: SourceFrame, data: Path, bit_depth: int | None, excluded: Collection[str] = ()
) -> None:
    """Check before a training, on a few good images, that the export will take the frames.

    bit_depth, excluded: as of `select_images`. Raises ExportError, SourceError and DataError.
    """

    def frame(image: Image) -> Image:
        return source.frame_of(resize(image, source.height, source.width))

    paths = evenly_spaced(open_data(data, excluded).train_good, IMAGES_CHECKED)
    images = PreparedImages(
        paths, Geometry("stretch", source.height, source.width), bit_depth, frame
    )
    for _ in images:
        pass
    sizes = SourceSizes.of(images.sizes.values())
    # Where sizes differ, those of other images may be nearer.
    if sizes is not None and sizes.one_size:
        require_source(source, sizes)


def note_resized(source: SourceFrame, selection: ImageSelection) -> None:
    """Log how many of the images that were judged have another size than the camera's frames."""
    resized = _resized(source, selection)
    if resized:
        log(
            f"note: {len(resized)} of {len(selection.frames.sizes)} images have another size than "
            f"the frames of {source}, and were resized to compare the graph on them"
        )


def note_resized_good(selection: ImageSelection, manifest: Manifest, bundle: Path) -> None:
    """Log how to set the thresholds from the camera's frames, if resized images have set them.

    The out-of-fold scores of a bundle are those of the images as they are, unless the frames are
    mosaics.
    """
    source = manifest.source
    if source is None or (manifest.folds and not source.is_bayer):
        return
    resized = _resized(source, selection)
    if not resized.isdisjoint(selection.good):
        command = command_line("calibrate", "--bundle", bundle, "--images", "GOOD_PARTS")
        log(
            f"note: the thresholds are from good images that were resized to {source}, which are "
            f"less sharp than the camera's frames, or sharper; set them again from frames of good "
            f"parts: {command}"
        )


def _resized(source: SourceFrame, selection: ImageSelection) -> set[Path]:
    sizes = selection.frames.sizes
    return {path for path in sizes if sizes[path] != (source.height, source.width)}
