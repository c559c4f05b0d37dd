"""docs/failures.md: the tests that it names exist, and the messages that it quotes are printed."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
PLACES = ("cameras", "runtime", "src/flawline")
# What stands for a value on the page.
GAP = "…"
TEST = re.compile(r"(\*?)`(tests/[\w/]+\.py)::(\w+)`")
# The catalogue has these numbers.
FAILURES = range(1, 37)


def rows() -> list[list[str]]:
    """Return the cells of each failure."""
    found = []
    for line in PAGE.splitlines():
        if re.match(r"\| \d+\. ", line):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


@cache
def texts() -> frozenset[str]:
    """Return the texts of the program; one with values in it is several."""
    found = set()
    for place in PLACES:
        for path in sorted((ROOT / place).rglob("*.py")):
            # The parts of a formatted text are constants, too.
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return frozenset(found)


def is_printed(part: str) -> bool:
    """Tell whether the program puts a part of a message, without values, together from texts."""
    # Where a text may end.
    ends = {0}
    for end in range(1, len(part) + 1):
        if any(part[start:end] in texts() for start in ends):
            ends.add(end)
    return len(part) in ends


def test_every_failure_has_a_row_with_a_test() -> None:
    numbers = [int(cells[0].partition(".")[0]) for cells in rows()]
    assert sorted(numbers) == list(FAILURES)
    for cells in rows():
        assert len(cells) == 4, cells[0]
        assert TEST.search(cells[3]), cells[0]


def test_the_tests_exist_and_those_that_are_slow_are_in_italics() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > len(FAILURES)
    for star, file, name in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        place = re.search(rf"^def {name}\(", source, re.MULTILINE)
        assert place, f"{file} has no test {name}"
        decorators = source[: place.start()].rpartition("\n\n")[2]
        is_slow = "mark.slow" in decorators or "pytestmark = pytest.mark.slow" in source
        assert is_slow == bool(star), f"{file}::{name}"


def test_the_messages_are_those_of_the_program() -> None:
    quoted = []
    for cells in rows():
        quoted += re.findall(r"`([^`]+)`", cells[2])
    assert len(quoted) > 30
    for message in quoted:
        for part in message.split(GAP):
            assert is_printed(part), f"{part!r} of {message!r}"
