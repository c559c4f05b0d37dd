"""Tables of the report, written as HTML and as Markdown from the same cells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flawline.benchmarks.tables import UNKNOWN, markdown_table


@dataclass(frozen=True)
class Cell:
    """A text, with the length of the bar behind it as a share of the cell, if it has one."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with its title and sentences about it.

    The first `words` columns are text, the others are numbers. A table that is `folded` opens on
    request.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    words: int = 1
    folded: bool = False

    def without_empty_columns(self) -> Table:
        """Return the table without columns of which no value is known."""
        kept = []
        for column in range(len(self.header)):
            if any(row[column].text != UNKNOWN for row in self.rows):
                kept.append(column)
        header = [self.header[column] for column in kept]
        rows = [[row[column] for column in kept] for row in self.rows]
        return replace(self, header=header, rows=rows)

    def markdown(self) -> str:
        """Return the table as Markdown, without its title."""
        rows = [[cell.text for cell in row] for row in self.rows]
        return "\n\n".join([markdown_table(self.header, rows), *self.notes])


def text(value: object) -> Cell:
    """Return a cell; one without a value has a dash."""
    return Cell(UNKNOWN if value is None else str(value))


def decimals(value: float | None, digits: int = 4) -> Cell:
    """Return a cell with a number of decimals."""
    return Cell(UNKNOWN if value is None else f"{value:.{digits}f}")


def mean_cell(values: Sequence[float], digits: int) -> Cell:
    """Return a cell with the mean of the values and, of several, their standard deviation."""
    if not values:
        return Cell(UNKNOWN)
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return Cell(mean)
    return Cell(f"{mean} ± {statistics.stdev(values):.{digits}f}")


def speed(value: float | None) -> Cell:
    """Return a cell with frames per second or milliseconds, three significant digits."""
    if value is None:
        return Cell(UNKNOWN)
    return Cell(f"{value:.0f}" if value >= 100 else f"{value:.3g}")


def with_bars(cells: Sequence[Cell], values: Sequence[float | None], low: float) -> list[Cell]:
    """Return the cells of a column with bars that begin at `low` and end at the largest value."""
    known = [value for value in values if value is not None]
    highest = max(known, default=low)
    if highest <= low:
        return list(cells)
    bars = []
    for cell, value in zip(cells, values, strict=True):
        if value is None:
            bars.append(cell)
        else:
            bars.append(replace(cell, share=max(0.0, (value - low) / (highest - low))))
    return bars
