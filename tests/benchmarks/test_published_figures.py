"""The published figures: every one has a source, and averages follow from their columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flawline.benchmarks.published import figures
from flawline.benchmarks.published.figures import (
    FILE,
    MVTEC_AD,
    VISA,
    Average,
    Column,
    FiguresError,
    Point,
    Table,
    read_figures,
)

FIGURES = read_figures()
# Averages that do not follow from the categories of the same table: data, method, average, 0 for
# the image and 1 for the pixel AUROC, printed, computed.
DIFFERING = {
    (MVTEC_AD, "PaDiM", "textures", 0, 95.5, 98.8),
    (MVTEC_AD, "PaDiM", "all", 0, 95.8, 96.9),
    (VISA, "DRAEM", "all", 1, 88.8, 93.6),
}


def test_every_figure_has_a_source() -> None:
    used = {point.source for point in FIGURES.points}
    used |= {point.speed_source for point in FIGURES.points if point.speed_source is not None}
    used |= {claim.source for claim in FIGURES.claims}
    used |= {table.source for table in FIGURES.tables}
    used.add(FIGURES.ablations.source)
    assert used == set(FIGURES.sources)
    for source in FIGURES.sources.values():
        assert source.title
        # What cannot be looked up says so.
        assert source.address is not None or "not known" in source.title


def test_no_point_is_there_twice() -> None:
    keys = [(point.method, point.variant, point.data, point.source) for point in FIGURES.points]
    assert len(set(keys)) == len(keys)
    settings = FIGURES.ablations.settings
    assert len({(one.factor, one.setting, one.coreset) for one in settings}) == len(settings)


@pytest.mark.parametrize("point", FIGURES.points, ids=lambda point: f"{point.name} {point.data}")
def test_a_point_is_plausible(point: Point) -> None:
    values = [point.image_auroc, point.pixel_auroc, point.aupro]
    accuracies = [value for value in values if value is not None]
    assert all(50 < value <= 100 for value in accuracies)
    assert (point.data is None) == (not accuracies)
    assert accuracies or point.single_image_fps is not None
    assert point.fps is None or point.latency_ms is None
    # A speed says nothing without its machine, or a note that it is not known.
    timed = point.single_image_fps is not None or point.throughput is not None
    assert not timed or point.gpu is not None or "GPU" in str(point.note)
    assert (point.throughput is None) or point.throughput_batch is not None


@pytest.mark.parametrize("table", FIGURES.tables, ids=lambda table: f"{table.data} {table.place}")
def test_tables_are_complete(table: Table) -> None:
    assert len(table.categories) == {MVTEC_AD: 15, VISA: 12}[table.data]
    assert len({column.name for column in table.columns}) == len(table.columns)
    for pairs in table.categories.values():
        assert len(pairs) == len(table.columns)
    for average in table.averages:
        assert set(average.categories) <= set(table.categories)
        assert len(average.printed) == len(table.columns)
    assert set(table.averages[-1].categories) == set(table.categories)


def test_averages_agree_with_their_columns_or_are_known_to_differ() -> None:
    found = set()
    for table in FIGURES.tables:
        for average in table.averages:
            for number, column in enumerate(table.columns):
                for index in (0, 1):
                    if table.differs(average, number, index):
                        printed = average.printed[number][index]
                        computed = table.recomputed(average)[number][index]
                        assert printed is not None
                        assert computed is not None
                        found.add(
                            (table.data, column.method, average.name, index, printed,
                             round(computed, 1))
                        )  # fmt: skip
    assert found == DIFFERING


def test_a_wrong_average_is_noticed() -> None:
    average = Average("all", ["a", "b"], [(90.0, None)])
    categories = {"a": [(90.0, None)], "b": [(91.5, None)]}
    table = Table("data", "source", None, None, [Column("m", None)], categories, [average])
    assert table.recomputed(average) == [(90.75, None)]
    assert table.differs(average, 0, 0)
    assert not table.differs(average, 0, 1)


def test_fps_follow_from_a_latency() -> None:
    assert Point("m", None, "s", latency_ms=4.0).single_image_fps == 250
    assert Point("m", None, "s", fps=77.0).single_image_fps == 77
    assert Point("m", None, "s").single_image_fps is None


def test_an_unknown_key_is_an_error() -> None:
    point = json.loads(FILE.read_text(encoding="utf-8"))["points"][0]
    with pytest.raises(TypeError, match="gpus"):
        Point(**point, gpus="two")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("points", {}, "points is {}, not a list"),
        ("points", [{"method": "a", "source": "b", "fps": "3"}], "points[0].fps is '3', not of"),
        ("points", [{"method": "a", "source": "b", "speed": 3}], "keyword argument 'speed'"),
        ("tables", [{"data": "a"}], "tables[0].source is missing"),
        ("sources", [], "sources is [], not an object"),
    ],
)
def test_a_damaged_file_is_one_line(
    key: str, value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "figures.json"
    monkeypatch.setattr(figures, "FILE", copy)
    for text in (json.dumps({**json.loads(FILE.read_text()), key: value}), "{"):
        copy.write_text(text)
        with pytest.raises(FiguresError) as raised:
            read_figures.__wrapped__()
        line = str(raised.value)
        assert line.startswith(f"{copy} is damaged (")
        assert line.endswith("); correct it, or install Flawline again")
        assert message in line or text == "{"
        assert "\n" not in line
