"""The length of a training and its learning rate."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train.blocks.schedule import Drop, Schedule

pytestmark = pytest.mark.torch


def test_the_default_length_is_in_steps_or_in_epochs() -> None:
    in_steps = Schedule(batch=8, learning_rate=1e-3, steps=500)
    assert in_steps.length(100, None) == 500
    assert in_steps.length(100, 2) == 2 * 13
    in_epochs = Schedule(batch=8, learning_rate=1e-3, epochs=700)
    assert in_epochs.length(100, None) == 700 * 13
    assert in_epochs.length(96, 2) == 2 * 12


def test_the_learning_rate_falls_along_half_a_cosine() -> None:
    schedule = Schedule(batch=8, learning_rate=0.01, steps=500)
    rates = [schedule.rate(share) for share in (0, 1 / 3, 0.5, 1)]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0])


def test_the_learning_rate_falls_in_steps_or_stays() -> None:
    schedule = Schedule(batch=8, learning_rate=0.01, drops=(Drop(0.8, 0.2), Drop(0.9, 0.04)))
    rates = [schedule.rate(share) for share in (0, 0.79, 0.8, 0.89, 0.9, 0.99)]
    assert rates == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004])
    assert schedule._replace(drops=()).rate(0.99) == 0.01
