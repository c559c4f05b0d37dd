"""Accuracies and speeds that others published, each with its source.

`figures.json` holds them as printed. Averages are computed again from the categories of the same
table, because some printed ones do not follow from them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flawline import FlawlineError
from flawline.runtime.console import first_line
from flawline.runtime.json_shapes import Shape, misfit

FILE = Path(__file__).with_name("figures.json")
MVTEC_AD = "MVTec AD"
VISA = "VisA"
THREE_COLLECTIONS = "MVTec AD, VisA, MVTec LOCO (mean)"
# Printed averages are rounded to 0.1 % and computed from rounded values.
ROUNDING = 0.1
# Of a column whose values are printed without decimals.
WHOLE_ROUNDING = 0.5

TEXT = (str, None)
NUMBER = (float, None)
PAIRS: Shape = [[NUMBER]]
# Of the file; the dataclasses below say what its keys mean.
SHAPE: Shape = {
    "sources": {
        str: {"short": str, "kind": str, "title": str, "authors": TEXT, "year": (int, None)}
    },
    "points": [
        {
            **dict.fromkeys(("method", "source"), str),
            **{f"{key}?": TEXT for key in ("data", "variant", "gpu", "precision", "note")},
            **{f"{key}?": TEXT for key in ("speed_source", "place")},
            **{f"{key}?": NUMBER for key in ("image_auroc", "pixel_auroc", "aupro")},
            **{f"{key}?": NUMBER for key in ("fps", "latency_ms", "throughput")},
            "throughput_batch?": (int, None),
        }
    ],
    "claims": [{"method": str, "statement": str, "source": str}],
    "tables": [
        {
            "data": str,
            "source": str,
            "columns": [{"method": str, "variant": TEXT}],
            "categories": {str: PAIRS},
            "averages": [{"name": str, "categories": [str], "printed": PAIRS}],
        }
    ],
    "ablations": {
        "settings": [{"factor": str, "image_auroc": float, "pixel_auroc": float}],
    },
}

# Image and pixel AUROC in percent; None where a table has a dash.
Pair = tuple["float | None", "float | None"]


@dataclass(frozen=True)
class Source:
    """Where a figure was printed; `kind` is paper, report or repository, `short` a name."""

    short: str
    kind: str
    title: str
    authors: str | None
    year: int | None
    address: str | None

    def cite(self) -> str:
        """Return the source as one line of text."""
        parts = []
        if self.authors is not None:
            parts.append(self.authors)
        parts.append(self.title)
        if self.year is not None:
            parts.append(str(self.year))
        return ", ".join(parts)


@dataclass(frozen=True)
class Point:
    """What one source states about one method.

    Accuracies are in percent, `data` is None where only a speed is stated. `fps` and `latency_ms`
    are those of single images, `throughput` is in images per second at `throughput_batch` images
    per call. `source` is a key of the sources, and so is `speed_source`, where the speed has
    another one.
    """

    method: str
    data: str | None
    source: str
    variant: str | None = None
    image_auroc: float | None = None
    pixel_auroc: float | None = None
    aupro: float | None = None
    fps: float | None = None
    latency_ms: float | None = None
    throughput: float | None = None
    throughput_batch: int | None = None
    gpu: str | None = None
    precision: str | None = None
    speed_source: str | None = None
    place: str | None = None
    note: str | None = None

    @property
    def name(self) -> str:
        """The method with its variant."""
        return self.method if self.variant is None else f"{self.method} ({self.variant})"

    @property
    def single_image_fps(self) -> float | None:
        """The frames per second of single images, as stated or as 1000 / latency."""
        if self.fps is not None:
            return self.fps
        return None if self.latency_ms is None else 1000 / self.latency_ms


@dataclass(frozen=True)
class Column:
    """One method of a table."""

    method: str
    variant: str | None

    @property
    def name(self) -> str:
        """The method with its variant."""
        return self.method if self.variant is None else f"{self.method} ({self.variant})"


@dataclass(frozen=True)
class Average:
    """A printed average of the categories named: one pair per column of its table."""

    name: str
    categories: Sequence[str]
    printed: Sequence[Pair]


@dataclass(frozen=True)
class Table:
    """Accuracies per category as printed: one pair per column of each category."""

    data: str
    source: str
    place: str | None
    note: str | None
    columns: Sequence[Column]
    categories: Mapping[str, Sequence[Pair]]
    averages: Sequence[Average]

    def recomputed(self, average: Average) -> list[Pair]:
        """Return an average computed from its categories, one pair per column.

        A value is None where the table has none for the categories.
        """
        pairs: list[Pair] = []
        for column in range(len(self.columns)):
            image, pixel = [
                _mean([self.categories[name][column][index] for name in average.categories])
                for index in (0, 1)
            ]
            pairs.append((image, pixel))
        return pairs

    def differs(self, average: Average, column: int, index: int) -> bool:
        """Whether a printed average does not follow from its column, beyond rounding.

        `index` is 0 for the image and 1 for the pixel AUROC. An average without categories cannot
        be checked and does not differ.
        """
        printed = average.printed[column][index]
        recomputed = self.recomputed(average)[column][index]
        if printed is None or recomputed is None:
            return False
        values = [pairs[column][index] for pairs in self.categories.values()]
        whole = all(value is None or value == int(value) for value in values)
        tolerance = WHOLE_ROUNDING if whole else ROUNDING
        return abs(printed - recomputed) > tolerance + 1e-9


@dataclass(frozen=True)
class Claim:
    """What a source says about a speed without a measured value."""

    method: str
    statement: str
    source: str


@dataclass(frozen=True)
class Setting:
    """The accuracy of one setting in a study of settings, in percent."""

    factor: str
    setting: str
    coreset: str
    image_auroc: float
    pixel_auroc: float


@dataclass(frozen=True)
class Ablations:
    """A study of the settings of one method."""

    method: str
    data: str
    source: str
    settings: Sequence[Setting]


@dataclass(frozen=True)
class Figures:
    """All published figures, and their sources by key."""

    sources: Mapping[str, Source]
    points: Sequence[Point]
    claims: Sequence[Claim]
    tables: Sequence[Table]
    ablations: Ablations

    def tables_of(self, data: str) -> list[Table]:
        """Return the tables of one collection of data sets."""
        return [table for table in self.tables if table.data == data]


class FiguresError(FlawlineError):
    """The file of the published figures is not as it was installed."""


@cache
def read_figures() -> Figures:
    """Return the published figures. Raises FiguresError for a damaged file."""
    try:
        values = json.loads(FILE.read_text(encoding="utf-8"))
        reason = misfit(values, SHAPE)
        if reason is None:
            return _figures(values)
    except (ValueError, TypeError, RecursionError) as error:
        # A key of a figure that is unknown or missing is a TypeError.
        reason = first_line(error)
    raise FiguresError(f"{FILE} is damaged ({reason}); correct it, or install Flawline again")


def _figures(values: dict[str, Any]) -> Figures:
    ablations = values["ablations"]
    settings = [Setting(**setting) for setting in ablations.pop("settings")]
    return Figures(
        sources={key: Source(**source) for key, source in values["sources"].items()},
        points=[Point(**point) for point in values["points"]],
        claims=[Claim(**claim) for claim in values["claims"]],
        tables=[_table(table) for table in values["tables"]],
        ablations=Ablations(**ablations, settings=settings),
    )


def _table(values: dict[str, Any]) -> Table:
    categories = {}
    for name, pairs in values.pop("categories").items():
        categories[name] = [_pair(pair) for pair in pairs]
    averages = []
    for average in values.pop("averages"):
        printed = [_pair(pair) for pair in average.pop("printed")]
        averages.append(Average(**average, printed=printed))
    columns = [Column(**column) for column in values.pop("columns")]
    return Table(**values, columns=columns, categories=categories, averages=averages)


def _pair(values: Sequence[float | None]) -> Pair:
    image, pixel = values
    return image, pixel


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
