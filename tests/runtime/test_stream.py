"""The stream command: one JSON line per frame, a summary, and one line for every error."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import write_tiny_bundle

from flawline import cameras
from flawline.cameras import CameraError, Frame
from flawline.cameras.folder import Folder
from flawline.cameras.usb import Usb
from flawline.runtime import engines, infer_stream, outputs
from flawline.runtime.bundle import Bundle, write_calibration
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Geometry

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "runtime" / "infer_stream.py"


def write_image(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three images: dark, bright, dark. The score is the brightest pixel, the threshold 100."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for index, grey in enumerate((20, 200, 30)):
        write_image(folder / f"{index}.png", np.full((40, 50, 3), grey, np.uint8))
    return folder


class Run:
    """What a run of the command printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
        self.err = err

    @property
    def summary(self) -> dict[str, Any]:
        return self.lines[-1]["summary"]

    @property
    def verdicts(self) -> list[str]:
        return [line["verdict"] for line in self.lines[:-1]]


def stream(capsys: pytest.CaptureFixture[str], *arguments: object) -> Run:
    code = infer_stream.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Run(code, captured.out, captured.err)


def test_a_line_per_frame_and_a_summary(
    bundle: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts, "--save", saved)
    assert run.code == 0
    assert "self-test passed" in run.err
    assert run.verdicts == ["good", "anomalous", "good"]
    first = run.lines[0]
    assert list(first) == [
        "source",
        "index",
        "captured_at",
        "score",
        "threshold",
        "verdict",
        "rejected",
        "milliseconds",
        "fps",
        "bundle",
    ]
    assert first["bundle"] == run.summary["bundle"] == bundle.sha256["model.onnx"][:12]
    assert first["source"] == str(parts / "0.png")
    assert first["index"] == 0
    assert first["score"] == 20
    assert first["threshold"] == 100
    assert first["milliseconds"].keys() == {"prepare", "infer"}
    assert time.time() - first["captured_at"] < 600
    assert list(run.summary) == [
        "frames",
        "fps",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "dropped",
        "reconnects",
        "anomalous",
        "unjudged",
        "saved",
        "not_saved",
        "over_limit",
        "bundle",
    ]
    assert run.summary["frames"] == 3
    assert run.summary["dropped"] == 0
    assert run.summary["reconnects"] == 0
    assert run.summary["anomalous"] == 1
    assert 0 < run.summary["p50_ms"] <= run.summary["p95_ms"] <= run.summary["p99_ms"]
    names = sorted(path.name for path in saved.iterdir())
    starts = {name[:24] for name in names}
    assert len(starts) == 1
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{8}", starts.pop())
    assert [name[24:] for name in names] == [
        "-000000-0-good.png",
        "-000001-1-anomalous.png",
        "-000002-2-good.png",
    ]


