"""The Markdown tables of the benchmarks."""

from __future__ import annotations

import pytest

from flawline.benchmarks.tables import markdown_table, mean_and_deviation


def test_a_table_has_a_header_a_rule_and_a_line_per_row() -> None:
    table = markdown_table(["name", "FPS"], [["a", 12.5], ("b", None), ["c", ""]])
    assert table.splitlines() == [
        "| name | FPS |",
        "|---|---|",
        "| a | 12.5 |",
        "| b | – |",
        "| c |  |",
    ]


def test_a_table_without_rows_is_a_header() -> None:
    assert markdown_table(["name"], []) == "| name |\n|---|"


def test_a_bar_within_a_cell_does_not_start_another_cell() -> None:
    assert markdown_table(["name"], [["a|b"]]).endswith("| a\\|b |")


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells, the header has 2"):
        markdown_table(["name", "FPS"], [["a"]])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "–"),
        ([None], "–"),
        ([0.98765], "0.9877"),
        ([0.9, 1.0], "0.9500 ± 0.0707"),
        ([0.9, None, 1.0], "0.9500 ± 0.0707"),
    ],
)
def test_mean_and_deviation_of_the_known_values(values: list[float | None], text: str) -> None:
    assert mean_and_deviation(values) == text
