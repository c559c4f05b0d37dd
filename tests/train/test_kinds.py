"""The kinds of synthetic anomalies that detectors are compared on."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images

from flawline.train import METHODS
from flawline.train.anomalies.kinds import KINDS, STRENGTHS, anomalies_of, faded
from flawline.train.method import Method, resolve_method

pytestmark = pytest.mark.torch


def test_every_kind_is_made_in_every_strength_and_changes_a_part() -> None:
    images = board_images(64, 3)
    made = list(anomalies_of(images, 1, seed=0))
    assert [(one.kind, one.strength) for one in made] == [
        (kind, strength) for kind in KINDS for strength in STRENGTHS
    ]
    for one in made:
        assert one.source == 1
        assert one.pixels.dtype == np.uint8
        assert one.pixels.shape == images[1].shape
    for kind in KINDS:
        errors = []
        for one in made:
            if one.kind == kind:
                errors.append(np.abs(one.pixels.astype(int) - images[1]).sum())
        assert errors == sorted(errors)
        assert errors[-1] > 0


def test_they_are_a_function_of_image_and_seed() -> None:
    images = board_images(64, 3)
    first = [one.pixels for one in anomalies_of(images, 0, seed=4)]
    again = [one.pixels for one in anomalies_of(images, 0, seed=4)]
    other = [one.pixels for one in anomalies_of(images, 0, seed=5)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_what_leaves_no_trace_on_a_plain_image_is_left_out() -> None:
    plain = [np.full((48, 48, 3), 255, np.uint8)] * 2
    assert "blend" not in {one.kind for one in anomalies_of(plain, 0, seed=0)}


def test_the_strength_is_the_opacity() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    made = np.full((2, 2, 3), 200, np.uint8)
    assert (faded(image, made, 0.25) == 125).all()
    assert (faded(image, made, 1.0) == made).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_with_synthetic_anomalies_names_their_kinds(name: str) -> None:
    kind = resolve_method(name)
    has_own = kind.anomalies.__func__ is not Method.anomalies.__func__  # type: ignore[attr-defined]
    assert set(kind.trains_against) <= set(KINDS)
    assert bool(kind.trains_against) == has_own
