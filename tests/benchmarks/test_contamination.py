"""The study of defective images among the good ones of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.studies.contamination.__main__ import main
from flawline.benchmarks.studies.contamination.data import (
    Contamination,
    choose_contamination,
    images_for_share,
    write_contaminated,
)
from flawline.benchmarks.studies.contamination.report import add_row, contamination_page
from flawline.train.data import DataError, hold_out, open_data
from flawline.train.data.split import content_hashes

pytestmark = pytest.mark.torch
SHARES = (0.0, 0.1, 0.25)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train/good": 18, "test/good": 4, "test/square": 10}
    return write_squares(tmp_path_factory.mktemp("data") / "squares", counts)


@pytest.fixture
def contamination(data: Path) -> Contamination:
    return choose_contamination(open_data(data), SHARES, 0)


def contents(paths: list[Path]) -> set[str]:
    return set(content_hashes(paths))


def test_a_share_is_of_all_training_images() -> None:
    for good in (10, 441, 1000):
        for share in (0.0, 0.02, 0.1, 0.5):
            moved = images_for_share(share, good)
            assert moved / (moved + good) == pytest.approx(share, abs=0.5 / good)


def test_no_image_of_the_training_is_ever_tested(
    contamination: Contamination, tmp_path: Path
) -> None:
    tested = []
    trained = []
    for share in SHARES:
        copy = open_data(write_contaminated(contamination, share, tmp_path / str(share)))
        tested.append(contents([sample.path for sample in copy.test]))
        trained.append(contents(list(copy.train_good)))
    assert [len(images) for images in trained] == [18, 20, 24]
    assert trained[0] < trained[1] < trained[2]
    # The same images at every share: 4 good and the 4 defective ones that never move.
    assert tested[0] == tested[1] == tested[2]
    assert len(tested[0]) == 8
    assert not tested[0] & trained[2]


def test_copies_of_what_moves_are_not_tested(tmp_path: Path) -> None:
    counts = {"train/good": 18, "test/good": 4, "test/square": 10}
    root = write_squares(tmp_path / "squares", counts)
    for path in (root / "test/square").iterdir():
        path.with_stem(f"copy-{path.stem}").write_bytes(path.read_bytes())
    chosen = choose_contamination(open_data(root), (0.1,), 0)
    assert len(chosen.moved) == 2
    moved = contents([sample.path for sample in chosen.moved])
    assert not moved & contents([sample.path for sample in chosen.test])
    assert len(chosen.test) == 4 + 20 - 4


def test_the_good_images_stay_on_their_side_of_the_hold_out(
    contamination: Contamination, data: Path, tmp_path: Path
) -> None:
    _, held_out = hold_out(open_data(data).train_good)
    copy = open_data(write_contaminated(contamination, 0.0, tmp_path / "copy"))
    _, held_out_of_copy = hold_out(copy.train_good)
    assert contents(held_out) == contents(held_out_of_copy)


def test_the_data_set_is_not_changed(data: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    chosen = choose_contamination(open_data(data), SHARES, 0)
    copy = write_contaminated(chosen, 0.25, tmp_path / "copy")
    assert all(path.is_symlink() for path in copy.rglob("*.png"))
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before


def test_the_choice_follows_the_seed(data: Path) -> None:
    data_set = open_data(data)
    first = choose_contamination(data_set, SHARES, 0)
    assert first == choose_contamination(data_set, SHARES, 0)
    assert first.moved != choose_contamination(data_set, SHARES, 1).moved


def test_impossible_shares_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(DataError, match="below 1"):
            choose_contamination(open_data(data), [share], 0)
    command = ["--data", str(data), "--method", "padim", "--out", str(tmp_path / "r")]
    assert main([*command, "--shares", "0.5"]) == 2
    assert "takes 18 defective images, and there are 10" in capsys.readouterr().err


def test_each_share_can_be_measured_in_a_run_of_its_own(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(data), "--method", "padim", "--out", str(tmp_path / "r")]
    command += ["--weights", "random", "--size", "64", "--engine", "none", "--largest", "0.25"]
    assert main([*command, "--shares", "0.25"]) == 0
    assert main([*command, "--shares", "0"]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [(row["share"], row["moved"]) for row in rows] == [(0, 0), (0.25, 6)]
    assert rows[0]["test_images"] == rows[1]["test_images"]
    # A fifth of 18 and of 24 images, rounded, is held out.
    assert [row["held_out"] for row in rows] == [4, 5]
    for row in rows:
        assert (row["data"], row["good_images"], row["defective_images"]) == ("squares", 4, 4)
        low, high = row["false_alarm_interval"]
        assert low <= row["false_alarm_rate"] <= high
    page = (tmp_path / "r.md").read_text()
    assert "| padim resnet18 | squares | 25% | 6 of 24 |" in page
    assert "Tested on 4 good and 4 defective images." in page
    assert str(data.parent) not in page
    assert page in capsys.readouterr().out


def row_of(method: str, share: float, test: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": method,
        "backbone": "resnet18",
        "weights": "random",
        "input": "64x64 stretch",
        "data": "d",
        "share": share,
        "test_images": test,
        "seed": 0,
        "engine": "onnxruntime 1",
        "device": "a CPU",
        "versions": {"torch": "2"},
        "moved": 1,
        "training_images": 20,
        "good_images": 5,
        "defective_images": 4,
        "image_auroc": 0.9,
        "false_alarm_rate": 0.1,
        "false_alarm_interval": [0, 0.2],
        "recall": 0.5,
        "recall_interval": [0.2, 0.8],
        "pg2": 0.4,
        "pb2": 0.3,
        "command": "python -m study",
    }
    return row | changes


def test_a_new_row_replaces_its_own_and_those_of_other_test_images() -> None:
    old = [row_of("a", 0, "x"), row_of("a", 0.1, "x"), row_of("b", 0, "y")]
    again = row_of("a", 0.1, "x", image_auroc=0.8)
    assert add_row(old, again) == [old[0], again, old[2]]
    assert add_row(old, row_of("a", 0.1, "z")) == [row_of("a", 0.1, "z"), old[2]]
    # Another backbone, other weights or another size are another detector.
    for changes in ({"backbone": "resnet34"}, {"weights": "texture"}, {"input": "128x128 stretch"}):
        assert len(add_row(old, row_of("a", 0.1, "x", **changes))) == 4


def test_the_page_states_facts_that_differ_with_their_rows() -> None:
    first = row_of("a", 0, "x")
    page = contamination_page([first, row_of("a", 0.1, "x")])
    assert (
        "Weights random, input 64x64 stretch. Seed 0. Engine onnxruntime 1. Machine a CPU." in page
    )
    assert "torch" not in page
    other = row_of(
        "b", 0, "x", data="e", engine="openvino 2", device="a GPU", versions={"torch": "3"}
    )
    other |= {"backbone": "", "weights": "none", "good_images": 6}
    page = contamination_page([first, other])
    assert "| b | e | 0% |" in page
    for text in (
        "Tested on 5 good and 4 defective images (d); 6 good and 4 defective images (e).",
        "Weights random, input 64x64 stretch (a resnet18 d 0%); Weights none, input 64x64 stretch",
        "Seed 0. Engine onnxruntime 1 (a resnet18 d 0%); Engine openvino 2 (b e 0%).",
        "Machine a CPU (a resnet18 d 0%); Machine a GPU (b e 0%).",
        "torch 2 (a resnet18 d 0%); torch 3 (b e 0%).",
    ):
        assert text in page


def test_rows_with_wrong_types_and_flags_of_the_study_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(data), "--method", "padim", "--out", str(tmp_path / "r")]
    (tmp_path / "r.json").write_text(json.dumps([row_of("a", 0, "x", moved="1")]))
    assert main([*command, "--shares", "0"]) == 2
    assert "moved is '1', not of type int" in capsys.readouterr().err
    (tmp_path / "r.json").unlink()
    for flag in ("--folds", "--checkpoint", "--bundle", "--save-checkpoint"):
        assert main([*command, flag, "3"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"{flag} is set by this command; leave it out")
