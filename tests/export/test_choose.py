"""flawline choose: what is trained, how it is ranked, how it continues, and its errors."""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.export import choose
from flawline.export.choosing import cost, engines, store, trained
from flawline.export.choosing.candidates import Candidate, Request, candidates_of
from flawline.export.choosing.engines import Place
from flawline.export.choosing.rank import criteria, kind_aurocs
from flawline.export.choosing.trained import Clock, OutOfTimeError, _preference
from flawline.runtime.engines import engine_class, missing, open_engine
from flawline.train import METHODS
from flawline.train.anomalies.kinds import KINDS
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import PreparedImages
from flawline.train.data.split import content_hashes
from flawline.train.method import resolve_method
from flawline.train.recipe import plan

pytestmark = pytest.mark.torch
TOYS = {
    "fine": "Fine",
    "coarse": "Coarse",
    "pasted": "Pasted",
    "broken": "Broken",
    "untimed": "Untimed",
}
# Milliseconds per frame of the methods, in place of measurements.
TIMES = {"fine": 3.0, "coarse": 2.0, "pasted": 2.0, "broken": 1.0}
# More than the images of a trial, so that a training is not one.
COUNTS = {"train/good": 30, "test/good": 1, "test/square": 1}


class FakeCall:
    """Takes the place of a call of an engine that would be timed."""

    def __init__(self, engine: Any, bundle: Any, frame: Any) -> None:
        self.method = bundle.manifest.method

    def __call__(self) -> None: ...


