"""The changes of textures that DRAEM's published training draws from."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from flawline.runtime.image import Geometry
from flawline.train.anomalies import strong_changes
from flawline.train.anomalies.strong_changes import STRONG_OPERATIONS
from flawline.train.anomalies.textures import OPERATIONS, Operation
from flawline.train.blocks.pictures import PUBLISHED
from flawline.train.methods.draem import DRAEM, DRAEMSettings

pytestmark = pytest.mark.torch


def texture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


class Drawn:
    """A generator whose draws are given."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def uniform(self, low: float, high: float, size: int | None = None) -> object:
        values = [self.values.pop(0) for _ in range(size or 1)]
        assert all(low <= value <= high for value in values)
        return values[0] if size is None else np.array(values)

    def integers(self, low: int, high: int) -> int:
        value = int(self.values.pop(0))
        assert low <= value < high
        return value

    def random(self) -> float:
        return self.values.pop(0)


@pytest.mark.parametrize("operation", STRONG_OPERATIONS, ids=lambda each: str(each.__name__))
def test_a_change_keeps_its_image_and_is_repeatable(operation: Operation) -> None:
    image = texture()
    before = image.copy()
    changed = operation(image, np.random.default_rng(3))
    assert (changed.dtype, changed.shape) == (np.uint8, image.shape)
    assert (image == before).all()
    assert (operation(image, np.random.default_rng(3)) == changed).all()
    flat = np.full((8, 8, 3), 90, np.uint8)
    assert operation(flat, np.random.default_rng(1)).shape == flat.shape
    seeds = range(6)
    assert any((operation(image, np.random.default_rng(seed)) != image).any() for seed in seeds)


@pytest.mark.parametrize(
    ("operation", "draws"),
    [
        (strong_changes.change_gamma, (1, 1, 1)),
        (strong_changes.shift_brightness, (1, 0, 0)),
        (strong_changes.change_sharpness, (1,)),
        (strong_changes.shift_colour, (0, 0)),
        (strong_changes.solarise, (64, 0.2)),
        (strong_changes.posterise, (8,)),
        (strong_changes.stretch_most, (0,)),
    ],
)
def test_the_neutral_draw_changes_nothing(operation: Operation, draws: tuple[float, ...]) -> None:
    image = texture()
    image[0, 0], image[0, 1] = 0, 255
    changed = operation(image, Drawn(*draws))  # type: ignore[arg-type]
    # The way through HSV rounds.
    assert np.abs(changed.astype(int) - image).max() <= 1


def test_values_are_changed_as_stated() -> None:
    image = np.array([[[0, 31, 64], [100, 200, 255]]], np.uint8)
    inverted = strong_changes.invert(image, np.random.default_rng(0))
    assert inverted.tolist() == [[[255, 224, 191], [155, 55, 0]]]
    solarised = strong_changes.solarise(image, Drawn(64, 0.9))  # type: ignore[arg-type]
    assert solarised.tolist() == [[[0, 31, 191], [155, 55, 0]]]
    posterised = strong_changes.posterise(image, Drawn(2))  # type: ignore[arg-type]
    assert posterised.tolist() == [[[0, 0, 64], [64, 192, 192]]]
    gamma = strong_changes.change_gamma(image, Drawn(2, 1, 0.5))  # type: ignore[arg-type]
    assert gamma[0, 1].tolist() == [round(100**2 / 255), 200, 255]
    ramp = np.repeat(np.arange(101, dtype=np.uint8)[None, :, None], 3, 2)
    stretched = strong_changes.stretch_most(ramp, Drawn(10))  # type: ignore[arg-type]
    assert stretched[0, [0, 10, 50, 90, 100], 0].tolist() == [0, 0, 128, 255, 255]
    red = np.full((4, 4, 3), (0, 0, 200), np.uint8)
    brighter = strong_changes.shift_brightness(red, Drawn(1.1, 20, 0.7))  # type: ignore[arg-type]
    assert brighter[0, 0].tolist() == [0, 0, round((200 + 20) * 1.1)]
    turned = strong_changes.shift_colour(red, Drawn(42.5, 0))  # type: ignore[arg-type]
    assert turned[0, 0].tolist() == [0, 200, 200]


def test_sharpness_is_that_of_pillow() -> None:
    enhance = pytest.importorskip("PIL.ImageEnhance")
    pillow = pytest.importorskip("PIL.Image")
    image = cv2.GaussianBlur(texture(), (5, 5), 1)
    for factor in (0.0, 0.5, 2.0):
        expected = np.asarray(enhance.Sharpness(pillow.fromarray(image)).enhance(factor))
        changed = strong_changes.change_sharpness(image, Drawn(factor))  # type: ignore[arg-type]
        assert np.abs(changed.astype(int) - expected).max() <= 2


def test_the_published_setting_of_draem_draws_from_them_and_the_light_one_does_not() -> None:
    images = [texture() for _ in range(2)]
    light = DRAEMSettings("", Geometry("stretch", 40, 50))
    published = DRAEMSettings("", Geometry("stretch", 40, 50), setting=PUBLISHED)
    assert DRAEM.anomalies(published, images, 0).recipe.operations == STRONG_OPERATIONS
    assert DRAEM.anomalies(light, images, 0).recipe.operations == OPERATIONS
