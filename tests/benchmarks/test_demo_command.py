"""The demo command: its steps on a small data set, and its failures in one line."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import cv2
import pytest
from conftest import write_tiny_bundle
from score_bundles import write_score_bundle

from flawline.benchmarks import demo
from flawline.train.data import demo as demo_data


def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo render 16 images of one product instead of 680 of four."""
    small = functools.partial(
        demo_data.write_demo,
        products=["bearing"],
        train_good=8,
        test_good=2,
        per_defect=1,
        size=96,
    )
    monkeypatch.setattr(demo_data, "write_demo", small)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.torch
def test_every_step_runs_and_leaves_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    small_demo(monkeypatch)
    flags = ["--products", "bearing", "--steps", "2", "--weights", "random"]
    assert demo.main(["--out", str(tmp_path), *flags]) == 0
    output = capsys.readouterr()
    for step in ("flawline build --method simplenet", "flawline stream --bundle"):
        assert step in output.err
    kinds = len(demo_data.PRODUCTS["bearing"].defects)
    summary = rf"bearing    image AUROC .*  false alarms \d of 2  missed defects \d of {kinds}  "
    assert re.search(summary, output.err)
    assert "random weights do not find the defects" in output.err
    *_, summary = output.out.splitlines()
    images = 2 + len(demo_data.PRODUCTS["bearing"].defects)
    assert json.loads(summary)["summary"]["frames"] == images
    for name in ("run.json", "run.md", "fps-auroc.png", "fps-auroc.svg"):
        assert (tmp_path / name).stat().st_size > 100
    assert cv2.imread(str(tmp_path / "demo.png")).shape[1] > 1000


@pytest.mark.torch
def test_the_figure_shows_a_bundle_without_maps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the train extra")
    from flawline.benchmarks.demo_figure import draw_verdicts

    demo_data.write_demo(
        tmp_path / "data", ["metal"], train_good=5, test_good=1, per_defect=1, size=64
    )
    write_score_bundle(tmp_path / "bundles" / "metal")
    assert draw_verdicts(tmp_path, ["metal"]).stat().st_size > 1000


def test_a_folder_with_other_demo_data_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm", reason="needs the train extra")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo.json").write_text("{}")
    assert demo.main(["--out", str(tmp_path)]) == 2
    message = last_line(capsys)
    assert message.startswith("flawline demo: ")
    assert "holds another demo set" in message


@pytest.mark.torch
def test_a_failed_step_ends_the_demo_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    small_demo(monkeypatch)
    flags = ["--products", "bearing", "--weights", str(tmp_path / "missing.pth")]
    assert demo.main(["--out", str(tmp_path), *flags]) == 2
    assert last_line(capsys) == "flawline demo: flawline build failed; see the message above"


@pytest.mark.torch
@pytest.mark.parametrize("broken", ["bundle", "data"])
def test_an_error_between_the_steps_is_one_line(
    broken: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The steps are replaced by ones that do nothing, so that the measurement fails."""
    pytest.importorskip("torch", reason="needs the train extra")
    from flawline.export import build
    from flawline.runtime import infer_stream

    small_demo(monkeypatch)
    monkeypatch.setattr(build, "main", lambda words: 0)
    monkeypatch.setattr(infer_stream, "main", lambda words: 0)
    if broken == "data":
        monkeypatch.setattr(demo_data, "write_demo", lambda folder, progress: folder)
        write_tiny_bundle(tmp_path / "bundles" / "bearing")
    assert demo.main(["--out", str(tmp_path), "--products", "bearing"]) == 2
    folder = tmp_path / ("data" if broken == "data" else "bundles") / "bearing"
    message = last_line(capsys)
    assert message.startswith("flawline demo: ")
    assert str(folder) in message
