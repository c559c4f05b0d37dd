"""Lists the doubtful images of a training, as a text file and as a picture for a person."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from flawline.cameras.listing import count_of
from flawline.commands import shell_line
from flawline.runtime.console import terminal_line
from flawline.runtime.files import write_file
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image, Map
from flawline.runtime.tiles import JoinedTiles
from flawline.train import TrainError
from flawline.train.anomalies.sheet import write_png
from flawline.train.backbones import DEFAULT_BACKBONE, create_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import PRETRAINED_LEVELS, TEXTURE
from flawline.train.data import PreparedImages, data_name
from flawline.train.data.exclusion import COMMENT, FLAG, list_line
from flawline.train.data.split import content_hashes
from flawline.train.doubtful.descriptors import Describer
from flawline.train.doubtful.files import DoubtfulFiles, with_checksum
from flawline.train.doubtful.sheet import doubtful_sheet, marked
from flawline.train.doubtful.support import FEWEST_IMAGES, LIMIT, Support, measure_support
from flawline.train.method import Method
from flawline.train.progress import Progress

# Images in the picture; the list has all.
MOST_SHOWN = 60
# By `benchmarks.studies.doubtful`, on three data sets.
OF_GOOD_ALONE = "about a tenth is listed where all images are good"


def list_doubtful(
    files: DoubtfulFiles,
    root: Path,
    frames: PreparedImages,
    graph_input: GraphInput,
    model: Method,
    progress: Progress,
) -> list[str]:
    """Compare the good images with each other, write the files, and return lines for the log.

    root: the folder of the data set. frames: its good images, uint8 [h, w, 3], before they are cut
    into tiles. model: its backbone gives the features, and in a method without one, the default
    backbone with the weights in this package. Raises TrainError for files that cannot be written.
    """
    if len(frames) < FEWEST_IMAGES:
        files.remove()
        return [
            f"note: doubtful images are not looked for: {count_of(len(frames), 'good image')}, and "
            f"fewer than {FEWEST_IMAGES} do not show what is usual"
        ]
    describer = Describer(frames, _backbone_of(model), graph_input.grid)
    support = measure_support(describer, content_hashes(frames.paths), progress)
    if not support.doubtful:
        files.remove()
        return ["no good image is doubtful: the others support each of them"]
    write_file(files.list, _list_of(support, root, frames.paths), TrainError, "--out")
    write_png(files.picture, _picture_of(support, root, frames, describer))
    count = len(support.doubtful)
    verb = "is" if count == 1 else "are"
    flag = shell_line([FLAG, files.list])
    return [
        f"note: {count} of {len(frames)} good images {verb} supported less by the others than is "
        f"usual, and may be defective ({OF_GOOD_ALONE}): look at {files.picture}, remove what is "
        f"good from {files.list}, and train with {flag}"
    ]


def _backbone_of(model: Method) -> Backbone:
    """Return the first backbone of a method, or the default one with weights of this package."""
    for backbone in model.backbones().values():
        return backbone.eval()
    backbone = create_backbone(DEFAULT_BACKBONE, PRETRAINED_LEVELS)
    backbone.load(TEXTURE)
    return backbone.to(model.device).eval()


def _list_of(support: Support, root: Path, paths: Sequence[Path]) -> bytes:
    return with_checksum(os.fsencode("\n".join(_lines(support, root, paths)) + "\n"))


def _lines(support: Support, root: Path, paths: Sequence[Path]) -> Iterator[str]:
    doubtful = support.doubtful
    name = terminal_line(data_name(root))
    yield (
        f"{COMMENT} {len(doubtful)} of {len(paths)} good images of {name}, those that the others "
        f"support least first."
    )
    yield f"{COMMENT} Remove the lines of good parts; {FLAG} leaves out what is left."
    yield (
        f"{COMMENT} The numbers are deviations above the median of all images; the limit is "
        f"{LIMIT:g}: {OF_GOOD_ALONE}."
    )
    for place, index in enumerate(doubtful, 1):
        yield f"{COMMENT} {place}: {support.deviations[index]:.2f}"
        yield list_line(paths[index], root)


def _picture_of(
    support: Support, root: Path, frames: PreparedImages, describer: Describer
) -> Image:
    doubtful = support.doubtful
    pictures = []
    names = []
    for place, index in enumerate(doubtful[:MOST_SHOWN], 1):
        frame = frames[index]
        levels = support.distances[index] / support.limit
        pictures.append(marked(frame, _spread_over(frame, levels, describer)))
        names.append(f"{place}: {support.deviations[index]:.1f}  {frames.paths[index].name}")
    title = (
        f"{data_name(root)}: {len(doubtful)} of {len(frames)} good images, those that the others "
        f"support least first"
    )
    if len(doubtful) > MOST_SHOWN:
        title += f"; {MOST_SHOWN} are shown"
    return doubtful_sheet(pictures, names, title)


def _spread_over(frame: Image, levels: Map, describer: Describer) -> Map:
    """Return the levels of the places, float32 [places], as a map of the frame, [h, w]."""
    maps = []
    inputs = describer.inputs(frame)
    for image, of_input in zip(inputs, np.split(levels, len(inputs)), strict=True):
        height, width = image.shape[:2]
        resized = cv2.resize(of_input.reshape(describer.grid), (width, height))
        maps.append(np.asarray(resized, np.float32))
    if describer.tiles is None:
        return maps[0]
    joined = JoinedTiles(describer.tiles)
    for number, tile_map in enumerate(maps):
        joined.add(number, 0.0, tile_map)
    return joined.anomaly_map
