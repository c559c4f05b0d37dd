"""The statistics of the good images of a data set, which a stream compares its frames with."""

from __future__ import annotations

from flawline.export.graphs import evenly_spaced
from flawline.export.selection import ImageSelection
from flawline.runtime.console import log, log_notes
from flawline.runtime.drift.learn import MOST_IMAGES, learn_reference
from flawline.runtime.drift.reference import DriftReference
from flawline.runtime.drift.watch import learned_notes
from flawline.runtime.good_images.scores import GoodScores
from flawline.train.data import PreparedImages
from flawline.train.progress import Bars


def good_statistics(selection: ImageSelection, good: GoodScores) -> DriftReference | None:
    """Return the statistics of the good images and of their scores; None where they say nothing.

    Those trained on count as well as those held out, since what is measured of an image does not
    depend on the detector. Logs what a stream cannot watch. Raises CameraError for an image that
    cannot be read.
    """
    graph_input = selection.graph_input
    paths = evenly_spaced(selection.data_set.train_good, MOST_IMAGES)
    geometry = graph_input.frame_geometry
    images = PreparedImages(paths, geometry, selection.bit_depth, graph_input.of_image)
    with Bars() as bars:
        reference = learn_reference(
            images, good.scores, graph_input, lambda done, all: bars("good images", done, all)
        )
    source = graph_input.source
    if source is not None and set(images.sizes.values()) != {(source.height, source.width)}:
        log(
            f"note: not all good images are {source.width}x{source.height}, and so not as sharp as "
            f"the camera's frames: drift is not watched"
        )
        return None
    log_notes(learned_notes(reference))
    return reference
