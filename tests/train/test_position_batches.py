"""The order in which flows over positions see the features of the good images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch import Tensor

from flawline.train.blocks.position_batches import PositionBatch, PositionSchedule

pytestmark = pytest.mark.torch
GRIDS = ((4, 6), (2, 3))
SCHEDULE = PositionSchedule(images=7, batch=3, grids=GRIDS, positions=20)


def levels_of(number: int, chosen: Any) -> list[Tensor]:
    """Levels with one channel for the pass, the image, the row and the column each."""
    levels = []
    for height, width in GRIDS:
        level = torch.empty(len(chosen), 4, height, width)
        level[:, 0] = number
        level[:, 1] = torch.from_numpy(chosen)[:, None, None]
        level[:, 2] = torch.arange(height)[:, None]
        level[:, 3] = torch.arange(width)
        levels.append(level)
    return levels


def batches(schedule: PositionSchedule, start: int = 0, seed: int = 0) -> Iterator[PositionBatch]:
    return schedule.batches(levels_of, seed, start)


def test_a_pass_takes_whole_batches_level_by_level() -> None:
    """Three images have 72 and 18 positions: three steps of 20, and one of all 18."""
    assert SCHEDULE.batch_size == 3
    assert SCHEDULE.steps_per_level == (3, 1)
    assert SCHEDULE.steps_per_pass == 8
    taken = list(islice(batches(SCHEDULE), 16))
    assert [batch.level for batch in taken] == [0, 0, 0, 1] * 4
    assert [len(batch.vectors) for batch in taken] == [20, 20, 20, 18] * 4
    numbers = [set(batch.vectors[:, 0].tolist()) for batch in taken]
    assert numbers == [{0}] * 8 + [{1}] * 8
    images = [set(batch.vectors[:, 1].tolist()) for batch in taken[3::4]]
    assert all(len(one) == 3 for one in images)
    assert not images[0] & images[1]
    assert images[:2] != images[2:]


def test_the_places_are_those_of_the_vectors() -> None:
    for batch in islice(batches(SCHEDULE), 8):
        _, width = GRIDS[batch.level]
        expected = batch.vectors[:, 2] * width + batch.vectors[:, 3]
        assert torch.equal(batch.places, expected.long())


def test_no_position_is_taken_twice_in_a_pass() -> None:
    seen = []
    for batch in islice(batches(SCHEDULE), 8):
        for vector in batch.vectors.tolist():
            seen.append((batch.level, *vector))
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("start", [1, 3, 4, 7, 8, 13])
def test_a_training_continues_where_it_was(start: int) -> None:
    whole = islice(batches(SCHEDULE), start, start + 10)
    for expected, got in zip(whole, islice(batches(SCHEDULE, start), 10), strict=True):
        assert got.level == expected.level
        assert torch.equal(got.vectors, expected.vectors)
        assert torch.equal(got.places, expected.places)


def test_the_order_follows_the_seed() -> None:
    one, other = next(batches(SCHEDULE)), next(batches(SCHEDULE, seed=1))
    assert not torch.equal(one.vectors, other.vectors)


def test_few_images_with_few_positions_still_train_every_level() -> None:
    schedule = PositionSchedule(images=2, batch=32, grids=GRIDS, positions=256)
    assert schedule.steps_per_pass == 2
    assert [len(batch.vectors) for batch in islice(batches(schedule), 2)] == [48, 12]


def test_equal_steps_leave_positions_of_the_larger_level_out() -> None:
    schedule = PositionSchedule(images=7, batch=3, grids=GRIDS, positions=6, equal=True)
    assert schedule.steps_per_level == (3, 3)
    taken = list(islice(batches(schedule), schedule.steps_per_pass))
    assert [batch.level for batch in taken] == [0, 0, 0, 1, 1, 1] * 2
    assert all(len(batch.vectors) == 6 for batch in taken)


def test_levels_are_computed_once_per_batch_of_images() -> None:
    calls = []

    def counted(number: int, chosen: Any) -> list[Tensor]:
        calls.append((number, len(chosen)))
        return levels_of(number, chosen)

    list(islice(SCHEDULE.batches(counted, 0, 0), 16))
    assert calls == [(0, 3), (0, 3), (1, 3), (1, 3)]
    assert np.all(np.diff([number for number, _ in calls]) >= 0)
