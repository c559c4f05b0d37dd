"""Bayer mosaics among the images of a training are noticed; grey images are none."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SHARED

from flawline.runtime.image import Geometry, Image
from flawline.runtime.source_frame import BAYER, SourceFrame
from flawline.train.data import describe_images, open_data

SIDE = 64
GEOMETRY = Geometry("stretch", SIDE, SIDE)
LOOKS = "look like Bayer mosaics"


def picture(seed: int, colours: tuple[int, int, int]) -> Image:
    """A coloured part with noise, at another place in each image."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), 60, np.float64)
    image[seed : seed + 40, 10:50] = colours
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def written(folder: Path, images: list[Image]) -> list[Path]:
    paths = []
    for number, image in enumerate(images):
        path = folder / f"{number}.png"
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        paths.append(path)
    return paths


@pytest.mark.parametrize("layout", BAYER)
def test_mosaics_that_were_saved_as_grey_images_are_noted(layout: str, tmp_path: Path) -> None:
    camera = SourceFrame(SIDE, SIDE, layout)
    images = [camera.frame_of(picture(seed, (70, 90, 110))) for seed in range(5)]
    (line,) = describe_images(written(tmp_path, images), GEOMETRY)
    assert LOOKS in line
    assert line.endswith(
        "train on colour images, as a camera gives with pixel_format=BayerRG8 and without mosaic="
    )
    # As grey values in three channels, too.
    grey = [np.dstack([image] * 3) for image in images]
    assert len(describe_images(written(tmp_path, grey), GEOMETRY)) == 1
    # Of some images alone it says nothing about the others.
    assert describe_images(written(tmp_path, [*images, picture(9, (70, 90, 110))]), GEOMETRY) == []


def test_grey_images_are_no_mosaics(tmp_path: Path) -> None:
    colours = [picture(seed, (70, 90, 110)) for seed in range(5)]
    assert describe_images(written(tmp_path, colours), GEOMETRY) == []
    grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in colours]
    assert describe_images(written(tmp_path, grey), GEOMETRY) == []
    # Of an interlaced camera, or one with a gain for each column.
    for places in (np.s_[::2], np.s_[:, ::2]):
        striped = [image.copy() for image in grey]
        for image in striped:
            image[places] += 9
        assert describe_images(written(tmp_path, striped), GEOMETRY) == []
    # Of a part without colours, all pixels of a mosaic have the same brightness.
    camera = SourceFrame(SIDE, SIDE, "bayer-rggb")
    neutral = [camera.frame_of(np.dstack([image] * 3)) for image in grey]
    assert describe_images(written(tmp_path, neutral), GEOMETRY) == []


@pytest.mark.parametrize("name", ["elpv_mono", "magnetic_tile", "mvtec_bottle"])
def test_real_images_are_no_mosaics(name: str, tmp_path: Path) -> None:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip("the data set is not there")
    paths = list(open_data(folder).train_good)
    assert not any(LOOKS in line for line in describe_images(paths, GEOMETRY))
    if name == "mvtec_bottle":
        bottles = [cv2.imread(str(path)) for path in paths[:5]]
        height, width = bottles[0].shape[:2]
        camera = SourceFrame(height, width, "bayer-grbg")
        mosaics = written(tmp_path, [camera.frame_of(bottle) for bottle in bottles])
        assert any(LOOKS in line for line in describe_images(mosaics, GEOMETRY))
