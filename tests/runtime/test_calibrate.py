from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.calibrate import main


@pytest.fixture
def good_parts(tmp_path: Path) -> Path:
    """30 images of grey 20 to 49: with the tiny model, the score is the grey value."""
    folder = tmp_path / "good"
    folder.mkdir()
    for i in range(30):
        data = cv2.imencode(".png", np.full((32, 32), 20 + i, np.uint8))[1].tobytes()
        (folder / f"{i:02d}.png").write_bytes(data)
    return folder


def test_the_camera_is_checked_before_the_engine_is_opened(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("minutes of compiling would be lost")

    monkeypatch.setattr("flawline.runtime.calibrate.Detector", unexpected)
    for camera in ("/nowhere", "synthetic://"):
        assert main(["--bundle", str(bundle.path), "--camera", camera]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_the_threshold_follows_the_good_parts(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--bundle",
        str(bundle.path),
        "--images",
        str(good_parts),
        "--false-alarm-rate",
        "0.1",
    ]
    assert main([*command, "--dry-run"]) == 0
    assert read_bundle(bundle.path).calibration == bundle.calibration
    assert main(command) == 0
    calibration = read_bundle(bundle.path).calibration
    assert 47 < calibration.threshold < 48  # the 28th of 30 scores: ceil(31 x 0.9)
    assert (calibration.false_alarm_rate, calibration.good_images) == (0.1, 30)
    printed = capsys.readouterr().out
    assert "rejects 0 of these 30 good parts" in printed
    assert "29.png" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--false-alarm-rate", "0.01"], "needs 99 held-out good images, there are 30"),
        (["--camera", "/nowhere"], "no such file or folder"),
        (["--bundle", "/nowhere"], "there is no such folder"),
    ],
)
def test_a_users_error_is_one_line_and_changes_nothing(
    bundle: Bundle,
    good_parts: Path,
    change: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--bundle", str(bundle.path), "--camera", str(good_parts), *change]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert read_bundle(bundle.path).calibration == bundle.calibration


def test_an_unreadable_image_is_not_left_out_silently(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (good_parts / "07.png").write_bytes(b"")
    assert main(["--bundle", str(bundle.path), "--camera", str(good_parts)]) == 2
    assert "07.png: the file is empty" in capsys.readouterr().err


def test_an_image_of_unknown_bit_depth_is_an_error_that_names_it(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = cv2.imencode(".png", np.full((32, 32), 400, np.uint16))[1].tobytes()
    (good_parts / "07.png").write_bytes(deep)
    assert main(["--bundle", str(bundle.path), "--camera", str(good_parts)]) == 2
    assert "07.png: the image has 16 bits per pixel" in capsys.readouterr().err


def test_a_live_camera_needs_a_number_of_frames(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(bundle.path), "--camera", "synthetic://"]) == 2
    assert "give the number of frames with --max-frames 300" in capsys.readouterr().err


def test_a_bundle_that_cannot_be_written_is_one_line(
    bundle: Bundle,
    good_parts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flawline.runtime.bundle.write_atomically", denied)
    assert main(["--bundle", str(bundle.path), "--camera", str(good_parts)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("cannot be written (Permission denied); check the permissions")


def test_a_live_camera_calibrates(bundle: Bundle) -> None:
    uri = "synthetic://?fps=200"
    assert main(["--bundle", str(bundle.path), "--camera", uri, "--max-frames", "12"]) == 0
    assert read_bundle(bundle.path).calibration.good_images == 12
