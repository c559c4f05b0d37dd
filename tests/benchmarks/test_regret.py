"""The study of the regret: what it reads of a sweep, and what it says about the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares
from conftest import write_tiny_bundle

from flawline.benchmarks.studies.regret import __main__ as study
from flawline.benchmarks.studies.regret import measure
from flawline.benchmarks.studies.regret.report import page, regrets
from flawline.train.anomalies.kinds import KINDS
from flawline.train.data import hold_out, open_data
from flawline.train.data.split import content_hashes, samples_hash
from flawline.train.method import resolve_method

pytestmark = pytest.mark.torch


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares", {"train/good": 10, "test/good": 1, "test/square": 1})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two bundles with the same graph, and rows that differ in accuracy."""
    folder = tmp_path / "sweep"
    (folder / "measured").mkdir(parents=True)
    for method, auroc in (("padim", 0.9), ("ssnf", 0.95)):
        cell = f"{method}-resnet18-squares-0"
        bundle = write_tiny_bundle(folder / "trained" / cell, method=method)
        rows = []
        for precision, value in (("bf16", 0.1), ("fp32", auroc)):
            row = {"cell": cell, "data": "squares", "seed": 0, "method": method}
            row["bundle_id"] = bundle.short_id
            rows.append(
                {**row, "backbone": "resnet18", "precision": precision, "image_auroc": value}
            )
        # An engine that refuses the bundle has no accuracy.
        rows.insert(0, {"cell": cell, "precision": "fp32", "status": "refused", "data": "squares"})
        (folder / "measured" / f"{cell}.json").write_text(json.dumps(rows))
    return folder


