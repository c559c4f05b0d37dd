"""Markdown tables of the benchmarks."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence

UNKNOWN = "–"
# In place of the accuracy of the pixels of a detector that gives no anomaly map.
NO_MAP = "no map"
CELL_END = re.compile(r"(?<!\\)\|")


def aligned(table: str) -> str:
    """Return a table of `markdown_table` with its columns padded to equal width, for a terminal."""
    lines = []
    for line in table.splitlines():
        # A bar with a backslash is part of its cell.
        lines.append([cell.strip() for cell in CELL_END.split(line.strip())[1:-1]])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = []
    for number, cells in enumerate(lines):
        if number == 1:
            padded.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
            continue
        texts = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        padded.append(_joined(texts))
    return "\n".join(padded)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with one line per row and no newline at its end.

    A cell that is None means that the value is unknown and is printed as a dash. All other cells
    are printed as `str` prints them, so the caller formats its numbers. A row that is shorter or
    longer than the header is a mistake of the caller and raises ValueError.
    """
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header has {len(header)}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    texts = []
    for cell in cells:
        text = UNKNOWN if cell is None else str(cell)
        # A bar within a cell would start the next cell.
        texts.append(text.replace("|", "\\|"))
    return _joined(texts)


def _joined(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def mean_and_deviation(values: Iterable[float | None]) -> str:
    """Return "mean ± standard deviation" of the known values, or a dash when there are none.

    The standard deviation is that of a sample. A single value has none.
    """
    known = [value for value in values if value is not None]
    if not known:
        return UNKNOWN
    mean = f"{statistics.mean(known):.4f}"
    if len(known) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(known):.4f}"