def fake_medians(calls: Sequence[FakeCall]) -> list[float]:
    return [TIMES[call.method] for call in calls]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in TOYS.items():
        monkeypatch.setitem(METHODS, name, f"toys.choosable:{kind}")
    for module in (cost, trained):
        monkeypatch.setattr(module, "frame_call", FakeCall)
        monkeypatch.setattr(module, "medians_of", fake_medians)
    monkeypatch.setattr(cost, "turn_of", lambda call: [TIMES[call.method]])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Good images with a pattern, and test images that cannot be decoded."""
    folder = write_squares(tmp_path / "data", COUNTS)
    rows, columns = np.mgrid[0:80, 0:90]
    pattern = (60 * np.sin(rows / 5) * np.cos(columns / 7)).astype(np.float32)
    for number, path in enumerate(sorted((folder / "train/good").iterdir())):
        noise = np.random.default_rng(number).normal(120, 4, (80, 90, 3))
        image = (noise + pattern[..., None]).clip(0, 255).astype(np.uint8)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    return folder


def run(data: Path, out: Path, *words: str, budget: str = "5") -> int:
    flags = ["--engine", "onnxruntime", "--precision", "fp32", "--threads", "1"]
    required = ["--data", str(data), "--out", str(out), "--budget-ms", budget]
    return choose.main([*required, *flags, *words])


def result_of(out: Path) -> Any:
    return json.loads((out / "choice.json").read_text())


def test_those_within_the_budget_are_ranked_without_a_test_image(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "coarse", "fine", "pasted", budget="3") == 0
    printed = capsys.readouterr().out
    rows = result_of(out)["rows"]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    by_name = {row["name"]: row for row in rows}
    assert set(by_name) == {"fine-none", "coarse-none", "pasted-none"}
    fine = by_name["fine-none"]
    assert fine["rank"] == 1
    assert fine["criterion"] > by_name["coarse-none"]["criterion"] + 0.05
    assert set(fine["aurocs"]) == set(KINDS)
    assert by_name["pasted-none"]["note"] == "trained on patch and scar, not counted"
    command = shlex.split(printed.splitlines()[-1].split(": ", 1)[1])
    assert command[command.index("--method") + 1] == "fine"
    assert (out / "trained" / "fine-none" / "manifest.json").is_file()


def test_what_is_over_the_budget_is_listed_and_never_trained(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine", "coarse", budget="2.5") == 0
    rows = result_of(out)["rows"]
    assert [(row["name"], row["rank"], row["trained"]) for row in rows] == [
        ("coarse-none", 1, True),
        ("fine-none", None, False),
    ]
    assert not (out / "checkpoints" / "fine-none.pt").exists()


def test_a_second_run_trains_and_scores_nothing_again(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine", "coarse") == 0
    first = capsys.readouterr().out

    def fail(*_: Any) -> Any:
        raise AssertionError("done already")

    monkeypatch.setattr(trained, "train", fail)
    monkeypatch.setattr(trained, "score_trial_set", fail)
    monkeypatch.setattr(cost, "trial_bundle", fail)
    assert run(data, out, "--methods", "fine", "coarse") == 0
    assert capsys.readouterr().out == first


def test_those_that_fail_are_reported_and_the_others_ranked(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "untimed", "broken", "fine") == 0
    result = result_of(out)
    assert [row["name"] for row in result["rows"]] == ["fine-none"]
    assert result["left_out"] == {
        "untimed-none": "it has no fused form; add one",
        "broken-none": "these images do not suit it; take others",
    }


def test_minutes_end_the_trainings_and_the_same_command_continues(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine", "--minutes", "1e-9") == 2
    assert "left out fine-none: --minutes are used up" in capsys.readouterr().err
    assert run(data, out, "--methods", "fine") == 0


def test_a_clock_without_minutes_never_ends() -> None:
    assert Clock(None).remaining() is None
    assert 0 < (Clock(5).remaining() or 0) <= 5
    with pytest.raises(OutOfTimeError):
        Clock(-1).remaining()


def test_a_wrong_number_of_threads_is_refused_before_anything_is_timed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine", "--threads", "0") == 2
    assert "--threads 0 is not at least 1" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "budget", "message"),
    [
        (["--methods", "nosuch"], "5", "--methods nosuch is unknown"),
        (["--methods", "fine", "fine"], "5", "lists a name twice"),
        (["--methods", "fine"], "1", "the fastest is fine-none with onnxruntime fp32 and 3.0 ms"),
        (["--methods", "fine"], "0", "--budget-ms 0 is not above 0"),
        (["--methods", "untimed"], "5", "it has no fused form; add one"),
        (["--methods", "fine", "--precision", "bf16"], "5", "runs none of the precisions bf16"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    budget: str,
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(data, tmp_path / "out", *words, budget=budget) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("flawline choose: ")


def test_a_folder_of_another_request_and_a_damaged_record_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "coarse") == 0
    assert run(data, out, "--methods", "coarse", "--seed", "1") == 2
    assert "is of a run with seed 0, now it is 1" in capsys.readouterr().err
    for text in ("{", "[]", "{}"):
        (out / "cost" / "coarse-none.json").write_text(text)
        assert run(data, out, "--methods", "coarse") == 2
        assert "; delete it and run the command again" in capsys.readouterr().err
    capsys.readouterr()
    (out / "plan.json").write_text("[]")
    assert run(data, out, "--methods", "coarse") == 2
    assert "plan.json is damaged (it is not an object); delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "changes", "message"),
    [
        ("cost", "coarse-none", {"costs": {}}, "costs is {}, not a list"),
        ("cost", "coarse-none", {"costs": [{}]}, "costs[0].engine is missing"),
        ("cost", "coarse-none", {"left_out": []}, "left_out is [], not an object"),
        ("cost", "coarse-none", {"conditions": 1}, "conditions is 1, not an object"),
        ("scores", "coarse-none-onnxruntime-fp32", {"good": "0.1"}, "good is '0.1', not a list"),
        ("scores", "coarse-none-onnxruntime-fp32", {"anomalies": []}, "anomalies is [], not an"),
    ],
)
def test_a_record_with_wrong_types_is_one_line(
    kind: str,
    name: str,
    changes: dict[str, Any],
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "coarse") == 0
    path = out / kind / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    capsys.readouterr()
    assert run(data, out, "--methods", "coarse") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"flawline choose: {path} is damaged ({message}")
    assert last.endswith("; delete it and run the command again")


def test_times_and_scores_are_of_the_installed_versions(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine") == 0
    trial = cost.trial_bundle
    score = trained.score_trial_set
    made = []
    monkeypatch.setattr(cost, "trial_bundle", lambda *a: made.append("cost") or trial(*a))
    monkeypatch.setattr(trained, "score_trial_set", lambda *a: made.append("scores") or score(*a))
    assert run(data, out, "--methods", "fine") == 0
    assert made == []
    monkeypatch.setattr(engine_class("onnxruntime"), "installed", lambda: "99.0")
    assert run(data, out, "--methods", "fine") == 0
    assert made == ["cost", "scores"]
    monkeypatch.setattr(engines, "allowed_cores", lambda: 99)
    assert run(data, out, "--methods", "fine") == 0
    assert made == ["cost", "scores"] * 2
    # A record of a version that did not write them.
    for path in out.glob("*/*.json"):
        record = json.loads(path.read_text())
        del record["conditions"]
        path.write_text(json.dumps(record))
    assert run(data, out, "--methods", "fine") == 0
    assert made == ["cost", "scores"] * 3


@pytest.mark.skipif(missing("openvino") is not None, reason="needs openvino")
def test_engines_of_an_earlier_run_are_not_used(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine", "--engine", "auto", "--precision", "fp32") == 0
    places = {row["place"] for row in result_of(out)["rows"]}
    assert places == {"onnxruntime fp32", "openvino fp32"}
    assert run(data, out, "--methods", "fine") == 0
    assert [row["place"] for row in result_of(out)["rows"]] == ["onnxruntime fp32"]


def test_a_request_that_fails_is_not_that_of_the_next_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_squares(tmp_path / "few", {"train/good": 4})
    out = tmp_path / "out"
    for folder in (few, tmp_path / "nosuch"):
        assert run(folder, out, "--methods", "fine") == 2
    words = ["--methods", "padim", "--backbones", "resnet18"]
    assert run(data, out, *words, "--weights", "nosuch.pth") == 2
    assert "nosuch.pth" in capsys.readouterr().err
    assert not (out / "plan.json").exists()
    assert run(data, out, "--methods", "fine") == 0
    assert (out / "plan.json").exists()


def test_a_folder_that_cannot_be_written_is_reported_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("nothing may be timed")

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cost, "trial_bundle", fail)
    monkeypatch.setattr(store, "make_writable", full)
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine") == 2
    assert f"{out} cannot be written" in capsys.readouterr().err


def test_a_method_without_a_choice_of_backbones_is_one_candidate(tmp_path: Path) -> None:
    request = Request(tmp_path, ("fine", "padim"), ("resnet18", "resnet50"), "random")
    candidates, left_out = candidates_of(request)
    names = [candidate.name for candidate in candidates]
    assert names == ["fine-none", "padim-resnet18", "padim-resnet50"]
    assert not left_out


def test_the_most_exact_precision_that_fits_is_used() -> None:
    exact = _preference(Place("openvino", "fp32"), 9.0)
    fast = _preference(Place("openvino", "bf16"), 2.0)
    other = _preference(Place("onnxruntime", "fp32"), 8.0)
    assert sorted([fast, exact, other]) == [other, exact, fast]


def test_a_graph_that_would_still_be_too_slow_is_not_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="ONNX Runtime has no precision with a graph of its own")

    def fail(*_: Any) -> Any:
        raise AssertionError("this graph is not needed")

    monkeypatch.setattr(cost, "write_graph", fail)
    out = tmp_path / "out"
    words = ("--methods", "fine", "--engine", "openvino", "--precision", "fp32", "int8")
    assert run(data, out, *words, budget="0.5") == 2
    assert "fine-none with openvino fp32 and 3.0 ms" in capsys.readouterr().err
    costs = json.loads((out / "cost" / "fine-none.json").read_text())["costs"]
    assert [(one["precision"], one["milliseconds"], one["measured"]) for one in costs] == [
        ("fp32", 3.0, True),
        ("int8", 0.75, False),
    ]
    # A larger budget may be met by it, so that it is written and timed then.
    with pytest.raises(AssertionError, match="this graph is not needed"):
        run(data, out, *words, budget="1")


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in TOYS])
def test_every_method_can_be_timed_after_one_step(method: str, data: Path, tmp_path: Path) -> None:
    kind = resolve_method(method)
    weights = "random" if kind.default_backbone and kind.settings_for("resnet18").backbone else None
    recipe = plan(method, data, size=max(64, kind.smallest_size), weights=weights, folds=0)
    paths = sorted((data / "train" / "good").iterdir())[:16]
    few = PreparedImages(paths, recipe.settings.geometry)
    bundle = cost.trial_bundle(Candidate(method, recipe), few, 100, tmp_path / "trial")
    assert open_engine(bundle, "onnxruntime").precision == "fp32"


# ---------------------------------------------------------------- the criterion


def test_the_auroc_of_a_kind_is_the_mean_over_its_strengths() -> None:
    anomalies = {"patch": {"0.1": [0.0, 3.0], "0.4": [3.0, 4.0]}}
    assert kind_aurocs([1.0, 2.0], anomalies) == {"patch": pytest.approx(0.75)}


def test_a_kind_that_a_detector_was_trained_against_does_not_count_for_it() -> None:
    aurocs = {
        "a": {"patch": 0.7, "texture": 0.9},
        "b": {"patch": 0.6, "texture": 0.8},
        "c": {"patch": 1.0, "texture": 0.7},
    }
    values = criteria(aurocs, {"c": ("patch",)})
    assert max(values, key=values.__getitem__) == "a"
    assert min(values, key=values.__getitem__) == "c"
    # What it gains from its own training changes nothing for any of them.
    weaker = criteria({**aurocs, "c": {"patch": 0.0, "texture": 0.7}}, {"c": ("patch",)})
    assert weaker == values


def test_leaving_out_a_hard_kind_is_no_advantage() -> None:
    aurocs = {
        "a": {"patch": 0.55, "texture": 0.95},
        "b": {"patch": 0.55, "texture": 0.90},
        "c": {"patch": 0.99, "texture": 0.85},
    }
    values = criteria(aurocs, {"c": ("patch",)})
    assert sorted(values, key=values.__getitem__) == ["c", "b", "a"]


def test_a_detector_that_was_trained_against_every_kind_has_no_criterion() -> None:
    assert criteria({"a": {"patch": 0.9}}, {"a": ("patch",)}) == {}


def test_a_run_does_not_continue_with_other_good_images(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out, "--methods", "fine", budget="1") == 2
    capsys.readouterr()
    good = data / "train/good"
    (good / "added.png").write_bytes(next(good.iterdir()).read_bytes())
    assert run(data, out, "--methods", "fine", budget="1") == 2
    assert "are not those of the run in --out" in capsys.readouterr().err


def test_images_of_a_list_are_left_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    excluded = sorted((data / "train/good").iterdir())[:2]
    file = tmp_path / "list.txt"
    file.write_text("\n".join(map(str, excluded)))
    flags = ("--methods", "coarse", "--exclude-images", str(file))
    assert run(data, out, *flags) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1])
    assert command[command.index("--exclude-images") + 1] == str(file)
    checkpoint = load_checkpoint(out / "checkpoints" / "coarse-none.pt")
    assert checkpoint.excluded == tuple(sorted(content_hashes(excluded)))
    # The run in the folder is one of other images.
    assert run(data, out, "--methods", "coarse") == 2
    assert "are not those of the run in --out" in capsys.readouterr().err
