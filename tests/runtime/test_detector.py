from __future__ import annotations

import json
import os
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

from flawline.cameras import CameraError, Frame
from flawline.cameras.folder import Folder
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle, BundleError, write_calibration
from flawline.runtime.detector import Detector
from flawline.runtime.engines import (
    ENGINES,
    EngineError,
    EngineOptions,
    missing,
    open_engine,
    self_test,
)
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime

SCRIPT = Path(__file__).resolve().parents[2] / "runtime" / "infer_stream.py"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three pictures: dark, bright, dark. The tiny model's score is the brightest pixel, its threshold 100."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for i, grey in enumerate((20, 200, 30)):
        (folder / f"{i}.png").write_bytes(
            cv2.imencode(".png", np.full((40, 50, 3), grey, np.uint8))[1].tobytes()
        )
    return folder


def stream(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, list[dict[str, Any]], str]:
    code = infer_stream.main([str(a) for a in arguments])
    told = capsys.readouterr()
    return code, [json.loads(line) for line in told.out.splitlines()], told.err


# ---------------------------------------------------------------- engines


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_that_is_here_reproduces_the_golden_data(bundle: Bundle, name: str) -> None:
    if why := missing(name):
        pytest.skip(why)
    engine = open_engine(bundle, name, EngineOptions(threads=1))
    assert self_test(engine, bundle) <= bundle.manifest.score_tolerance
    golden = bundle.golden()
    scores, maps = engine(golden.images)
    np.testing.assert_allclose(scores, golden.scores, atol=0.01)
    np.testing.assert_allclose(maps, golden.maps, atol=0.01)
    assert engine.description
    engine.close()


def test_an_engine_that_drifts_is_refused(bundle: Bundle) -> None:
    class Drifting(OnnxRuntime):
        def __call__(self, image: Any) -> Any:
            score, heat = super().__call__(image)
            return score + 0.5, heat

    with pytest.raises(
        EngineError, match=r"golden image 0 scores .* off by 0\.5, the tolerance is 0\.01"
    ):
        self_test(Drifting.open(bundle, EngineOptions(precision="fp32")), bundle)

    class Broken(OnnxRuntime):
        def __call__(self, image: Any) -> Any:
            score, heat = super().__call__(image)
            return score, heat * np.nan

    with pytest.raises(EngineError, match="golden image 0 has a map that is off by nan"):
        self_test(Broken.open(bundle, EngineOptions(precision="fp32")), bundle)


def test_unknown_and_unloadable_are_told(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"known: auto, .*onnxruntime"):
        open_engine(bundle, "abacus")
    with pytest.raises(EngineError, match=r"onnxruntime does not run bf16; it runs fp32, int8"):
        open_engine(bundle, "onnxruntime", EngineOptions(precision="bf16"))
    with pytest.raises(BundleError, match=r"holds no int8 graph; .*--precision int8"):
        open_engine(bundle, "onnxruntime", EngineOptions(precision="int8"))
    bundle.model().write_bytes(b"rubbish")
    with pytest.raises(EngineError, match="cannot load"):
        open_engine(bundle, "onnxruntime")


def test_steady_state_reuses_the_output_buffers(bundle: Bundle) -> None:
    engine = open_engine(bundle, "onnxruntime")
    image = bundle.golden().images[:1]
    assert engine(image)[1] is engine(image)[1]
    assert engine(np.repeat(image, 3, 0))[0].shape == (3,)


# ---------------------------------------------------------------- verdicts