def test_a_restart_replaces_no_overlay(
    bundle: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"
    for files in (3, 6):
        stream(capsys, "--bundle", bundle.path, "--camera", parts, "--save", saved)
        assert len(list(saved.iterdir())) == files


@pytest.mark.parametrize(
    "form",
    ["{parts}", "{parts}?bits=12", "file://{parts}", "folder://{parts}?watch=1", "{parts}?watch=1"],
)
@pytest.mark.parametrize("below", ["", "judged", "a/../judged"])
def test_overlays_are_never_written_into_the_cameras_folder(
    form: str, below: str, bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = form.format(parts=parts)
    before = list(parts.iterdir())
    run = stream(capsys, "--bundle", bundle.path, "--camera", camera, "--save", parts / below)
    assert run.code == 2
    assert "is inside the camera's folder" in run.err
    assert run.err.count("\n") == 1
    assert list(parts.iterdir()) == before


def test_an_unreadable_image_is_rejected_and_the_stream_continues(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "1.png").write_bytes(b"")
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts)
    assert run.code == 0
    assert run.verdicts == ["good", "unjudged", "good"]
    assert run.lines[1]["score"] is None
    assert "empty" in run.lines[1]["reason"]
    assert [line["rejected"] for line in run.lines[:3]] == [False, True, False]
    assert run.summary["anomalous"] == 0
    assert run.summary["unjudged"] == 1
    message = f"frame 1 of {parts / '1.png'} was not judged, and its part rejected: "
    assert message in run.err


def test_a_16_bit_image_among_others_is_rejected_and_the_stream_continues(
    bundle: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(parts / "1.png", np.full((40, 50), 30 << 4, np.uint16))
    saved = tmp_path / "saved"
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts, "--save", saved)
    assert run.code == 0
    assert run.verdicts == ["good", "unjudged", "good"]
    assert run.lines[1]["score"] is None
    assert run.lines[1]["milliseconds"] == {}
    assert "its bit depth is unknown" in run.lines[1]["reason"]
    # What could not be judged is saved as it came.
    assert len(list(saved.iterdir())) == 3
    (deep,) = saved.glob("*-unjudged.png")
    assert deep.read_bytes()
    assert (cv2.imread(str(deep), cv2.IMREAD_UNCHANGED) == 30 << 4).all()


def test_the_bit_depth_of_the_bundle_is_used_and_another_refused(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = write_tiny_bundle(tmp_path / "deep", bit_depth=12)
    write_image(parts / "1.png", np.full((40, 50), 30 << 4, np.uint16))
    saved = tmp_path / "saved"
    run = stream(capsys, "--bundle", deep.path, "--camera", parts, "--save", saved)
    assert [line["score"] for line in run.lines[:3]] == [20, 30, 30]
    assert len(list(saved.iterdir())) == 3
    run = stream(capsys, "--bundle", deep.path, "--camera", f"{parts}?bits=16")
    assert [line["score"] for line in run.lines[:3]] == [20, None, 30]
    assert "was trained with 12" in run.lines[1]["reason"]


def test_max_frames_and_a_changed_threshold(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_calibration(bundle, replace(bundle.calibration, threshold=10.0))
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts, "--max-frames", 1)
    assert run.verdicts == ["anomalous"]


def test_a_full_disk_is_reported_and_inspection_continues(
    bundle: Bundle,
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts, "--save", tmp_path / "s")
    assert not list((tmp_path / "s").iterdir())
    assert run.code == 0
    assert run.summary["frames"] == 3
    assert run.summary["saved"] == 0
    assert run.summary["not_saved"] == 3
    # Each failure is reported with the next frame, or at the end.
    messages = [line for line in run.err.splitlines() if "cannot be written" in line]
    assert 1 <= len(messages) <= 3
    for message in messages:
        assert "(No space left on device); free disk space, or choose another folder" in message


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--save", "{saved}"], ["0-good", "1-anomalous", "2-good", "3-unjudged"]),
        (["--save-rejected", "{saved}"], ["1-anomalous", "3-unjudged"]),
        (
            ["--output", "jsonl", "--output", "overlays:{saved}?frames=rejected&limit=1"],
            ["1-anomalous"],
        ),
    ],
)
def test_only_rejected_frames_are_saved_on_request(
    flags: list[str],
    names: list[str],
    bundle: Bundle,
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_image(parts / "3.png", np.full((40, 50), 30 << 4, np.uint16))
    # A file without an image cannot be saved.
    (parts / "4.png").write_bytes(b"")
    saved = tmp_path / "saved"
    flags = [flag.format(saved=saved) for flag in flags]
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts, *flags)
    assert run.verdicts == ["good", "anomalous", "good", "unjudged", "unjudged"]
    assert sorted(path.stem[32:] for path in saved.iterdir()) == names
    assert run.summary["saved"] == len(names)
    assert run.summary["not_saved"] == 0
    assert run.summary["over_limit"] == ("limit=1" in flags[-1])


