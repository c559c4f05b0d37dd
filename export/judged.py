"""The results of a trained method and of its exported graph, on the images of an export."""

from __future__ import annotations

from dataclasses import dataclass

from flawline.export.exported import ExportedGraph, note_resized
from flawline.export.frame_scores import FrameScores, with_deciding_tiles
from flawline.export.good_scores import held_out_scores
from flawline.export.parity import ScoresAndMaps, score_images
from flawline.export.selection import ImageSelection
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.runtime.precisions import FP32
from flawline.train.judging import evaluate, evaluate_frames
from flawline.train.method import Method
from flawline.train.progress import Bars


@dataclass(frozen=True)
class Judged:
    """The results of the torch module, and those of its ONNX graph, for a selection of images.

    With tiles, they are of the tile of each image that decides its score, and `frames` are the
    scores of the images.
    """

    selection: ImageSelection
    reference: ScoresAndMaps
    results: ScoresAndMaps
    frames: FrameScores | None

    def good_scores(self, method: Method) -> GoodScores:
        """Return the scores of the held-out images."""
        paths = self.selection.good
        graph_input = self.selection.graph_input
        if self.frames is None:
            return held_out_scores(paths, self.results, self.reference, graph_input)
        count = len(paths)
        peaks = self.frames.peaks[:count]
        if not self.results.maps.size:
            # The graph gives no maps, so that these are the torch reference's.
            with Bars() as bars:
                _, peaks = evaluate_frames(method, self.selection.frames[:count], graph_input, bars)
        return GoodScores(paths, self.frames.scores[:count], peaks)


def judge(method: Method, exported: ExportedGraph, selection: ImageSelection) -> Judged:
    """Judge the images of a selection with the torch module and with its ONNX graph."""
    map_size = (0, 0)
    if exported.outputs == GRAPH_OUTPUTS:
        map_size = (method.geometry.height, method.geometry.width)
    with Bars() as bars:
        selection, frames = with_deciding_tiles(selection, exported.model, map_size, bars)
        results = score_images(exported.model, FP32.name, map_size, selection.inputs, bars)
        scores, maps = evaluate(method, selection.images, bars)
    if exported.source is not None:
        note_resized(exported.source, selection)
    return Judged(selection, ScoresAndMaps(scores, maps), results, frames)
