"""The tiles of images as a sequence that a detector is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flawline.runtime.image import Geometry
from flawline.runtime.tiles import TileGrid, Tiling
from flawline.train.data.tiles import TileImages, network_inputs

GRID = TileGrid(Tiling(2, 2, 0), Geometry("stretch", 32, 32))


class Decoded(list[Any]):
    """Images that note each access."""

    accesses = 0

    def __getitem__(self, index: Any) -> Any:
        self.accesses += 1
        return super().__getitem__(index)


@pytest.fixture
def images() -> Decoded:
    """Each tile of each image has a grey level of its own: 10 times the image, plus the tile."""
    found = Decoded()
    for number in range(4):
        image = np.zeros((64, 64, 3), np.uint8)
        for tile in range(4):
            image[GRID.place(tile)] = 10 * number + tile
        found.append(image)
    return found


def levels(tiles: Any) -> list[int]:
    found = []
    for index in range(len(tiles)):
        assert tiles[index].shape == (32, 32, 3)
        assert np.ptp(tiles[index]) == 0
        found.append(int(tiles[index][0, 0, 0]))
    return found


def test_every_tile_is_there_once_and_each_image_is_decoded_once(images: Decoded) -> None:
    tiles = network_inputs(images, GRID)
    found = levels(tiles)
    assert sorted(found) == [10 * number + tile for number in range(4) for tile in range(4)]
    assert [level // 10 for level in found] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert images.accesses == 4


def test_every_second_tile_is_not_always_of_the_same_places(images: Decoded) -> None:
    places = {level % 10 for level in levels(network_inputs(images, GRID)[::2])}
    assert places == {0, 1, 2, 3}


def test_chosen_tiles_are_those_of_their_numbers(images: Decoded) -> None:
    assert levels(TileImages(images, GRID, [0, 5, 10, 15])) == [0, 11, 22, 33]
    assert levels(TileImages(images, GRID)[6:10:2]) == [12, 20]


def test_a_tile_belongs_to_the_caller(images: Decoded) -> None:
    tiles = network_inputs(images, GRID)
    tiles[0][:] = 255
    assert levels(tiles)[0] == 0


def test_without_tiles_the_images_are_the_inputs(images: Decoded) -> None:
    assert network_inputs(images, None) is images