def test_the_bundles_of_a_sweep_get_their_criterion_once(
    sweep: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--sweep", str(sweep), "--data", str(data), "--out", str(tmp_path / "page")]
    assert study.main(words) == 0
    first = (tmp_path / "page.json").read_text()
    rows = {row["method"]: row for row in json.loads(first)}
    assert rows["padim"]["image_auroc"] == 0.9
    assert rows["ssnf"]["not_counted"] == ["blend"]
    # Their scores are equal, and so is the criterion, although a kind counts for one of them only.
    assert rows["padim"]["aurocs"] == rows["ssnf"]["aurocs"]
    assert rows["padim"]["criterion"] == rows["ssnf"]["criterion"]

    def fail(*_: Any) -> Any:
        raise AssertionError("scored already")

    monkeypatch.setattr(measure, "score_trial_set", fail)
    assert study.main(words) == 0
    assert (tmp_path / "page.json").read_text() == first


def test_bundles_that_learnt_the_held_out_images_are_refused(
    sweep: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, held_out = hold_out(open_data(data).train_good)
    known = tuple(sorted(content_hashes(held_out)))
    write_tiny_bundle(
        sweep / "trained" / "padim-resnet18-squares-0", method="padim", trained_images=known
    )
    assert study.main(["--sweep", str(sweep), "--data", str(data)]) == 2
    assert "2 of 2 held-out images were trained on" in capsys.readouterr().err


def test_damaged_scores_are_an_error(
    sweep: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep / "regret" / "padim-resnet18-squares-0.json"
    path.parent.mkdir()
    path.write_text("{")
    assert study.main(["--sweep", str(sweep), "--data", str(data)]) == 2
    assert f"{path} is damaged (" in capsys.readouterr().err
    path.write_text('{"good": [0.1], "anomalies": {"patch": [0.5]}}')
    assert study.main(["--sweep", str(sweep), "--data", str(data)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{path} is damaged (anomalies.patch is [0.5], not an object); delete it" in line


def change_rows(sweep: Path, **changes: object) -> Path:
    """Change the rows of one cell, and return their file."""
    path = sweep / "measured" / "padim-resnet18-squares-0.json"
    path.write_text(json.dumps([row | changes for row in json.loads(path.read_text())]))
    return path


def test_rows_of_another_bundle_or_of_other_test_images_are_refused(
    sweep: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sweep", str(sweep), "--data", str(data), "--out", str(sweep / "page")]
    known = change_rows(sweep).read_text()
    change_rows(sweep, bundle_id="0123456789ab")
    assert study.main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the accuracy of padim-resnet18-squares-0 is that of another bundle" in line
    assert line.endswith("measure it again with flawline sweep")
    change_rows(sweep).write_text(known)
    change_rows(sweep, test_sha256=samples_hash(open_data(data)))
    assert study.main(words) == 0
    change_rows(sweep, test_sha256="other")
    assert study.main(words) == 2
    assert "was measured on other test images than those of" in capsys.readouterr().err


def test_rows_with_wrong_types_are_one_line(
    sweep: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in (("seed", "0"), ("image_auroc", "0.9"), ("cell", 3), ("bundle_id", None)):
        known = change_rows(sweep).read_text()
        path = change_rows(sweep, **{key: value})
        assert study.main(["--sweep", str(sweep), "--data", str(data)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"{path} is damaged (" in line
        assert f"{key} is {value!r}" in line
        path.write_text(known)


def test_held_out_copies_leave_nothing_to_rank_with(
    sweep: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = sorted((data / "train/good").iterdir())
    for path in others:
        path.write_bytes(first.read_bytes())
    assert study.main(["--sweep", str(sweep), "--data", str(data)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "every held-out image is a copy of a training image" in line


def test_scores_of_other_held_out_images_or_versions_are_made_again(
    sweep: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--sweep", str(sweep), "--data", str(data), "--out", str(tmp_path / "page")]
    scored = []
    score = measure.score_trial_set

    def count(*arguments: Any) -> Any:
        scored.append(arguments)
        return score(*arguments)

    monkeypatch.setattr(measure, "score_trial_set", count)
    assert study.main(words) == 0
    _, (held_out, *_rest) = hold_out(open_data(data).train_good)
    # Its pixels stay the same.
    held_out.write_bytes(held_out.read_bytes() + b"1")
    assert study.main(words) == 0
    assert len(scored) == 4
    monkeypatch.setattr(measure, "versions", lambda: {"flawline": "99"})
    assert study.main(words) == 0
    assert len(scored) == 6


def test_the_current_folder_has_the_name_of_its_data_set(
    sweep: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    assert study.main(["--sweep", str(sweep), "--data", ".", "--out", str(tmp_path / "page")]) == 0
    rows = json.loads((tmp_path / "page.json").read_text())
    assert {row["data"] for row in rows} == {"squares"}


def test_detectors_that_were_trained_against_every_kind_are_one_line(
    sweep: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("padim", "ssnf"):
        monkeypatch.setattr(resolve_method(method), "trains_against", tuple(KINDS))
    assert study.main(["--sweep", str(sweep), "--data", str(data)]) == 2
    assert "every detector was trained against all kinds" in capsys.readouterr().err


def test_data_without_rows_is_an_error(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(["--sweep", str(sweep), "--data", str(tmp_path / "other")]) == 2
    assert "has no rows of other in measured/; measure it first" in capsys.readouterr().err


def test_the_regret_is_the_best_minus_the_chosen() -> None:
    rows = []
    for data, criterion, auroc in (("a", 0.7, 0.90), ("a", 0.6, 0.95), ("b", 0.8, 0.99)):
        row = {"data": data, "seed": 0, "method": f"m{criterion}", "backbone": ""}
        rows.append({**row, "criterion": criterion, "image_auroc": auroc, "not_counted": []})
    summary = regrets(rows)
    assert [one["regret"] for one in summary] == [0.05, 0.0]
    assert summary[0]["chosen"] == "m0.7"
    assert summary[0]["best"] == "m0.6"
    assert "Mean regret in image AUROC: 0.0250" in page(rows)
