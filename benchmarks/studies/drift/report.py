"""The page of the drift study: what is named, false warnings, and the time of a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.drift.measure import ALLOWED, BEFORE, REQUIRED
from flawline.benchmarks.studies.results import column, rows_with, stated
from flawline.benchmarks.tables import markdown_table
from flawline.runtime.drift.quantities import POSITION, PRODUCT
from flawline.runtime.json_shapes import Shape

Row = Mapping[str, Any]
ROW: Shape = {"part": str, "device": str, "versions": {str: str}, "command": str}
# What tells two rows of a part apart.
KEYS = {
    "good": ("data",),
    "change": ("data", "change", "strength"),
    "blocks": ("data",),
    "simulation": ("process", "good_images"),
    "time": (),
}


def add_rows(rows: Sequence[Row], new: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows with further ones, which replace those of the same measurement."""
    known = {_key(row) for row in new}
    kept = [row for row in rows if _key(row) not in known]
    return [dict(row) for row in (*kept, *new)]


def _key(row: Row) -> tuple[str, ...]:
    return (str(row["part"]), *(str(row[key]) for key in KEYS[str(row["part"])]))


def drift_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown."""
    parts = []
    changes = rows_with(rows, "part", "change")
    if changes:
        parts += _changes(changes)
    good = rows_with(rows, "part", "good")
    if good:
        parts += _good(good)
    blocks = rows_with(rows, "part", "blocks")
    if blocks:
        parts += _blocks(blocks)
    simulated = rows_with(rows, "part", "simulation")
    if simulated:
        parts += _simulated(simulated)
    for row in rows_with(rows, "part", "time"):
        parts.append(_time(row))
    parts.append(f"{stated(rows, _machine, lambda row: str(row['part']))}.")
    commands = dict.fromkeys(column(rows, "command"))
    parts.append(" ".join(f"`{command}`" for command in commands))
    return "\n\n".join(parts)


def _machine(row: Row) -> str:
    return f"Machine {row['device']}"


def _changes(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(column(rows, "data")))
    table = []
    for change, strength in _kinds(rows):
        cells = [_title(change, strength)]
        for name in names:
            found = [row for row in rows if row["data"] == name and _is(row, change, strength)]
            cells.append(_cell(found[0]) if found else "")
        table.append(cells)
    table.append(["another product", *(_products(rows, name) for name in names)])
    streams = max(column(rows, "streams"))
    return [
        markdown_table(["change", *names], table),
        f"Of {streams} streams, those in which the change is named rightly within {ALLOWED} "
        f"frames, and the median and the largest number of frames that it took; half of the "
        f"streams begin with {BEFORE} good frames. Other warnings of the same streams are in "
        f"brackets. The first {len(REQUIRED)} lines are the changes that a stream must name. Of "
        f"a product whose good images do not show the same at the same place, no position is "
        f"watched. Another product: each of the other columns in turn, and those that are not "
        f"named in each stream.",
    ]


def _kinds(rows: Sequence[Row]) -> list[tuple[str, float]]:
    kinds = [(row["change"], row["strength"]) for row in rows if row["strength"] is not None]
    return list(dict.fromkeys(kinds))


def _is(row: Row, change: str, strength: float) -> bool:
    return bool(row["change"] == change and row["strength"] == strength)


def _title(change: str, strength: float) -> str:
    return f"{change} {strength:g}"


def _cell(row: Row) -> str:
    if row["cause"] == POSITION and not row["position"]:
        text = "not watched"
    elif row["named"] == 0:
        text = "0"
    else:
        middle, most = row["frames"]
        text = f"{row['named']}: {middle} / {most}"
    return text + _others(row["others"])


def _others(others: Mapping[str, int]) -> str:
    listed = ", ".join(f"{name} {count}" for name, count in others.items())
    return f" ({listed})" if others else ""


def _products(rows: Sequence[Row], name: str) -> str:
    found = [row for row in rows if row["data"] == name and row["cause"] == PRODUCT]
    if not found:
        return ""
    missed = []
    for row in found:
        if row["named"] < row["streams"] or row["others"]:
            missed.append(f"{row['change']} {row['named']}{_others(row['others'])}")
    waits = [row["frames"][1] for row in found if row["frames"]]
    text = f"{len(found) - len(missed)} of {len(found)}"
    if waits:
        text += f": at most {max(waits)}"
    return f"{text}; {'; '.join(missed)}" if missed else text


def _good(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        least = min(row["independent"].items(), key=lambda item: item[1])
        cells.append(
            [
                row["data"],
                f"{row['good_images']} and {row['good_scores']}",
                f"{least[1]} ({least[0]})" if least[1] < row["good_images"] else "all",
                "yes" if row["position"] else "no",
                str(row["frames"]),
                str(row["different"]),
                ", ".join(f"{name} {count}" for name, count in row["warnings"].items()) or "none",
            ]
        )
    titles = (
        "data",
        "good images and scores",
        "independent",
        "position",
        "good frames",
        "different",
        "warnings",
    )
    facts = stated(rows, lambda row: f"{row['method']}, {row['engine']}", lambda row: row["data"])
    return [
        markdown_table(titles, cells),
        f"Warnings without a change. Independent: how many of the good images count, of the "
        f"quantity whose values depend most on those before them in the order of the files. "
        f"Detector: {facts}, seed {rows[0]['seed']}.",
    ]


def _blocks(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        found = ", ".join(f"{name} {count}" for name, count in row["warnings"].items())
        cells.append([row["data"], str(row["images"]), str(row["frames"]), found or "none"])
    return [
        markdown_table(("data", "good images", "frames", "warnings"), cells),
        f"The same in the order of the files: each of {rows[0]['parts']} parts of the good images "
        f"of the training is compared with the others, in blocks of {rows[0]['block']} that follow "
        f"each other, without scores.",
    ]


def _simulated(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        cells.append(
            [
                row["process"],
                str(row["good_images"]),
                f"{row['warnings']} in {row['frames']} frames",
                f"{row['streams_with_warning']} of {row['streams']}",
                f"{100 * row['share_on']:.2f} %",
            ]
        )
    titles = ("process", "good images", "warnings", "streams with one", "frames with one")
    return [
        markdown_table(titles, cells),
        f"Simulated streams of {rows[0]['quantities']} quantities, each a stationary process of "
        f"its own with a standard normal distribution where nothing else is said, of which the "
        f"good images are independent draws. No change is too small to matter.",
    ]


def _time(row: Row) -> str:
    return (
        f"CPU time of a frame of 640x480 on one thread, medians: what is read of the prepared "
        f"input of 256x256 takes {row['read_placed_us']:.0f} microseconds where position is "
        f"watched, {row['read_texture_us']:.0f} where the texture is; the comparison takes "
        f"{row['add_placed_us']:.0f} and {row['add_texture_us']:.0f}. `prepare()` takes "
        f"{row['prepare_us']:.0f}. Other processes used {100 * row['other_processes']:.0f} % of "
        f"the CPU."
    )
