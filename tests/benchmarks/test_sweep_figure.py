"""The figures of a sweep: every detector has a name beside it that covers no other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from sweep_rows import METHODS, many_measured, measured_row, write_sweep

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("matplotlib", reason="needs the train extra")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from flawline.benchmarks.label_places import Label, draw_column, draw_labels
from flawline.benchmarks.published.figures import MVTEC_AD, read_figures
from flawline.benchmarks.sweep.report.figure import figure_with_published, main_figure
from flawline.benchmarks.sweep.report.points import panels_of
from flawline.benchmarks.sweep.report.published_panels import speed_points, ticks_without_speed
from flawline.benchmarks.sweep.report.results import machines_of
from flawline.benchmarks.sweep.report.rows import read_sweep
from flawline.benchmarks.sweep.store import Store

pytestmark = pytest.mark.torch


def boxes(axes: Axes) -> dict[str, Bbox]:
    """The names written into axes, with their boxes in pixels."""
    found = {}
    for text in axes.texts:
        assert isinstance(text, Text)
        found[text.get_text()] = text.get_window_extent()
    return found


def overlaps(one: Bbox, other: Bbox) -> bool:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    # The boxes of texts have some room at their edges.
    return width > 1 and height > 2


def test_every_detector_has_a_name_and_no_two_overlap(tmp_path: Path) -> None:
    (machine,) = machines_of(read_sweep(Store(write_sweep(tmp_path, many_measured()))))
    figure = figure_with_published(machine)
    assert figure is not None
    upper, *published = figure.findobj(Axes)
    assert set(boxes(upper)) == set(METHODS)
    assert len(published) == 2
    for axes in (upper, *published):
        for (name, one), (other_name, other) in itertools.combinations(boxes(axes).items(), 2):
            assert not overlaps(one, other), f"{name} and {other_name}"
        for name, box in boxes(axes).items():
            assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1, name


def test_a_machine_without_speeds_has_no_figure(tmp_path: Path) -> None:
    rows = [measured_row(fps=None, fps_slowest=None, fps_fastest=None)]
    (machine,) = machines_of(read_sweep(Store(write_sweep(tmp_path, rows))))
    assert main_figure(machine) is None


def test_published_methods_are_points_or_ticks_and_never_both() -> None:
    figures = read_figures()
    points = speed_points(figures, MVTEC_AD)
    ticks = ticks_without_speed(figures, points)
    assert {point.method for point in points} >= {"SimpleNet", "EfficientAD-M", "SuperSimpleNet"}
    texts = [tick.text for tick in ticks]
    assert "PaDiM 96.9 (printed: 95.8)" in texts
    assert not any(text.startswith("SimpleNet") for text in texts)


def test_crowded_labels_keep_apart() -> None:
    figure = Figure((4, 4))
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    labels = [Label(f"detector {i}", 5 + 0.05 * i, 5 - 0.04 * i) for i in range(8)]
    draw_labels(axes, labels, [(label.x, label.y) for label in labels], 8, 8)
    found = list(boxes(axes).values())
    assert len(found) == 8
    assert not any(overlaps(*pair) for pair in itertools.combinations(found, 2))


def test_a_column_keeps_the_order_and_the_heights_that_fit() -> None:
    figure = Figure((4, 4))
    axes = figure.subplots()
    axes.set_ylim(0, 10)
    heights = {"alone": 9.0, "first": 4.0, "second": 4.01, "third": 4.02}
    draw_column(axes, [Label(text, 0.0, y) for text, y in heights.items()], 0.1, 8)
    places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert places["alone"] == pytest.approx(9.0)
    assert places["first"] < places["second"] < places["third"]
    assert places["second"] == pytest.approx(4.01, abs=0.01)
    found = [boxes(axes)[name] for name in ("first", "second", "third")]
    assert not any(overlaps(*pair) for pair in itertools.combinations(found, 2))


def test_a_figure_says_what_it_leaves_out(tmp_path: Path) -> None:
    rows = many_measured()
    last = rows.pop()
    rows[0] |= {"fps": None}
    (machine,) = machines_of(read_sweep(Store(write_sweep(tmp_path, rows))))
    for figure in (main_figure(machine), figure_with_published(machine)):
        assert figure is not None
        written = [" ".join(text.get_text().split()) for text in figure.findobj(Text)]
        (remark,) = [text for text in written if "not measured on all of these data sets" in text]
        assert last["method"] in remark
    panels = {panel.title: panel for panel in panels_of(machine)}
    remark = panels[rows[0]["data"]].remark or ""
    assert remark.startswith(f"{rows[0]['data']}: no speed or no image AUROC of ")
    assert rows[0]["method"] in remark
    assert panels[last["data"]].remark is None
