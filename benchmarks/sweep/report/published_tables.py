"""Tables of what others published, each figure with its source."""

from __future__ import annotations

from flawline.benchmarks.published.figures import Average, Figures, Point, read_figures
from flawline.benchmarks.published.figures import Table as PublishedTable
from flawline.benchmarks.sweep.report.categories import pair_text
from flawline.benchmarks.sweep.report.tables import Cell, Table, speed, text
from flawline.benchmarks.tables import UNKNOWN

AS_PRINTED = "Image / pixel AUROC in percent, as printed."


def published_tables() -> list[Table]:
    """Return all published figures as tables, which open on request."""
    figures = read_figures()
    tables = [_speeds(figures), _accuracies(figures)]
    tables += [_per_category(figures, table) for table in figures.tables]
    return [*tables, _ablations(figures), _sources(figures)]


def _speeds(figures: Figures) -> Table:
    rows = []
    for point in figures.points:
        if point.single_image_fps is None and point.throughput is None:
            continue
        accuracy = text(point.image_auroc)
        if point.image_auroc is not None and point.data is not None:
            accuracy = Cell(f"{point.image_auroc:g} ({point.data})")
        rows.append(
            [
                Cell(point.name),
                text(point.gpu),
                Cell(_cite(figures, point)),
                speed(point.single_image_fps),
                _throughput(point),
                accuracy,
            ]
        )
    header = ["method", "GPU", "source", "FPS", "images per second", "image AUROC"]
    notes = [
        "FPS of single images; where a source states a latency, 1000 / latency in ms. Images per "
        "second are in batches.",
        *(f"{claim.method}: {claim.statement} ({_short(figures, claim.source)})"
          for claim in figures.claims),
    ]  # fmt: skip
    return Table("Published speeds", header, rows, notes, words=3, folded=True)


def _accuracies(figures: Figures) -> Table:
    rows = []
    for point in figures.points:
        if point.data is None:
            continue
        values = (point.image_auroc, point.pixel_auroc, point.aupro)
        cells = [Cell(point.name), Cell(point.data), Cell(_cite(figures, point)), text(point.note)]
        rows.append([*cells, *(text(value) for value in values)])
    header = ["method", "data", "source", "note", "image AUROC", "pixel AUROC", "AUPRO"]
    title = "Published accuracies that are not in the tables per category"
    return Table(title, header, rows, ["In percent."], words=4, folded=True)


def _per_category(figures: Figures, table: PublishedTable) -> Table:
    """Return a table in the layout of the papers, with its averages as printed and as computed."""
    rows = []
    for name, pairs in table.categories.items():
        rows.append([Cell(name), *(Cell(pair_text(pair)) for pair in pairs)])
    notes = [AS_PRINTED]
    for average in table.averages:
        printed = [Cell(pair_text(pair)) for pair in average.printed]
        rows.append([Cell(f"average of {average.name}, printed"), *printed])
        if _differing(table, average):
            computed = [Cell(pair_text(pair)) for pair in table.recomputed(average)]
            rows.append([Cell(f"average of {average.name}, computed"), *computed])
            methods = ", ".join(_differing(table, average))
            notes.append(
                f"The printed average of {average.name} does not follow from the column of "
                f"{methods}; the line below it is computed from the categories."
            )
    if table.note is not None:
        notes.append(table.note)
    place = "" if table.place is None else f", {table.place}"
    coresets = {column.variant for column in table.columns if column.variant is not None}
    variant = f", {coresets.pop()}" if len(coresets) == 1 else ""
    title = f"{table.data} per category: {_short(figures, table.source)}{place}{variant}"
    header = ["category", *(column.name for column in table.columns)]
    return Table(title, header, rows, notes, folded=True)


def _differing(table: PublishedTable, average: Average) -> list[str]:
    """Return the methods whose printed average does not follow from their column."""
    names = []
    for number, column in enumerate(table.columns):
        if table.differs(average, number, 0) or table.differs(average, number, 1):
            names.append(column.name)
    return names


def _ablations(figures: Figures) -> Table:
    study = figures.ablations
    rows = []
    for setting in study.settings:
        pair = pair_text((setting.image_auroc, setting.pixel_auroc))
        rows.append(
            [Cell(setting.factor), Cell(setting.setting), Cell(setting.coreset), Cell(pair)]
        )
    title = f"Settings of {study.method} on {study.data}: {_short(figures, study.source)}"
    header = ["factor", "setting", "coreset", "image/pixel AUROC"]
    return Table(title, header, rows, [AS_PRINTED], words=3, folded=True)


def _sources(figures: Figures) -> Table:
    rows = []
    for source in figures.sources.values():
        rows.append([Cell(source.short), Cell(source.cite()), text(source.address)])
    return Table("Sources", ["name", "source", "address"], rows, words=3, folded=True)


def _cite(figures: Figures, point: Point) -> str:
    parts = [_short(figures, point.source)]
    if point.place is not None:
        parts.append(point.place)
    if point.speed_source is not None:
        parts.append(f"speed: {_short(figures, point.speed_source)}")
    return ", ".join(parts)


def _short(figures: Figures, source: str) -> str:
    return figures.sources[source].short


def _throughput(point: Point) -> Cell:
    if point.throughput is None:
        return Cell(UNKNOWN)
    return Cell(f"{point.throughput:g} (batch {point.throughput_batch})")
