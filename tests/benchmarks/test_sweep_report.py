"""The report of a sweep states what the rows of its folder say, and nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sweep_rows import (
    DEVICE,
    many_measured,
    measured_row,
    robustness_rows,
    speed_row,
    write_sweep,
)

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("matplotlib", reason="needs the train extra")

from matplotlib.figure import Figure

from flawline.benchmarks.sweep.__main__ import main
from flawline.benchmarks.sweep.report import page as page_file
from flawline.benchmarks.sweep.report.categories import category_of
from flawline.benchmarks.sweep.report.page import write_report
from flawline.benchmarks.sweep.report.points import mean_panel, panels_of
from flawline.benchmarks.sweep.report.results import Machine, machines_of
from flawline.benchmarks.sweep.report.rows import read_sweep
from flawline.benchmarks.sweep.store import Store, SweepError

pytestmark = pytest.mark.torch

FIGURES = ("main_figure", "figure_with_published", "data_sets_figure")

EXTERNAL = re.compile(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?\s*(?:https?:)?//""")


@pytest.fixture(autouse=True)
def _empty_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds: only the tests that ask for `drawn` need it."""
    if "drawn" not in request.fixturenames:
        for name in FIGURES:
            monkeypatch.setattr(page_file, name, lambda machine: Figure((1, 1)))
        monkeypatch.setattr(page_file, "published_figure", lambda: Figure((1, 1)))


@pytest.fixture
def drawn() -> None:
    """The figures are drawn."""


class Page(HTMLParser):
    """The headings of a page and the cells of the tables below each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.title = ""
        self.headings: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "h3", "summary"):
            self.headings.append("")
        elif tag == "table":
            self.tables[self.headings[-1]] = []
        elif tag == "tr":
            self.tables[self.headings[-1]].append([])
        elif tag in ("td", "th"):
            self.tables[self.headings[-1]][-1].append("")
        self._tag = tag

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("h2", "h3", "summary"):
            self.headings[-1] += data
        elif self._tag in ("td", "th"):
            self.tables[self.headings[-1]][-1][-1] += data

    def row(self, table: str, name: str) -> dict[str, str]:
        header, *rows = self.tables[table]
        (found,) = [row for row in rows if row[0] == name]
        return dict(zip(header, found, strict=True))


def page_of(folder: Path, *rows: Any, **others: Any) -> Page:
    write_report(write_sweep(folder, rows, **others), pictures=False)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def machine_of(folder: Path, *rows: Any, **others: Any) -> Machine:
    (machine,) = machines_of(read_sweep(Store(write_sweep(folder, rows, **others))))
    return machine


def test_numbers_are_those_of_the_rows(tmp_path: Path) -> None:
    second = measured_row(cell="simplenet-resnet18-mvtec_bottle-1", seed=1, image_auroc=0.96)
    page = page_of(tmp_path, measured_row(), second)
    row = page.row("Accuracy and decisions: mvtec_bottle", "simplenet")
    assert row["image AUROC"] == "0.9550 ± 0.0071"
    assert row["false alarms"] == "2\u202f% (0.4 to 5.9)"
    assert row["recall"] == "58.8\u202f% (53.1 to 64.3)"
    assert row["PG2"] == "0.410 ± 0.000"
    assert row["minutes to bundle"] == "3.4"
    areas = page.row("Recall by defect area: mvtec_bottle", "simplenet")
    assert areas["0 to 63 px"] == "18 of 40"
    engines = page.row("Every engine: mvtec_bottle", "simplenet")
    assert engines["FPS"] == "80"
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "0.9550 ± 0.0071" in markdown
    assert "18 of 40" in markdown


def test_speed_is_that_of_the_bundles_in_turns(tmp_path: Path) -> None:
    slow = measured_row(fps=10.0)
    page = page_of(tmp_path, slow, speed=[speed_row(engine_fps=125.0, engine_p50_ms=8.0)])
    assert page.row("Every engine: mvtec_bottle", "simplenet")["FPS"] == "125"
    stages = page.row("Time per stage: mvtec_bottle", "simplenet")
    assert (stages["decode, ms"], stages["prepare, ms"], stages["engine, ms"]) == ("4", "1.5", "8")
    assert stages["sum, ms"] == "13.5"


