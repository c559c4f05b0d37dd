"""flawline stream --station and flawline recipe: a running station takes another recipe."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes.live_camera import WAIT_S

from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.log import open_log
from flawline.runtime.bundle import read_bundle, write_bundle, write_calibration
from flawline.runtime.files import replace_folder
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.station.bundle_watch import WatchedBundle
from flawline.runtime.station.recipe import main as recipe
from flawline.runtime.station.settings import recipes
from flawline.runtime.station.settings.opening import open_judge
from flawline.runtime.station.settings.station_file import read_station
from flawline.runtime.station.settings.watch import StationWatch
from flawline.runtime.undo import undo_calibration

ROOT = Path(__file__).resolve().parents[2]
# A field of the graph that changes nothing but its hash.
DOC_STRING = b"\x32\x01x"
STATION = """{
  "recipe": "low",   "recipes": [
    {"name": "low", "bundle": "bundles/first", "threshold": 40},
    {"name": "high", "bundle": "bundles/second",
     "thresholds": [{"camera": "left", "threshold": 60, "review_threshold": 50}]},
    {"name": "broken", "bundle": "bundles/broken"}
  ],
  "cameras": [{"uri": "images", "name": "left"}],
  "engine": {"name": "onnxruntime", "threads": 1},
  "outputs": ["jsonl:lines.jsonl"]
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A station in a folder with a space and Chinese characters, with one image of grey 55."""
    folder = tmp_path / "工位 1"
    first = write_tiny_bundle(folder / "bundles" / "first")
    write_tiny_bundle(folder / "bundles" / "second", tiny_model() + DOC_STRING)
    shutil.copytree(first.path, folder / "bundles" / "broken")
    (folder / "bundles" / "broken" / "model.onnx").write_bytes(b"no graph")
    (folder / "station.json").write_text(STATION)
    (folder / "images").mkdir()
    show(folder, 0)
    return folder


def show(folder: Path, number: int) -> None:
    """Put an image of grey 55 in front of the camera."""
    data = cv2.imencode(".png", np.full((64, 64, 3), 55, np.uint8))[1].tobytes()
    path = folder / f"{number:03d}.png"
    path.write_bytes(data)
    path.rename(folder / "images" / path.name)


def change(folder: Path, old: str, new: str) -> Path:
    path = folder / "station.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "lines.jsonl"
    if not path.exists():
        return []
    # The last line may be incomplete.
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def log_of(folder: Path) -> list[tuple[str, Any]]:
    """The kind of each entry of the station's log, and its recipe."""
    entries = check_log(folder / "audit.jsonl").entries
    return [(entry.what, (entry.new or {}).get("recipe")) for entry in entries]


def test_a_stream_of_a_station_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path.cwd()
    assert stream(["--station", str(folder / "station.json")]) == 0
    assert Path.cwd() == before
    line, summary = lines(folder)
    assert line["source"] == "images/000.png"
    assert (line["recipe"], line["camera"], line["threshold"]) == ("low", "left", 40)
    assert line["verdict"] == "anomalous"
    assert summary["summary"]["frames"] == 1
    # A second run with the same recipe changes nothing, and so it has no entry.
    monkeypatch.chdir(folder)
    assert stream(["--station", "station.json"]) == 0
    monkeypatch.chdir(folder / "images")
    assert stream(["--station", "../station.json"]) == 0
    assert log_of(folder) == [("in use", "low")]


def test_what_is_in_use_after_a_refusal_is_said_again(folder: Path) -> None:
    words = ["--station", str(folder / "station.json")]
    assert stream(words) == 0
    with open_log(folder / "audit.jsonl") as log:
        log.append("refused", None, {"recipe": "broken"}, "damaged")
    assert stream(words) == 0
    assert log_of(folder) == [("in use", "low"), ("refused", "broken"), ("in use", "low")]


def test_a_camera_has_its_own_thresholds(folder: Path) -> None:
    path = change(folder, '"recipe": "low"', '"recipe": "high"')
    assert stream(["--station", str(path)]) == 0
    line = lines(folder)[0]
    assert (line["threshold"], line["review_threshold"]) == (60, 50)
    assert line["verdict"] == "review"


def test_single_frames_do_not_reject_a_continuous_stream(folder: Path) -> None:
    path = change(folder, '"outputs"', '"reject_after": {"frames": 2, "of": 3}, "outputs"')
    for number in range(1, 3):
        show(folder, number)
    assert stream(["--station", str(path)]) == 0
    found = [(line["verdict"], line["recent_bad"]) for line in lines(folder)[:-1]]
    assert found == [("good", 1), ("anomalous", 2), ("anomalous", 3)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"low",   ', '"lw",   ', "line 2: there is no recipe 'lw' (did you mean low?)"),
        ('"threshold": 40', '"threshold": 1e9', "line 3: the threshold 1e+09 is implausible"),
        ('"threshold": 40', '"review_threshold": 101', "line 3: the review threshold 101 is above"),
        ('"threshold": 40', '"mm_per_pixel": 1', "line 3: mm_per_pixel is about anomalous regions"),
        ('"images", "name"', '"images?name=a", "nam"', "line 8: cameras[0] has no key 'nam'"),
        ('"images", "name": "left"', '"images?name=left"', "line 5: there is no camera 'left'"),
        ('"images"', '"images?name=left"', "line 8: the camera has the name left in its URI"),
        ('"images"', '"nowhere"', "no such file or folder"),
        ("bundles/first", "bundles/broken", "model.onnx is not the file that was built"),
        ('"threshold": 40', '"server": "grpc://H:1/m"', "computes on this machine"),
        ("bundles/first", "nowhere", "there is no such folder"),
        ('"outputs"', '"audit": "a/b.jsonl", "outputs"', "a/b.jsonl: cannot be opened"),
        (
            '"images"',
            '"synthetic://?trigger=software"',
            "line 10: reject_after is for continuous streams, and a bad part of camera left",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    folder: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "reject_after" in message:
        change(folder, '"outputs"', '"reject_after": {"frames": 2, "of": 3}, "outputs"')
    path = change(folder, old, new)
    assert stream(["--quiet", "--station", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "words",
    [
        ["--bundle", "b"],
        ["--camera", "c"],
        ["--engine", "auto"],
        ["--accept-size"],
        ["--output", "jsonl"],
        ["--same-part"],
        ["--batch-wait", "3"],
        ["--save-rejected", "d"],
    ],
)
def test_flags_that_the_file_states_are_refused(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        stream(["--station", str(folder / "station.json"), *words])
    assert ended.value.code == 2
    message = f"{words[0]} does not go with --station, whose file says it"
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_command_changes_the_name_and_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "station.json"
    path.chmod(0o640)
    link = folder / "link.json"
    link.symlink_to(path.name)
    assert recipe([str(link), "high"]) == 0
    assert "recipe high in place of low" in capsys.readouterr().out
    assert path.read_text() == STATION.replace('"recipe": "low"', '"recipe": "high"')
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert recipe([str(path), "high"]) == 0
    assert "is the one in the file already" in capsys.readouterr().out
    assert log_of(folder) == [("recipe", "high")]
    assert recipe([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "  low  bundles/first",
        "* high  bundles/second",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hig", "there is no recipe 'hig' (did you mean high?); known: low, high, broken"),
        ("broken", "model.onnx is not the file that was built"),
    ],
)
def test_a_recipe_that_cannot_be_used_leaves_the_file_as_it_is(
    folder: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe([str(folder / "station.json"), name]) == 2
    assert message in capsys.readouterr().err
    assert (folder / "station.json").read_text() == STATION
    assert not (folder / "audit.jsonl").exists()


def test_without_its_line_in_the_log_the_recipe_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "audit.jsonl").mkdir()
    assert recipe([str(folder / "station.json"), "high"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (folder / "station.json").read_text() == STATION


def test_a_stream_that_does_not_answer_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "station.json"
    assert recipe([str(path), "high", "--wait", "0.1"]) == 2
    assert "no stream had it ready within 0.1 s" in capsys.readouterr().err
    assert path.read_text() == STATION.replace('"recipe": "low"', '"recipe": "high"')
    with pytest.raises(SystemExit):
        recipe([str(path), "high", "--wait", "nan"])


def test_a_refusal_of_the_stream_is_the_error_of_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "station.json"
    answers = iter(["refused", "ready"])

    def answer(_seconds: float) -> None:
        with open_log(folder / "audit.jsonl") as log:
            log.append(next(answers), None, {"recipe": "high"}, "the self-test failed")

    monkeypatch.setattr(recipes.time, "sleep", answer)
    assert recipe([str(path), "high", "--wait", "30"]) == 2
    message = "recipe high was refused by the stream: the self-test failed"
    assert message in capsys.readouterr().err
    path.write_text(STATION)
    assert recipe([str(path), "high", "--wait", "30"]) == 0
    assert "the stream judges with it" in capsys.readouterr().out


class Running:
    """`flawline stream --station` in a process of its own, on a watched folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = change(folder, '"images"', '"images?watch=1"')
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flawline", "stream", "--station", str(path)],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.messages: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.shown = 1

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.messages.append(line)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < limit, self.messages
            assert self.process.poll() is None, self.messages
            time.sleep(0.02)

    def wait_for_message(self, text: str) -> None:
        self.wait_for(lambda: any(text in line for line in self.messages))

    def judge_another(self) -> dict[str, Any]:
        """Show an image, and return the line that it gets."""
        show(self.folder, self.shown)
        self.shown += 1
        self.wait_for(lambda: len(lines(self.folder)) == self.shown)
        return lines(self.folder)[-1]

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(WAIT_S)
        self.reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def test_a_running_station_takes_another_recipe_and_refuses_a_bad_one(folder: Path) -> None:
    running = Running(folder)
    try:
        running.wait_for(lambda: len(lines(folder)) == 1)
        path = folder / "station.json"
        assert recipe([str(path), "high", "--wait", "30"]) == 0
        # No frame came since then, so that nothing was judged with it.
        assert log_of(folder)[-1] == ("ready", "high")
        # The first frame after the change has the new recipe.
        line = running.judge_another()
        assert (line["recipe"], line["threshold"], line["verdict"]) == ("high", 60, "review")
        running.wait_for(lambda: log_of(folder)[-1] == ("in use", "high"))
        running.wait_for_message("from now on: recipe high, bundle ")
        # The command refuses this recipe, and so does the stream if it is written by hand.
        change(folder, '"recipe": "high"', '"recipe": "broken"')
        running.wait_for_message("refused, and inspection continues with recipe high, bundle ")
        assert running.judge_another()["recipe"] == "high"
        path.write_text("{")
        running.wait_for_message("inspection continues with the station file as it was")
        assert running.judge_another()["recipe"] == "high"
        path.unlink()
        running.wait_for_message("cannot be read (No such file or directory)")
        path.write_text(STATION.replace('"lines.jsonl"', '"other.jsonl"'))
        running.wait_for(lambda: log_of(folder)[-1] == ("ready", "low"))
        running.wait_for_message("cameras changed; start the stream again")
        assert running.judge_another()["recipe"] == "low"
    finally:
        code = running.end()
    assert code == 0
    *found, summary = lines(folder)
    assert [line["index"] for line in found] == list(range(5))
    assert summary["summary"]["frames"] == 5
    assert log_of(folder) == [
        ("in use", "low"),
        ("recipe", "high"),
        ("ready", "high"),
        ("in use", "high"),
        ("refused", "broken"),
        ("ready", "low"),
        ("in use", "low"),
    ]


def test_a_running_station_takes_what_comes_to_the_path_of_its_bundle(folder: Path) -> None:
    change(folder, ', "threshold": 40', "")
    path = folder / "bundles" / "first"
    first = read_bundle(path)
    second = read_bundle(folder / "bundles" / "second")
    broken = folder / "bundles" / "broken"
    running = Running(folder)
    try:
        running.wait_for(lambda: len(lines(folder)) == 1)
        # A new threshold, and its undoing.
        write_calibration(first, replace(first.calibration, threshold=50.0))
        running.wait_for(lambda: len(log_of(folder)) == 2)  # ready
        line = running.judge_another()
        assert (line["threshold"], line["verdict"], line["bundle"]) == (
            50,
            "anomalous",
            first.short_id,
        )
        undo_calibration(path)
        running.wait_for(lambda: len(log_of(folder)) == 4)
        assert running.judge_another()["verdict"] == "good"
        # Another bundle, and one that no engine reproduces.
        replace_bundle(path, second.path)
        running.wait_for(lambda: len(log_of(folder)) == 6)
        assert running.judge_another()["bundle"] == second.short_id
        wrong = write_tiny_bundle(folder / "wrong")
        golden = replace(wrong.golden(), scores=wrong.golden().scores + 1)
        models = {"fp32": tiny_model()}
        write_bundle(wrong.path, wrong.manifest, wrong.calibration, models, golden)
        replace_bundle(path, wrong.path)
        running.wait_for_message("fails the self-test")
        assert running.judge_another()["bundle"] == second.short_id
        # A recipe that is refused is taken when its bundle is repaired.
        change(folder, '"recipe": "low"', '"recipe": "broken"')
        running.wait_for(lambda: log_of(folder)[-1] == ("refused", "broken"))
        (broken / "model.onnx").write_bytes(tiny_model())
        running.wait_for(lambda: log_of(folder)[-1] == ("ready", "broken"))
        assert running.judge_another()["recipe"] == "broken"
    finally:
        code = running.end()
    assert code == 0
    *found, _summary = lines(folder)
    assert [line["index"] for line in found] == list(range(6))
    whats = [what for what, _recipe in log_of(folder)]
    taken = ["ready", "in use"]
    assert whats == ["in use", *taken * 3, "refused", "refused", *taken]
    assert len([line for line in running.messages if "refused" in line]) == 2, running.messages


def replace_bundle(path: Path, new: Path) -> None:
    """Put a copy of a bundle in the place of another by a rename."""
    with replace_folder(path) as copy:
        shutil.copytree(new, copy, dirs_exist_ok=True)


def test_a_judge_that_is_not_used_any_more_is_freed_without_the_collection_of_cycles(
    folder: Path,
) -> None:
    station = read_station(folder / "station.json")
    bundle = read_bundle(station.bundle_of(station.recipe))
    judge = open_judge(station, lambda detector: None, bundle, running=True)
    judge.on_begin(judge)
    assert log_of(folder) == [("ready", "low"), ("in use", "low")]
    judge.detector.close()
    freed = weakref.ref(judge.detector)
    gc.disable()
    try:
        del judge
        assert freed() is None
    finally:
        gc.enable()


def test_a_file_that_is_being_written_is_read_when_it_is_complete(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "station.json"
    offered: list[Any] = []

    class Exchange:
        offer = offered.append
        now = Mock()

    station = read_station(path)
    watched = WatchedBundle(station.bundle_of(station.recipe))
    watch = StationWatch(station, Exchange(), lambda detector: None, watched)  # type: ignore[arg-type]
    complete = STATION.replace('"low",   ', '"high",   ')
    for text in ("", "{", '{"recipe"', complete, None, None, None):
        if text is not None:
            path.write_text(text)
        watch.look()
    assert len(offered) == 1
    assert not capsys.readouterr().err


def test_a_station_may_keep_its_bundle(folder: Path) -> None:
    path = change(folder, '"outputs"', '"keep_bundle": true, "outputs"')
    offered: list[Any] = []
    station = read_station(path)
    first = read_bundle(station.bundle_of(station.recipe))

    class Exchange:
        offer = offered.append
        now = Mock()

    Exchange.now.detector.bundle = first
    watch = StationWatch(station, Exchange(), lambda detector: None, WatchedBundle(first.path))  # type: ignore[arg-type]
    write_calibration(first, replace(first.calibration, threshold=50.0))
    for _ in range(4):
        watch.look()
    assert not offered
    change(folder, '"keep_bundle": true', '"keep_bundle": false')
    for _ in range(6):
        watch.look()
    assert len(offered) == 1
