"""Blocks of the sequence, the record of out-of-fold scores, and the tests of neighbours."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from flawline.runtime.good_images.folds import blocks, choose_folds, random_fifth, sequence_order
from flawline.runtime.good_images.neighbours import (
    describe_held_out,
    describe_neighbours,
    signed_rank_probability,
)
from flawline.runtime.good_images.out_of_fold import (
    OutOfFold,
    PartScores,
    independent_images,
    match_images,
    out_of_fold_from_json,
    out_of_fold_to_json,
)
from flawline.train.data import DataError, hold_out


def names(count: int, folder: str = "good") -> list[Path]:
    return [Path(f"/data/{folder}/{index}.png") for index in range(count)]


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("requested", "images", "folds"),
    [(None, 5, 5), (None, 499, 5), (None, 500, 0), (0, 60, 0), (3, 1000, 3), (5, 5, 5)],
)
def test_the_default_changes_at_500_images(requested: int | None, images: int, folds: int) -> None:
    assert choose_folds(requested, images) == folds


@pytest.mark.parametrize(
    ("requested", "images", "message"),
    [
        (7, 6, "--folds 7 needs 7 good images, there are 6; give a smaller number, or --folds 0"),
        (None, 4, "only 4 good images; at least 5 are needed"),
        (0, 4, "only 4 good images; at least 5 are needed"),
    ],
)
def test_too_few_images_are_refused(requested: int | None, images: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_folds(requested, images)


@pytest.mark.parametrize("count", [5, 7, 60, 61])
def test_blocks_divide_the_sequence(count: int) -> None:
    paths = names(count)
    found = blocks(paths, 5)
    assert list(itertools.chain(*found)) == list(range(count))
    sizes = [len(block) for block in found]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_the_sequence_is_that_of_folders_and_numbers() -> None:
    """Also where the list is in another order, or sorted as text."""
    paths = [*names(12, "day10"), *names(12, "day9")]
    as_text = sorted(paths, key=str)
    sequence = [as_text[index] for index in sequence_order(as_text)]
    assert sequence == [*names(12, "day9"), *names(12, "day10")]
    for listed in (paths, paths[::-1], as_text):
        chosen = [{listed[index] for index in block} for block in blocks(listed, 5)]
        assert chosen == [{sequence[index] for index in block} for block in blocks(sequence, 5)]


def test_the_random_fifth_is_that_of_the_hold_out() -> None:
    paths = names(23)
    assert [paths[index] for index in random_fifth(paths)] == hold_out(paths)[1]


# ---------------------------------------------------------------- the record


def record_of(
    scores: np.ndarray,
    from_random: np.ndarray,
    offset: float = 0.0,
) -> OutOfFold:
    """A record of 5 blocks; the detectors of the blocks have scores that are `offset` higher."""
    n = len(scores)
    paths = names(n)
    chosen = random_fifth(paths)
    common = [index for index in range(n) if index not in chosen]
    parts = []
    for block in blocks(paths, 5):
        seen = tuple(index for index in common if index not in block)
        values = tuple(float(scores[index] + offset) for index in block)
        parts.append(PartScores(tuple(block), values, values, seen, (offset,) * len(seen)))
    values = tuple(float(from_random[index]) for index in chosen)
    random = PartScores(tuple(chosen), values, values, tuple(common), (0.0,) * len(common))
    return OutOfFold(tuple(f"hash {index}" for index in range(n)), 5, tuple(parts), random)


def test_a_record_survives_a_checkpoint() -> None:
    scores = np.random.default_rng(0).normal(size=23)
    record = record_of(scores, scores)
    assert record.complete
    assert record.scores() == pytest.approx(scores)
    assert out_of_fold_from_json(out_of_fold_to_json(record)) == record
    begun = OutOfFold(record.images, 5, record.folds[:2])
    assert not begun.complete
    assert out_of_fold_from_json(out_of_fold_to_json(begun)) == begun
    assert out_of_fold_from_json(out_of_fold_to_json(None)) is None


def test_images_are_matched_by_content() -> None:
    assert match_images(["a", "b", "c"], ["c", "a", "b"]) == [2, 0, 1]
    assert match_images(["a", "a", "b"], ["a", "b", "a"]) == [0, 2, 1]
    for found in (["a", "b"], ["a", "b", "d"], ["a", "b", "b"], ["a", "b", "c", "c"]):
        assert match_images(["a", "b", "c"], found) is None


def test_copies_count_once_and_not_at_all_in_another_fold() -> None:
    parts = (PartScores((0, 1), (), ()), PartScores((2, 3, 4), (), ()))
    assert independent_images(OutOfFold(("a", "b", "c", "d", "e"), 2, parts)) == [0, 1, 2, 3, 4]
    assert independent_images(OutOfFold(("a", "a", "b", "b", "c"), 2, parts)) == [0, 2, 4]
    assert independent_images(OutOfFold(("a", "b", "b", "c", "a"), 2, parts)) == [3]
    assert independent_images(OutOfFold(("a", "b", "a", "b", "a"), 2, parts)) == []


# ---------------------------------------------------------------- neighbours


def test_the_signed_rank_test_is_exact() -> None:
    """Against all signs of 1 to 6, enumerated."""
    differences = np.array([1.0, -2.0, 3.0, 4.0, -5.0, 6.0])
    observed = 1 + 3 + 4 + 6
    as_large = 0
    for signs in itertools.product((0, 1), repeat=6):
        as_large += sum(rank * sign for rank, sign in enumerate(signs, 1)) >= observed
    assert signed_rank_probability(differences) == pytest.approx(as_large / 64)
    assert signed_rank_probability(np.zeros(5)) == 1.0


def test_similar_neighbours_raise_a_warning() -> None:
    """Here images of 6 in a row look the same: known neighbours make a score lower."""
    rng = np.random.default_rng(1)
    scores = np.repeat(rng.normal(10, 1, 20), 6) + rng.normal(0, 0.2, 120)
    (line,) = describe_neighbours(record_of(scores, scores - 1.5))
    assert line.startswith("warning: neighbouring images of the sequence are similar (without its")
    assert "the scores of neighbours correlate by 0." in line
    assert line.endswith("give images of more parts, days and settings")


def test_an_offset_between_detectors_is_no_sign_of_neighbours() -> None:
    scores = np.random.default_rng(2).normal(10, 1, 60)
    assert describe_neighbours(record_of(scores, scores, offset=3.0)) == []


def test_independent_images_raise_few_warnings() -> None:
    """The level of both tests together is 5 %; 100 data sets give 10 warnings or fewer."""
    rng = np.random.default_rng(3)
    warnings = 0
    for _ in range(100):
        scores = rng.normal(10, 1, 60)
        noise = rng.normal(0, 0.3, 60)
        warnings += len(describe_neighbours(record_of(scores, scores + noise)))
    assert warnings <= 10


def test_held_out_scores_that_follow_each_other_raise_a_warning() -> None:
    waves = np.sin(np.arange(100) / 100 * 4 * math.pi)
    order = np.random.default_rng(4).permutation(100)
    paths = [names(100)[index] for index in order]
    (line,) = describe_held_out(paths, waves[order])
    assert "the scores of neighbours among the held-out ones correlate by 0.9" in line
    assert describe_held_out(names(100), waves[order]) == []
    assert describe_held_out(names(5), np.arange(5.0)) == []
    assert describe_held_out(names(50), np.ones(50)) == []