def test_drift_and_flips_of_each_engine(tmp_path: Path) -> None:
    int8 = measured_row(
        engine="openvino 2026.4.1 CPU int8", precision="int8", image_auroc=0.94, flips=7,
        clear_flips=2, drift=0.4123, speedup=4.5,
    )  # fmt: skip
    page = page_of(tmp_path, measured_row(), int8)
    row = page.row("What engines and precisions change", "openvino 2026.4.1 CPU int8")
    assert row["flips"] == "7 of 460"
    assert row["clear flips"] == "2"
    assert row["largest drift"] == "0.412"
    assert row["largest loss"] == "-0.0100 (simplenet, mvtec_bottle)"
    assert row["median speed-up"] == "4.50"


@pytest.mark.usefixtures("drawn")
def test_nothing_external_is_loaded_or_run(tmp_path: Path) -> None:
    page_of(tmp_path, measured_row())
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/svg+xml;base64,") == 2
    assert (tmp_path / "fps_vs_auroc.svg").stat().st_size > 50_000
    assert not EXTERNAL.search(text)
    assert "<script" not in text
    assert "default-src 'none'" in text


def test_rows_of_two_machines_are_in_two_sections(tmp_path: Path) -> None:
    """Neither a figure nor a table has results of both."""
    other = measured_row(device="Another CPU", method="patchcore", cell="patchcore-a-b-0")
    page = page_of(
        tmp_path, measured_row(), measured_row(method="padim", cell="padim-a-b-0"), other
    )
    assert page.headings.index(DEVICE) < page.headings.index("Another CPU")
    machines = machines_of(read_sweep(Store(tmp_path)))
    assert [machine.names for machine in machines] == [["padim", "simplenet"], ["patchcore"]]
    assert (tmp_path / "fps_vs_auroc-machine-2.png").exists()


def test_other_versions_are_another_machine(tmp_path: Path) -> None:
    newer = measured_row(versions={"flawline": "0.2.0"}, method="padim", cell="padim-a-b-0")
    sweep = read_sweep(Store(write_sweep(tmp_path, [measured_row(), newer])))
    assert len(machines_of(sweep)) == 2


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    nothing = dict.fromkeys(
        ("pixel_auroc", "aupro", "seg_f1", "recall_by_area", "pg2", "pb2", "recall_interval")
    )
    reasons = {"seg_f1": "the data set has no masks"}
    page = page_of(tmp_path, measured_row(**nothing, reasons=reasons, data="part"))
    header = page.tables["Accuracy and decisions: part"][0]
    assert header == ["detector", "image AUROC", "false alarms", "recall", "minutes to bundle"]
    for part in ("Recall by defect area", "Time per stage", "Changed images", "Worst errors"):
        assert not any(heading.startswith(part) for heading in page.headings)
    assert "What engines and precisions change" not in page.headings
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not known: SegF1 (the data set has no masks)." in text


def test_names_are_escaped(tmp_path: Path) -> None:
    failed = {"cell": "intra-none-part-0", "status": "failed", "reason": "<b>killed</b> & gone"}
    page = page_of(tmp_path, measured_row(data="<i>part</i>"), trained=[failed])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<i>" not in text
    assert "<b>killed" not in text
    assert page.row("Without a result: 1", "intra-none-part-0")["reason"] == failed["reason"]


def test_a_training_that_was_interrupted_is_listed(tmp_path: Path) -> None:
    begun = {"cell": "intra-none-part-0", "status": "begun"}
    page = page_of(tmp_path, measured_row(), trained=[begun])
    row = page.row("Without a result: 1", "intra-none-part-0")
    assert (row["step"], row["reason"]) == ("training", "begun and not finished")


def test_an_engine_that_refused_a_bundle_is_listed_once(tmp_path: Path) -> None:
    refused = {
        "cell": "simplenet-resnet18-mvtec_bottle-0", "data": "mvtec_bottle", "status": "refused",
        "engine": "openvino", "precision": "int8", "reason": "no int8 graph",
    }  # fmt: skip
    page = page_of(tmp_path, measured_row(), refused, speed=[speed_row(), refused])
    row = page.row("Without a result: 1", refused["cell"])
    assert (row["step"], row["reason"]) == ("openvino int8", "no int8 graph")


