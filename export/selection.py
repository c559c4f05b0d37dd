"""The images of a data set that an export needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline.export.graphs import evenly_spaced
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image
from flawline.train.data import DataSet, PreparedImages, hold_out, open_data
from flawline.train.data.images import frames_of
from flawline.train.data.split import without_copies
from flawline.train.data.tiles import network_inputs

# How many test images graphs are compared on by default.
PARITY_IMAGES = 200


@dataclass(frozen=True)
class ImageSelection:
    """The images of a data set that an export needs.

    Attributes:
        data_set: the whole data set.
        graph_input: what the graph takes, and how images become it.
        train: good images that the method was trained on, as the graph takes them, before they are
            cut into tiles.
        good: files of the good images to compare graphs on: all that are held out to set the
            threshold, or some of those trained on if none are held out.
        paths: files of the images to compare graphs on: all of `good`, then test images.
        frames: the prepared images of `paths`, uint8 [h, w, 3], decoded at every access.
        images: inputs of the network, uint8 [H, W, 3]: the same, or one tile of each.
        inputs: the same as the graph takes them: prepared images, or frames of a camera.
        bit_depth: significant bits of images with 16 bits per pixel; None if there are none.
        copies: how many held-out images are left out of `good`, as copies of others.
    """

    data_set: DataSet
    graph_input: GraphInput
    train: PreparedImages
    good: list[Path]
    paths: list[Path]
    frames: PreparedImages
    images: Sequence[Image]
    inputs: Sequence[Image]
    bit_depth: int | None
    copies: int = 0

    @property
    def train_inputs(self) -> Sequence[Image]:
        """Inputs of the graph that the method was trained on."""
        return network_inputs(self.train, self.graph_input.grid)


def select_images(
    data: Path,
    graph_input: GraphInput,
    bit_depth: int | None,
    folds: int = 0,
    test_images: int = PARITY_IMAGES,
    excluded: Collection[str] = (),
) -> ImageSelection:
    """Open a data set and select the images of an export. Raises DataError.

    Args:
        data: the folder of the data set.
        graph_input: what the graph takes, and how images become it.
        bit_depth: significant bits of images with 16 bits per pixel; None if there are none.
        folds: 0 if good images are held out; otherwise the method was trained on all of them.
        test_images: how many test images to compare on at most. They are sorted by kind of defect,
            so that evenly spaced ones cover all kinds.
        excluded: content hashes of the good images that were left out of the training.
    """
    data_set = open_data(data, excluded)
    train, good = list(data_set.train_good), evenly_spaced(data_set.train_good, PARITY_IMAGES)
    copies = 0
    if folds == 0:
        train, held_out = hold_out(data_set.train_good)
        good = without_copies(held_out, train)
        copies = len(held_out) - len(good)
    paths = list(good)
    for sample in evenly_spaced(data_set.test, test_images):
        paths.append(sample.path)
    geometry = graph_input.frame_geometry
    frames = frames_of(paths, graph_input, bit_depth)
    return ImageSelection(
        data_set=data_set,
        graph_input=graph_input,
        train=PreparedImages(train, geometry, bit_depth, graph_input.of_image),
        good=list(good),
        paths=paths,
        frames=frames,
        images=frames,
        inputs=PreparedImages(paths, geometry, bit_depth, graph_input.of_image),
        bit_depth=bit_depth,
        copies=copies,
    )
