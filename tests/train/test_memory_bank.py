"""The memory bank: neighbours, the exported search, its rounding, and sizes by budget."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from oracles import assert_equal_state

from flawline.train import TrainError
from flawline.train.blocks import bank_budget, memory_bank
from flawline.train.blocks.bank_budget import (
    bytes_of_row,
    rows_for_megabytes,
    rows_for_milliseconds,
    search_milliseconds,
)
from flawline.train.blocks.memory_bank import BLOCK, Bank, NearestRow, whole_blocks

pytestmark = pytest.mark.torch
GRID = (8, 8)
DIM = 48


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_row_is_its_own_first_neighbour_even_if_another_is_equal() -> None:
    rows = random(30, 5)
    rows[20] = rows[3]
    bank = Bank(5, 3)
    bank.fill(rows, torch.arange(30))
    assert bank.neighbours[:, 0].tolist() == list(range(30))
    assert set(bank.neighbours[3, :2].tolist()) == {3, 20}


def test_neighbours_in_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(5, 4)
    bank.fill(random(50, 5), torch.arange(50))
    whole = bank.neighbours
    monkeypatch.setattr(memory_bank, "NEIGHBOUR_CHUNK", 7)
    bank.fill(random(50, 5), torch.arange(50))
    assert torch.equal(bank.neighbours, whole)


def test_a_bank_takes_the_size_of_what_it_loads() -> None:
    bank = Bank(5, 2)
    bank.fill(random(30, 5), torch.arange(30))
    other = Bank(5, 2)
    other.load_state_dict(bank.state_dict())
    assert_equal_state(other, bank)
    assert torch.equal(other.neighbours, bank.neighbours)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Bank(6, 2).load_state_dict(bank.state_dict())


def test_whole_blocks_repeat_the_last_row() -> None:
    rows = random(BLOCK + 1, 3)
    filled = whole_blocks(rows)
    assert len(filled) == 2 * BLOCK
    assert torch.equal(filled[: BLOCK + 1], rows)
    assert (filled[BLOCK:] == rows[-1]).all()
    assert torch.equal(whole_blocks(rows[:BLOCK]), rows[:BLOCK])


@pytest.mark.parametrize("parts", [1, 3])
def test_the_exported_search_finds_the_nearest_row(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the literal search; a bank whose parts are searched in turn gives the same."""
    if parts > 1:
        limit = 4 * memory_bank.LARGEST_BATCH * GRID[0] * GRID[1] * (BLOCK + 1)
        monkeypatch.setattr(memory_bank, "LARGEST_TENSOR", limit)
    rows = random(150, DIM).double()
    features = random(2, DIM, *GRID, seed=1).double()
    search = NearestRow(whole_blocks(rows), GRID)
    assert len(search.search) == parts
    distance, winner = search(features)
    flat = features.permute(0, 2, 3, 1).reshape(-1, DIM)
    every = torch.linalg.vector_norm(flat[:, None] - rows, dim=2)
    torch.testing.assert_close(distance.flatten(), every.amin(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(winner.flatten(), every.argmin(1))


# ---------------------------------------------------------------- budgets


def test_rows_for_megabytes() -> None:
    assert rows_for_megabytes(1, DIM, 5) == 1e6 // bytes_of_row(DIM, 5)
    message = r"--budget-mb 0.001 is less than 16 bank rows take; give at least 0\.004"
    with pytest.raises(TrainError, match=message):
        rows_for_megabytes(0.001, DIM, 5)


@pytest.mark.parametrize(
    ("milliseconds", "most", "fewest_rows", "most_rows"),
    [(10, 10**6, 4300, 4750), (10, 900, 900, 900), (0.6, 999, 16, 50)],
)
def test_a_time_budget_is_kept_and_used(
    milliseconds: float,
    most: int,
    fewest_rows: int,
    most_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[int] = []

    def linear_machine(rows: int, dim: int, grid: tuple[int, int]) -> float:
        timed.append(rows)
        return 0.5 + 0.002 * rows

    monkeypatch.setattr(bank_budget, "search_milliseconds", linear_machine)
    rows, measured = rows_for_milliseconds(milliseconds, 384, (32, 32), most)
    assert fewest_rows <= rows <= most_rows
    assert measured == 0.5 + 0.002 * rows <= milliseconds
    assert len(timed) <= 4


def test_a_time_budget_below_any_search_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_budget, "search_milliseconds", lambda rows, *_: 0.5 + 0.002 * rows)
    message = (
        r"--budget-ms 0\.5: searching as few as 16 rows takes 0\.53 ms on this machine; allow more"
    )
    with pytest.raises(TrainError, match=message):
        rows_for_milliseconds(0.5, 384, (32, 32), 1000)


def test_the_exported_search_is_timed() -> None:
    assert search_milliseconds(100, DIM, GRID) > 0