def test_an_uninspected_margin_is_reported_once(
    tmp_path: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cropping = write_tiny_bundle(tmp_path / "crop", geometry=Geometry("shorter-crop", 64, 64, 80))
    run = stream(capsys, "--bundle", cropping.path, "--camera", parts)
    assert run.err.count("image uninspected") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "{bundle}", "--camera", "/nowhere"], "no such file or folder"),
        (["--bundle", "/nowhere", "--camera", "{parts}"], "flawline build --checkpoint"),
        (
            ["--bundle", "{bundle}", "--camera", "{parts}", "--engine", "abacus"],
            "known: tensorrt, ",
        ),
        (
            ["--bundle", "{bundle}", "--camera", "{parts}", "--save", "/proc/x"],
            "output overlays: /proc/x",
        ),
        (["--bundle", "{bundle}", "--camera", "{parts}", "--threads", "0"], "at least 1"),
        (
            ["--bundle", "{bundle}", "--camera", "{parts}", "--threads", "50000"],
            "cores that this process may use; give at most",
        ),
        (["--bundle", "{scores}", "--camera", "{parts}", "--save", "/tmp/x"], "output overlays"),
    ],
)
def test_a_users_error_is_one_line_and_exit_status_2(
    bundle: Bundle,
    tmp_path: Path,
    parts: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = write_tiny_bundle(tmp_path / "scores", outputs=("score",))
    filled = []
    for argument in arguments:
        filled.append(argument.format(bundle=bundle.path, scores=scores.path, parts=parts))
    run = stream(capsys, *filled)
    assert run.code == 2
    assert not run.lines
    assert message in run.err.splitlines()[-1]
    assert run.err.splitlines()[-1].startswith("flawline stream: ")
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--bundle and --camera are needed (or --station or --list)"),
        (["--bundle", "b", "--camera", "c", "--max-frames", "0"], "must be at least 1"),
        (["--bundle", "b", "--camera", ""], "argument --camera: is empty; check that its shell"),
        (["--bundle", "", "--camera", "c"], "argument --bundle: is empty"),
        (["--bundle", "b", "--camera", "c", "--save", ""], "argument --save: is empty"),
        (["--bundle", "b", "--camera", "c", "--output", ""], "argument --output: is empty"),
        (["--bundle", "b", "--camera", "c", "--engine-cache", ""], "--engine-cache: is empty"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        infer_stream.main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("flawline stream: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


# ---------------------------------------------------------------- --list


def test_list_names_every_engine_camera_and_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert infer_stream.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  folder          ready: /data/images, folder:///data/images?watch=1" in lines
    assert "  jsonl           ready: jsonl for stdout, jsonl:FILE" in lines
    assert f"  usb             ready: usb://0, /dev/video0 (untested {Usb.untested})" in lines
    for kind in ("engines:", "cameras:", "outputs:"):
        assert kind in lines
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == [*engines.ENGINES, *cameras.CAMERAS, *outputs.OUTPUTS]
    assert {"onnxruntime", "folder", "video", "usb", "synthetic"} <= set(listed)


def test_list_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OnnxRuntime, "missing", classmethod(lambda cls: "pip install onnxruntime"))
    monkeypatch.setattr(Usb, "missing", classmethod(lambda cls: "pip install v4l"))
    monkeypatch.setitem(outputs.OUTPUTS, "mqtt", "flawline.runtime.outputs.jsonl:JsonLines")
    monkeypatch.setattr(
        outputs.output_class("mqtt"), "missing", classmethod(lambda cls: "pip install paho")
    )
    infer_stream.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert "  onnxruntime     missing: pip install onnxruntime" in lines
    assert f"  usb             missing: pip install v4l (untested {Usb.untested})" in lines
    assert "  mqtt            missing: pip install paho" in lines


def test_list_survives_a_module_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cameras.CAMERAS, "broken", "flawline.cameras.absent:Absent")
    assert infer_stream.main(["--list"]) == 0
    assert "  broken          missing: No module named" in capsys.readouterr().out


# ---------------------------------------------------------------- how a stream ends


def test_the_summary_is_printed_when_the_camera_is_lost(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames_of = Folder.__iter__

    def torn(self: Folder) -> Iterator[Frame]:
        frames = frames_of(self)
        yield next(frames)
        yield next(frames)
        raise CameraError("camera x: lost")

    monkeypatch.setattr(Folder, "__iter__", torn)
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts)
    assert run.code == 2
    assert run.summary["frames"] == 2
    assert "camera x: lost" in run.err


def run_script(arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a shell, from this checkout."""
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} {SCRIPT} {arguments}"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_full_disk_behind_stdout_is_one_line(bundle: Bundle, parts: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = run_script(f"--bundle {bundle.path} --camera {parts} > /dev/full")
    assert done.returncode == 2
    assert done.stderr.count("No space left") == 1
    assert "free disk space" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_ends_early_is_no_error(bundle: Bundle) -> None:
    done = run_script(f"--bundle {bundle.path} --camera 'synthetic://?fps=200' | head -n 1")
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_help_shows_an_example_of_every_camera_and_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        infer_stream.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "for example /data/images, folder:///data/images?watch=1, /data/line.mp4, usb://0," in text
    )
    assert "/dev/video0, rtsp://192.168.0.10/" in text
    assert "jsonl for stdout, jsonl:FILE, csv:FILE, " in text
    # argparse breaks a word that is longer than its column.
    unbroken = text.replace(" ", "")
    assert "overlays:DIR[?frames=rejected&limit=1000&when_full=replace]," in unbroken
    assert "web:ADDRESS[:PORT][?token_file=FILE];repeat" in unbroken


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_stream_with_its_summary_from_any_folder(
    bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    camera = "synthetic://?fps=100"
    command = [sys.executable, str(SCRIPT), "--bundle", str(bundle.path), "--camera", camera]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "score" in json.loads(process.stdout.readline())
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["summary"]["frames"] >= 1
    assert "Traceback" not in err


def test_what_a_folder_holds_and_what_is_not_read_is_one_line(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, parts: Path
) -> None:
    (parts / "x.gif").touch()
    run = stream(capsys, "--bundle", bundle.path, "--camera", parts)
    (line,) = [line for line in run.err.splitlines() if line.startswith("camera ")]
    assert "1 image of formats that are not read (1 .gif; save them as PNG)" in line
    assert run.summary["frames"] == len(list(parts.iterdir()))


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        ("onnxruntime", ["--batch", 2]),
        ("openvino", ["--batch", 2]),
        ("openvino", ["--streams", 1]),
        ("openvino", ["--streams", 1, "--batch", 2]),
    ],
)
def test_the_verdicts_in_throughput_mode_are_the_same_in_the_same_order(
    engine: str,
    flags: list[object],
    bundle: Bundle,
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    (parts / "1b.png").write_bytes(b"rubbish")
    arguments = ["--bundle", bundle.path, "--camera", parts, "--engine", engine]
    alone = stream(capsys, *arguments, "--save", tmp_path / "alone")
    together = stream(capsys, *arguments, *flags, "--save", tmp_path / "together")
    assert together.code == alone.code == 0
    assert together.verdicts == ["good", "anomalous", "unjudged", "good"]
    for line, expected in zip(together.lines[:-1], alone.lines[:-1], strict=True):
        for key in ("source", "index", "score", "verdict", "rejected"):
            assert line[key] == expected[key]
    saved = [sorted((tmp_path / name).glob("*.png")) for name in ("alone", "together")]
    assert len(saved[0]) == 3
    for path, other in zip(*saved, strict=True):
        # The map of each frame is drawn over its own image.
        assert other.read_bytes() == path.read_bytes()
    limited = stream(capsys, *arguments, *flags, "--max-frames", 2)
    assert limited.verdicts == ["good", "anomalous"]


@pytest.mark.parametrize("flags", [["--streams", 1], ["--batch", 2]])
@pytest.mark.parametrize("camera", ["{parts}?watch=1", "synthetic://"])
def test_throughput_mode_is_refused_for_sources_that_give_frames_at_their_own_time(
    camera: str,
    flags: list[object],
    bundle: Bundle,
    parts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = camera.format(parts=parts)
    run = stream(capsys, "--bundle", bundle.path, "--camera", source, *flags)
    assert run.code == 2
    assert "--streams and --batch delay verdicts" in run.err
    assert run.err.count("\n") == 1


def test_streams_of_an_engine_without_them_are_refused(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", bundle.path, "--camera", parts, "--engine", "onnxruntime"]
    run = stream(capsys, *arguments, "--streams", 2)
    assert run.code == 2
    assert "engine onnxruntime computes one batch after the other and has no streams" in run.err
    assert run.lines == []


def test_a_watched_folder_is_judged_until_a_signal_ends_the_stream(
    bundle: Bundle, parts: Path, tmp_path: Path
) -> None:
    camera = f"folder://{parts}?watch=1&settle=0.1"
    command = [sys.executable, str(SCRIPT), "--bundle", str(bundle.path), "--camera", camera]
    command += ["--save", str(tmp_path / "saved")]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        # New files while the stream waits: one renamed into place, one that is no image.
        write_image(parts / "3.png.part", np.full((40, 50, 3), 210, np.uint8))
        (parts / "3.png.part").rename(parts / "3.png")
        lines.append(json.loads(process.stdout.readline()))
        (parts / "4.png").write_bytes(b"rubbish")
        lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [line["source"] for line in lines] == [str(parts / f"{i}.png") for i in range(5)]
    verdicts = [line["verdict"] for line in lines]
    assert verdicts == ["good", "anomalous", "good", "anomalous", "unjudged"]
    (last,) = out.splitlines()
    summary = json.loads(last)["summary"]
    assert [summary[name] for name in ("frames", "dropped", "reconnects")] == [5, 0, 0]
    assert "is watched; the images that are present come first" in err
    assert "Traceback" not in err


def test_a_watched_folder_ends_with_its_number_of_frames(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = f"{parts}?watch=1&settle=0"
    run = stream(capsys, "--bundle", bundle.path, "--camera", camera, "--max-frames", 3)
    assert run.code == 0
    assert run.verdicts == ["good", "anomalous", "good"]