def test_categories_stand_beside_the_published_values(tmp_path: Path) -> None:
    page = page_of(tmp_path, measured_row(), measured_row(data="own part", cell="simplenet-x-0"))
    table = "Categories of MVTec AD, ours and published"
    assert page.row(table, "simplenet (ours)")["mvtec_bottle"] == "95.0/97.5"
    published = page.row(table, "PaDiM, SimpleNet reproduction report")
    assert published["mvtec_bottle"] == "99.1/98.3"
    alone = page.row("Image / pixel AUROC per data set", "simplenet")
    assert alone == {"detector": "simplenet", "own part": "95.0/97.5"}


@pytest.mark.parametrize(
    ("name", "category"),
    [("mvtec_bottle", "bottle"), ("Metal-Nut", "metal_nut"), ("visa_candles", "candle"),
     ("elpv_mono", "elpv_mono")],
)  # fmt: skip
def test_the_category_is_that_of_the_folder(name: str, category: str) -> None:
    assert category_of(name) == category


def test_robustness_is_that_of_each_change(tmp_path: Path) -> None:
    page = page_of(tmp_path, measured_row(), robustness=robustness_rows())
    accuracy = page.row("Changed images, image AUROC: mvtec_bottle", "simplenet")
    assert accuracy["unchanged"] == "0.9500"
    assert accuracy["gain 0.7"] == "0.9100"
    alarms = page.row("Changed images, false alarms: mvtec_bottle", "simplenet")
    assert alarms["gain 0.7"] == "12\u202f%"


def test_the_mean_is_that_of_data_sets_without_tuning(tmp_path: Path) -> None:
    machine = machine_of(tmp_path, *many_measured())
    panel = mean_panel(machine)
    assert panel is not None
    assert "mvtec_bottle" in panel.title
    assert "elpv_mono" not in panel.title
    (point,) = [p for p in panel.points if (p.group, p.precision) == ("simplenet", "fp32")]
    assert point.auroc == pytest.approx(100 * (0.9996 + 0.861) / 2)
    marked = [panel for panel in panels_of(machine) if panel.title == "elpv_mono"]
    names = {point.group for point in marked[0].points}
    assert {"simplenet*", "riad"} <= names


def test_a_detector_that_lacks_a_data_set_has_no_mean(tmp_path: Path) -> None:
    rows = many_measured()
    kept = [row for row in rows if (row["method"], row["data"]) != ("glass", "magnetic_tile")]
    panel = mean_panel(machine_of(tmp_path, *kept))
    assert panel is not None
    assert "glass" not in {point.group for point in panel.points}
    assert "glass" in str(panel.remark)


def test_seeds_have_a_range(tmp_path: Path) -> None:
    machine = machine_of(tmp_path, *many_measured((0, 1)))
    panel = mean_panel(machine)
    assert panel is not None
    (point,) = [p for p in panel.points if (p.group, p.precision) == ("padim", "fp32")]
    highest = 100 * (0.996 + 0.882) / 2
    assert point.highest == pytest.approx(highest)
    assert point.lowest == pytest.approx(highest - 0.2)


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="run flawline sweep"):
        write_report(tmp_path)


def test_the_plan_has_names_and_no_folders(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [measured_row()])
    plan = {"data": ["/a/parts"], "weights": "/a/b/net.pth", "seeds": [0]}
    (folder / "plan.json").write_text(json.dumps(plan))
    write_report(folder)
    page = (folder / "report.md").read_text()
    assert "- data: parts" in page
    assert "- weights: net.pth" in page
    assert "/a/" not in page


def test_the_report_alone_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "sweep", [measured_row()])
    assert main(["--out", str(folder), "--report-only"]) == 0
    assert (folder / "report.html").is_file()
    assert main(["--out", str(tmp_path / "other"), "--report-only"]) == 2
    assert "is no folder of a sweep" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
