"""The images on which an exported graph is compared, and its scores through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawline.export.graphs import evenly_spaced
from flawline.export.parity import Results
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Geometry, Image
from flawline.train.data import PreparedImages, hold_out, open_data
from flawline.train.progress import Progress


@dataclass(frozen=True)
class ImageSelection:
    """The images of a data set that an export needs.

    Attributes:
        train: prepared good images that the method was trained on.
        held_out: files of the good images that set the threshold.
        paths: files of the images to compare graphs on: all of `held_out`, then test images.
        images: the prepared images of `paths`, uint8 [H, W, 3], decoded at every access.
        bit_depth: significant bits of images with 16 bits per pixel; None if there are none.
    """

    train: PreparedImages
    held_out: list[Path]
    paths: list[Path]
    images: PreparedImages
    bit_depth: int | None


def select_images(
    data: Path, geometry: Geometry, bit_depth: int, test_images: int
) -> ImageSelection:
    """Open a data set and select the images of an export. Raises DataError.

    Args:
        data: the folder of the data set.
        geometry: how images are prepared.
        bit_depth: significant bits of images with 16 bits per pixel; 8 if there are none.
        test_images: how many test images to compare on at most. They are sorted by kind of defect,
            so that evenly spaced ones cover all kinds.
    """
    data_set = open_data(data)
    train, held_out = hold_out(data_set.train_good)
    paths = list(held_out)
    for sample in evenly_spaced(data_set.test, test_images):
        paths.append(sample.path)
    bits = bit_depth if bit_depth > 8 else None
    return ImageSelection(
        train=PreparedImages(train, geometry, bits),
        held_out=held_out,
        paths=paths,
        images=PreparedImages(paths, geometry, bits),
        bit_depth=bits,
    )


def score_images(
    model: bytes,
    precision: str,
    map_size: tuple[int, int],
    images: Sequence[Image],
    progress: Progress,
) -> Results:
    """Run a serialised graph on prepared images, one at a time, with ONNX Runtime.

    `map_size` is (0, 0) if the graph gives no map. Raises EngineError.
    """
    engine = OnnxRuntime(model, map_size, precision=precision)
    scores = []
    maps = []
    for done, image in enumerate(images, 1):
        score, anomaly_map = engine(image[None])
        scores.append(float(score[0]))
        # The engine overwrites its arrays with the next call.
        maps.append(anomaly_map[0].copy())
        progress(f"onnxruntime {precision}", done, len(images))
    engine.close()
    return Results(np.array(scores, np.float32), np.array(maps))
