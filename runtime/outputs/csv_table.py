"""One row of a CSV table per judgement, for spreadsheets and databases."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Judgement, Output, OutputOptions, OutputState
from flawline.runtime.outputs.jsonl import record
from flawline.runtime.outputs.line_file import LineFile

COLUMNS = (
    "source",
    "index",
    "captured_at",
    "score",
    "threshold",
    "verdict",
    "rejected",
    "reason",
    "prepare_ms",
    "infer_ms",
    "fps",
    "age_ms",
    "dropped",
    "camera",
    "part",
    "views",
    "bundle",
    "review_threshold",
    "regions_total",
    "largest_x",
    "largest_y",
    "largest_width",
    "largest_height",
    "largest_area",
    "largest_peak",
    "recipe",
    "recent_bad",
    "pose_turn",
    "pose_dx",
    "pose_dy",
    "pose_match",
)
# A spreadsheet would take a text that begins so for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class CsvTable(Output):
    """Writes a header and one row per judgement, with the columns of COLUMNS in every run.

    A column is that of the JSON line with the same name, and empty where the line has no value.
    `prepare_ms` and `infer_ms` are the two `milliseconds` of the line, `views` is the number of
    exposures of the part, `regions_total` that of the regions, `largest_...` are those of the one
    with the largest area, and `pose_...` the values of `pose`. There is no row for the summary.
    `target` is a file, or empty for stdout. The header replaces the content of the file.
    """

    uses_regions = True
    usage: ClassVar[str] = "csv:FILE"

    def __init__(self, target: str, options: OutputOptions, bundle: Bundle) -> None:
        self._bundle_id = bundle.short_id
        self._file = LineFile("csv", target)
        self._has_header = False

    def change_bundle(self, bundle: Bundle) -> None:
        self._bundle_id = bundle.short_id

    def write(self, judgement: Judgement) -> None:
        line = {**record(judgement), "bundle": self._bundle_id}
        for stage, milliseconds in line.pop("milliseconds").items():
            line[f"{stage}_ms"] = milliseconds
        for name, value in line.pop("pose", {}).items():
            line[f"pose_{name}"] = value
        if judgement.views:
            line["views"] = len(judgement.views)
        line |= _largest(judgement)
        text = _row(_cell(line.get(column)) for column in COLUMNS)
        if not self._has_header:
            text = f"{_row(COLUMNS)}\n{text}"
        if self._file.print(text):
            self._has_header = True

    def stop_waiting(self) -> None:
        self._file.stop_waiting()

    def totals(self) -> Mapping[str, int]:
        return self._file.totals()

    def state(self) -> OutputState:
        return OutputState(self._file.totals(), self._file.fault)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._file.require_all()

    def close(self) -> None:
        self._file.close()


def _largest(judgement: Judgement) -> dict[str, Any]:
    """Return the columns of the region with the largest area; none without a region."""
    if judgement.regions is None or judgement.regions.largest is None:
        return {}
    largest = judgement.regions.largest
    columns: dict[str, Any] = {"largest_area": largest.area, "largest_peak": largest.peak}
    for name, value in zip(("x", "y", "width", "height"), largest.box, strict=True):
        columns[f"largest_{name}"] = value
    return columns


def _cell(value: Any) -> str:
    """Return a value as text: empty for None, true and false for a boolean.

    A text that a spreadsheet would take for a formula gets an apostrophe, which shows it as text.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if isinstance(value, str) and text.startswith(FORMULA):
        return f"'{text}"
    return text


def _row(cells: Iterable[str]) -> str:
    """Return a row in the dialect of RFC 4180, without its line break."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()
