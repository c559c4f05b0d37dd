"""The figure of speed against accuracy: everything is in the legend, and nothing overlaps."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from measured_rows import many_rows, row

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("matplotlib", reason="needs the train extra")

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from flawline.benchmarks.evaluate import Row
from flawline.benchmarks.figure import plain_number, speed_and_accuracy, speed_ticks, write_report
from flawline.benchmarks.figure_styles import COLOURS, MARKERS, SIZE, Styles
from flawline.benchmarks.points import Point, panels_of, pareto_front

pytestmark = pytest.mark.torch

SEEDS = [row(bundle=f"bottle-seed-{seed}", fps=70.0 + seed) for seed in range(12)]
PRODUCTS = [row(data=name, bundle=name) for name in ("weave", "metal", "bearing", "board")]
CASES = {
    "one": [row()],
    "one engine": PRODUCTS,
    "equal points": [row(), row(method="padim"), row(method="ssnf")],
    "seeds": SEEDS,
    "one data set": many_rows(20),
    "40 points": many_rows(40),
    "five data sets": [row(data=f"set {i}", method=m) for i in range(5) for m in ("a", "b")],
    "perfect": [row(image_auroc=1.0), row(method="padim", image_auroc=1.0, fps=9000.0)],
    "slow and poor": [row(fps=0.4, image_auroc=0.4), row(method="padim", fps=12000.0)],
    "a long name": [row(data="x" * 150, device="y" * 300)],
}


def drawn(rows: list[Row]) -> Figure:
    figure = speed_and_accuracy(rows)
    FigureCanvasAgg(figure).draw()
    return figure


def boxes_of_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    boxes = []
    for text in figure.findobj(Text):
        # Some hidden texts are part of axes that are not shown.
        if text.get_visible() and text.get_text().strip() and shown(text):
            boxes.append((text.get_text(), text.get_window_extent()))
    return boxes


def shown(text: Text) -> bool:
    axes = text.axes
    if axes is None:
        return True
    if not axes.axison and text not in (axes.title,):
        return False
    for axis, side in ((axes.xaxis, "bottom"), (axes.yaxis, "left")):
        for tick in axis.get_major_ticks():
            if text is tick.label1:
                return bool(axis.get_tick_params()[f"label{side}"])
            if text is tick.label2:
                return False
    return True


def markers_of(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() not in ("None", None, "")]


def boxes_of_markers(figure: Figure) -> list[Bbox]:
    boxes = []
    for axes in figure.axes:
        for line in markers_of(axes):
            radius = line.get_markersize() / 2 * figure.dpi / 72
            ((x, y),) = line.get_transform().transform(line.get_xydata())
            boxes.append(Bbox([[x - radius, y - radius], [x + radius, y + radius]]))
    return boxes


def look_of(line: Line2D) -> tuple[object, ...]:
    filling = (line.get_fillstyle(), line.get_markerfacecolor())
    return (line.get_color(), line.get_marker(), *filling)


def overlap(one: Bbox, other: Bbox) -> bool:
    # Boxes that touch within half a pixel do not overlap.
    return (
        min(one.x1, other.x1) - max(one.x0, other.x0) > 0.5
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 0.5
    )


@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps_another_one_a_marker_or_the_edge(case: str) -> None:
    figure = drawn(CASES[case])
    texts = boxes_of_texts(figure)
    assert len(texts) > 8
    for (name, one), (other_name, other) in itertools.combinations(texts, 2):
        assert not overlap(one, other), f"{name!r} and {other_name!r}"
    for name, box in texts:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, name
        for axes in figure.axes:
            assert not overlap(box, axes.bbox), f"{name!r} is within the axes"
    markers = boxes_of_markers(figure)
    assert len(markers) >= len(CASES[case])
    for box in markers:
        assert any(axes.bbox.containsx(box.x0) for axes in figure.axes)
        for name, text in texts:
            assert not overlap(box, text), f"a marker covers {name!r}"


def test_every_name_is_in_the_legend_once_with_a_look_of_its_own() -> None:
    rows = many_rows(40)
    figure = drawn(rows)
    (legend,) = figure.legends
    texts = [text.get_text().replace("\n", " ").strip() for text in legend.get_texts()]
    for key in ("method", "precision"):
        for name in {each[key] for each in rows}:
            assert texts.count(name) == 1
    for engine in {each["engine"].partition(f" {each['precision']}")[0] for each in rows}:
        assert texts.count(engine) == 1
    assert "timed on a busy machine" in texts
    assert "slowest to fastest repeat" in texts
    looks = {}
    for name, handle in zip(texts, legend.legend_handles, strict=True):
        looks.setdefault(look_of(handle), []).append(name)
    kinds = [{each[key] for each in rows} for key in ("method", "precision")]
    for names in looks.values():
        for kind in kinds:
            assert len(kind & set(names)) <= 1


def test_each_series_of_a_panel_has_a_look_of_its_own() -> None:
    rows = many_rows(40)
    for axes, panel in zip(drawn(rows).axes, panels_of(rows).points.values(), strict=True):
        looks = set()
        for line in markers_of(axes):
            # The ring of a busy machine lies around some points.
            if line.get_markersize() == SIZE:
                looks.add(look_of(line))
        assert len(looks) == len(panel)


def test_more_names_than_colours_and_markers_are_still_distinct() -> None:
    points = []
    for number in range(30):
        points.append(Point(f"g{number}", f"e{number}", "fp32", 9.0, None, None, 99.0, False))
    styles = Styles(points)
    assert len(set(styles.colours.values())) == 30 > len(COLOURS)
    assert len(set(styles.markers.values())) == 30 > len(MARKERS)


def test_bars_go_from_the_slowest_to_the_fastest_repeat() -> None:
    with_bars = drawn([row(fps=80.0, fps_slowest=70.0, fps_fastest=90.0)])
    assert [70.0, 90.0] in [list(line.get_xdata()) for line in with_bars.axes[0].lines]
    without = drawn([row()])
    assert len(without.axes[0].lines) == 1
    (legend,) = without.legends
    assert "slowest to fastest repeat" not in [text.get_text() for text in legend.get_texts()]


def test_a_busy_machine_is_said_in_the_figure() -> None:
    figure = drawn([row(other_processes=0.35)])
    assert "busy machine: other processes used 35% of the CPU" in figure.get_suptitle()
    assert "busy" not in drawn([row()]).get_suptitle()


def test_bundles_of_equal_settings_are_told_apart_by_their_names() -> None:
    (points,) = panels_of(SEEDS).points.values()
    assert len({point.group for point in points}) == len(SEEDS)
    rows = [row(), row(backbone="wide_resnet50_2")]
    (points,) = panels_of(rows).points.values()
    assert [point.group for point in points] == [
        "simplenet, resnet18",
        "simplenet, wide_resnet50_2",
    ]
    # Folders of the same name.
    rows = [row(), row(bundle_id="ba9876543210")]
    (points,) = panels_of(rows).points.values()
    assert len({point.group for point in points}) == 2
    (points,) = panels_of([row(unfinished="1 of 9 steps")]).points.values()
    assert points[0].group == "simplenet (training cut short)"


def test_means_are_drawn_only_where_all_data_sets_have_the_same_series() -> None:
    rows = [row(fps=20.0, image_auroc=0.9), row(method="ssnf")]
    others = [row(fps=60.0, image_auroc=0.8, data="tile"), row(method="ssnf", data="tile")]
    panels = panels_of(rows + others).points
    assert list(panels) == ["mean of 2 data sets", "bottle", "tile"]
    mean = panels["mean of 2 data sets"][0]
    # 50 ms and 16.7 ms per frame
    assert mean.fps == pytest.approx(30)
    assert mean.auroc == pytest.approx(85)
    assert list(panels_of([*rows, others[0]]).points) == ["bottle", "tile"]


def test_a_single_engine_on_several_data_sets_has_one_panel() -> None:
    panels = panels_of(PRODUCTS)
    assert panels.groups == "data set"
    assert list(panels.points) == ["simplenet"]
    assert [point.group for point in panels.points["simplenet"]] == [
        "weave",
        "metal",
        "bearing",
        "board",
    ]


def test_the_pareto_front_holds_what_nothing_exceeds() -> None:
    def point(fps: float, auroc: float) -> Point:
        return Point("g", "e", "fp32", fps, None, None, auroc, False)

    best, fast, dominated, equal = point(10, 99), point(90, 95), point(80, 94), point(10, 98)
    assert pareto_front([dominated, fast, equal, best]) == [best, fast]


@pytest.mark.parametrize(
    ("low", "high"), [(66, 103), (8, 500), (0.3, 15000), (900, 1600), (0.05, 0.09), (55, 3500)]
)
def test_ticks_are_few_round_numbers_within_the_axis(low: float, high: float) -> None:
    ticks = speed_ticks(low, high, width=2.0)
    assert 2 <= len(ticks) <= 5
    assert all(low <= tick <= high for tick in ticks)
    assert all("e" not in plain_number(tick) for tick in ticks)
    assert len({plain_number(tick) for tick in ticks}) == len(ticks)


def test_numbers_have_no_exponent() -> None:
    values = (0.05, 1, 12.5, 100, 20000, 1e6)
    assert [plain_number(value) for value in values] == [
        "0.05",
        "1",
        "12.5",
        "100",
        "20000",
        "1000000",
    ]


def test_the_report_has_four_files(tmp_path: Path) -> None:
    paths = write_report(many_rows(3), tmp_path / "new")
    assert [path.name for path in paths] == [
        "run.json",
        "run.md",
        "fps-auroc.png",
        "fps-auroc.svg",
    ]
    assert all(path.stat().st_size > 100 for path in paths)