def test_verdicts_compare_with_the_threshold(bundle: Bundle) -> None:
    with Detector(bundle) as detector:
        dark, bright = (
            detector(np.full((30, 30), 99, np.uint8)),
            detector(np.full((90, 70, 3), 101, np.uint8)),
        )
        assert (dark.anomalous, dark.score) == (False, 99)
        assert (bright.anomalous, bright.score) == (True, 101)
        assert set(bright.milliseconds) == {"prepare", "infer"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_rejects_the_part(bundle: Bundle, value: float) -> None:
    detector = Detector(bundle)
    heat = np.zeros((1, 64, 64), np.float32)
    detector.engine = lambda image: (np.array([value], np.float32), heat)  # type: ignore[assignment]
    verdict = detector(np.zeros((30, 30), np.uint8))
    assert verdict.anomalous
    assert "rejected" in (verdict.reason or "")


def test_painting_follows_the_map_and_ignores_what_good_parts_show(bundle: Bundle) -> None:
    with Detector(bundle) as detector:
        image, heat = np.full((100, 200, 3), 128, np.uint8), np.full((64, 64), 50, np.float32)
        assert (detector.paint(image, heat) == image).all()
        heat[:32] = 500
        painted = detector.paint(image, heat)
    assert (painted[60:] == 128).all()
    assert (painted[:40] != 128).any(axis=(0, 1)).all()


# ---------------------------------------------------------------- the stream command


def test_a_line_per_frame_and_a_summary(
    bundle: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, told = stream(
        capsys, "--bundle", bundle.path, "--camera", parts, "--save", tmp_path / "saved"
    )
    assert code == 0
    assert "self-test passed" in told
    assert [line["verdict"] for line in lines[:3]] == ["good", "anomalous", "good"]
    first = lines[0]
    assert first["source"] == str(parts / "0.png")
    assert (first["index"], first["score"], first["threshold"]) == (0, 20, 100)
    assert first["milliseconds"].keys() == {"prepare", "infer"}
    assert time.time() - first["captured_at"] < 600
    summary = lines[3]["summary"]
    assert {k: summary[k] for k in ("frames", "dropped", "anomalous")} == {
        "frames": 3,
        "dropped": 0,
        "anomalous": 1,
    }
    assert 0 < summary["p50_ms"] <= summary["p95_ms"] <= summary["p99_ms"]
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "000000-0-good.png",
        "000001-1-anomalous.png",
        "000002-2-good.png",
    ]


def test_an_unreadable_picture_is_rejected_and_the_stream_goes_on(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "1.png").write_bytes(b"")
    code, lines, _ = stream(capsys, "--bundle", bundle.path, "--camera", parts)
    assert code == 0
    assert [line["verdict"] for line in lines[:3]] == ["good", "anomalous", "good"]
    assert lines[1]["score"] is None
    assert "empty" in lines[1]["reason"]
    assert lines[3]["summary"]["anomalous"] == 1


def test_max_frames_and_a_changed_threshold(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_calibration(bundle, replace(bundle.calibration, threshold=10.0))
    _, lines, _ = stream(capsys, "--bundle", bundle.path, "--camera", parts, "--max-frames", 1)
    assert [line.get("verdict") for line in lines] == ["anomalous", None]


def test_a_full_disk_is_told_and_inspection_goes_on(
    bundle: Bundle,
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, lines, told = stream(
        capsys, "--bundle", bundle.path, "--camera", parts, "--save", tmp_path / "s"
    )
    assert code == 0
    assert lines[-1]["summary"]["frames"] == 3
    assert told.count("No space left on device") == 3


def test_what_a_crop_leaves_uninspected_is_said_once(
    tmp_path: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flawline.runtime.image import Geometry

    cropping = write_tiny_bundle(tmp_path / "crop", geometry=Geometry("shorter-crop", 64, 64, 80))
    _, _, told = stream(capsys, "--bundle", cropping.path, "--camera", parts)
    assert told.count("uninspected") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "{bundle}", "--camera", "/nowhere"], "no such file or folder"),
        (["--bundle", "/nowhere", "--camera", "{parts}"], "python -m export.build"),
        (["--bundle", "{bundle}", "--camera", "{parts}", "--engine", "abacus"], "known: auto, "),
        (["--bundle", "{bundle}", "--camera", "{parts}", "--save", "/proc/x"], "choose another"),
    ],
)
def test_a_users_error_is_one_line_and_exit_2(
    bundle: Bundle,
    parts: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [a.format(bundle=bundle.path, parts=parts) for a in arguments]
    code, lines, told = stream(capsys, *filled)
    assert code == 2
    assert not lines
    assert message in told.splitlines()[-1]
    assert "Traceback" not in told


def test_list_names_every_engine_and_camera(capsys: pytest.CaptureFixture[str]) -> None:
    assert infer_stream.main(["--list"]) == 0
    told = capsys.readouterr().out
    for name in ("onnxruntime", "folder", "video", "usb", "synthetic"):
        assert name in told
    assert "untested on a real camera" in told


def test_a_missing_engine_is_listed_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OnnxRuntime, "missing", staticmethod(lambda: "pip install onnxruntime"))
    infer_stream.main(["--list"])
    assert "missing: pip install onnxruntime" in capsys.readouterr().out


def test_the_summary_is_told_where_the_camera_is_lost(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Folder.__iter__

    def torn(self: Folder) -> Iterator[Frame]:
        for frame, _ in zip(whole(self), range(2), strict=False):
            yield frame
        raise CameraError("camera x: lost")

    monkeypatch.setattr(Folder, "__iter__", torn)
    code, lines, told = stream(capsys, "--bundle", bundle.path, "--camera", parts)
    assert code == 2
    assert lines[-1]["summary"]["frames"] == 2
    assert "camera x: lost" in told


def test_a_full_disk_behind_stdout_is_one_line(bundle: Bundle, parts: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = f"{sys.executable} {SCRIPT} --bundle {bundle.path} --camera {parts} > /dev/full"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stream_cleanly_and_the_script_runs_from_anywhere(
    bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    command = [
        sys.executable,
        str(SCRIPT),
        "--bundle",
        str(bundle.path),
        "--camera",
        "synthetic://?fps=100",
    ]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1] / "src")}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "score" in json.loads(process.stdout.readline())
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["summary"]["frames"] >= 1
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(bundle: Bundle) -> None:
    command = f"{sys.executable} {SCRIPT} --bundle {bundle.path} --camera 'synthetic://?fps=200' | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
