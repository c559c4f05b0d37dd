"""Image and pixel AUROC per category, ours beside those that others published."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from flawline.benchmarks.published.figures import Figures, Pair, read_figures
from flawline.benchmarks.published.figures import Table as PublishedTable
from flawline.benchmarks.sweep.report.results import Machine, Result, reference_results
from flawline.benchmarks.sweep.report.tables import Cell, Table
from flawline.benchmarks.tables import UNKNOWN

# Beginnings of the names of folders that name the collection of a category.
COLLECTION = re.compile(r"^(mvtec|visa)(_ad)?_")
# Other names of categories, as in the folders of the data sets.
OTHER_NAMES = {"candles": "candle", "pipefryum": "pipe_fryum", "hazelhut": "hazelnut"}
NOTE = (
    "Image / pixel AUROC in percent, as in the papers. The published values come from other "
    "trainings on the official split; whether a folder with the name of a category holds this "
    "split is not checked."
)
MACHINE_NOTE = "Ours: the first engine, mean over the seeds."


def category_tables(machine: Machine) -> list[Table]:
    """Return ours beside the published values for each collection, and ours alone for the rest."""
    figures = read_figures()
    tables = []
    rest = list(machine.data_sets)
    for collection in dict.fromkeys(table.data for table in figures.tables):
        published = figures.tables_of(collection)
        matched = {}
        for data in machine.data_sets:
            category = category_of(data)
            if category in published[0].categories:
                matched[data] = category
                rest.remove(data)
        if matched:
            tables.append(_compared(machine, collection, published, matched, figures))
    if rest:
        rows = _own_rows(machine, rest)
        header = ["detector", *rest]
        title = "Image / pixel AUROC per data set"
        if len(rest) > 1:
            header.append("mean")
        note = f"In percent. {MACHINE_NOTE}"
        tables.append(Table(title, header, rows, [note]))
    return tables


def category_of(data: str) -> str:
    """Return the category that the name of a data set's folder means, such as "bottle"."""
    name = data.lower().replace("-", "_").replace(" ", "_")
    name = COLLECTION.sub("", name)
    return OTHER_NAMES.get(name, name)


def pair_text(pair: Pair, digits: int = 1) -> str:
    """Return image and pixel AUROC in percent, such as "99.1/98.1"; a dash is not known."""
    texts = [UNKNOWN if value is None else f"{value:.{digits}f}" for value in pair]
    return UNKNOWN if texts == [UNKNOWN, UNKNOWN] else "/".join(texts)


def _compared(
    machine: Machine,
    collection: str,
    published: Sequence[PublishedTable],
    matched: dict[str, str],
    figures: Figures,
) -> Table:
    rows = _own_rows(machine, list(matched))
    for row in rows:
        row[0] = Cell(f"{row[0].text} (ours)")
    seen = set()
    for table in published:
        for number, column in enumerate(table.columns):
            pairs = [table.categories[category][number] for category in matched.values()]
            line = (column.name, *pairs)
            # A table that repeats another one says nothing new.
            if line in seen or all(pair == (None, None) for pair in pairs):
                continue
            seen.add(line)
            cells = [Cell(f"{column.name}, {figures.sources[table.source].short}")]
            cells += [Cell(pair_text(pair)) for pair in pairs]
            if len(pairs) > 1:
                cells.append(Cell(pair_text(_mean_pair(pairs))))
            rows.append(cells)
    header = ["detector", *matched]
    if len(matched) > 1:
        header.append("mean of these")
    title = f"Categories of {collection}, ours and published"
    return Table(title, header, rows, [NOTE, MACHINE_NOTE])


def _own_rows(machine: Machine, data_sets: Sequence[str]) -> list[list[Cell]]:
    """Return a line for each detector: its pairs on the data sets, and their mean."""
    by_data: list[dict[str, Result]] = []
    for data in data_sets:
        by_data.append({result.name: result for result in reference_results(machine, data)})
    rows = []
    for name in machine.names:
        pairs = [_pair(results.get(name)) for results in by_data]
        if all(pair == (None, None) for pair in pairs):
            continue
        cells = [Cell(name), *(Cell(pair_text(pair)) for pair in pairs)]
        if len(pairs) > 1:
            cells.append(Cell(pair_text(_mean_pair(pairs))))
        rows.append(cells)
    return rows


def _pair(result: Result | None) -> Pair:
    if result is None:
        return None, None
    image = result.mean("image_auroc")
    pixel = result.mean("pixel_auroc")
    return (
        None if image is None else 100 * image,
        None if pixel is None else 100 * pixel,
    )


def _mean_pair(pairs: Sequence[Pair]) -> Pair:
    """Return the mean of pairs; a value that is not known for each of them has none."""
    means: list[float | None] = []
    for index in (0, 1):
        values = [value for pair in pairs if (value := pair[index]) is not None]
        means.append(statistics.mean(values) if len(values) == len(pairs) else None)
    return means[0], means[1]
