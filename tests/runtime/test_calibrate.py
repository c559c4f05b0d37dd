from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_tiny_bundle

from flawline.cameras.folder import Folder
from flawline.runtime.bundle import PREVIOUS_CALIBRATION, Bundle, read_bundle
from flawline.runtime.calibrate import main
from flawline.runtime.trained_images import content_hash

ROOT = Path(__file__).resolve().parents[2]
RATE = ["--false-alarm-rate", "0.1"]


def command(bundle: Bundle, camera: Path | str) -> list[str]:
    return ["--bundle", str(bundle.path), "--images", str(camera), *RATE]


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
    flags = command(bundle, good_parts)
    assert main([*flags, "--dry-run"]) == 0
    assert read_bundle(bundle.path).calibration == bundle.calibration
    assert main(flags) == 0
    calibration = read_bundle(bundle.path).calibration
    assert 47 < calibration.threshold < 48  # the 28th of 30 scores: ceil(31 x 0.9)
    assert (calibration.false_alarm_rate, calibration.good_images) == (0.1, 30)
    printed = capsys.readouterr().out
    assert "from 200 good images: rejects 0 of these 30 good parts" in printed
    assert "from 30 good images" in printed
    assert "takes: 19 for 5 %, 99 for 1 %, 199 for 0.5 %" in printed
    assert "held-out" not in printed
    assert "29.png\n" in printed


def test_the_pages_of_one_file_are_good_parts_of_their_own(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = [np.full((32, 32), 20 + i, np.uint8) for i in range(30)]
    path = tmp_path / "good.tif"
    cv2.imwritemulti(str(path), pages)
    assert main(command(bundle, path)) == 0
    calibration = read_bundle(bundle.path).calibration
    assert 47 < calibration.threshold < 48
    assert calibration.good_images == 30
    assert f"{path} page 30\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--false-alarm-rate", "0.01"], "needs 99 good images, there are 30"),
        ([], "needs 99 good images, there are 30; give more, or --false-alarm-rate 0.0323"),
        (["--false-alarm-rate", "0.1", "--max-frames", "5"], "needs 9 good images, there are 5"),
        (["--camera", "/nowhere"], "no such file or folder"),
        (["--bundle", "/nowhere"], "there is no such folder"),
        (["--bundle", __file__], "is not a bundle (it is a file and no folder); pass the folder"),
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
    assert not (bundle.path / PREVIOUS_CALIBRATION).exists()


def test_an_unreadable_image_is_not_left_out_silently(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (good_parts / "07.png").write_bytes(b"")
    assert main(command(bundle, good_parts)) == 2
    assert "07.png: the file is empty" in capsys.readouterr().err


def test_an_image_of_unknown_bit_depth_is_an_error_that_names_it(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = cv2.imencode(".png", np.full((32, 32), 400, np.uint16))[1].tobytes()
    (good_parts / "07.png").write_bytes(deep)
    assert main(command(bundle, good_parts)) == 2
    assert "07.png: the image has 16 bits per pixel" in capsys.readouterr().err


@pytest.mark.parametrize("camera", ["synthetic://", "{parts}?watch=1"])
def test_a_camera_that_does_not_end_needs_a_number_of_frames(
    camera: str, bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = camera.format(parts=good_parts)
    assert main(["--bundle", str(bundle.path), "--camera", uri]) == 2
    assert (
        "does not end by itself; give the number of frames with --max-frames 300"
        in capsys.readouterr().err
    )


def test_a_bundle_that_cannot_be_written_is_one_line(
    bundle: Bundle,
    good_parts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flawline.runtime.bundle.write_atomically", denied)
    assert main(command(bundle, good_parts)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("cannot be written (Permission denied); check the permissions")


def test_a_bundle_that_cannot_be_written_is_found_before_parts_are_scored(
    bundle: Bundle,
    good_parts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(_: Path) -> None:
        raise OSError(30, "Read-only file system")

    def unexpected(*_: object) -> None:
        raise AssertionError("the parts would pass the camera in vain")

    monkeypatch.setattr("flawline.runtime.calibrate.make_writable", denied)
    monkeypatch.setattr("flawline.runtime.calibrate.score_frames", unexpected)
    assert main(command(bundle, good_parts)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"flawline calibrate: {bundle.path} cannot be written (Read-only file system); check the "
        f"permissions, or use --dry-run"
    )


def test_a_watched_folder_calibrates(bundle: Bundle, good_parts: Path) -> None:
    camera = f"{good_parts}?watch=1&settle=0"
    assert main([*command(bundle, camera), "--max-frames", "12"]) == 0
    assert read_bundle(bundle.path).calibration.good_images == 12


def test_a_live_camera_calibrates(
    bundle: Bundle, good_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All frames of the synthetic camera have the same score.
    monkeypatch.setattr(Folder, "live", True)
    assert main([*command(bundle, good_parts), "--max-frames", "12"]) == 0
    assert read_bundle(bundle.path).calibration.good_images == 12


def test_frames_of_one_video_are_named_by_their_number(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="needs the video extra")
    path = tmp_path / "good.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for i in range(12):
        writer.write(np.full((64, 64, 3), 20 + 5 * i, np.uint8))
    writer.release()
    assert main(command(bundle, path)) == 0
    assert f"{path} frame 11\n" in capsys.readouterr().out


# ---------------------------------------------------------------- what is written


def test_the_replaced_threshold_is_stored_and_comes_back(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle.path / "calibration.json").read_bytes()
    assert main(command(bundle, good_parts)) == 0
    new = read_bundle(bundle.path).calibration
    # The same calibration again does not replace the previous one.
    assert main(command(bundle, good_parts)) == 0
    assert (bundle.path / PREVIOUS_CALIBRATION).read_bytes() == before
    undo = ["--bundle", str(bundle.path), "--undo"]
    assert main(undo) == 0
    assert (bundle.path / "calibration.json").read_bytes() == before
    assert "threshold 100 for 1.0% false alarms" in capsys.readouterr().out
    assert main(undo) == 0
    assert read_bundle(bundle.path).calibration == new


def test_undo_replaces_a_damaged_threshold(bundle: Bundle, good_parts: Path) -> None:
    assert main(command(bundle, good_parts)) == 0
    (bundle.path / "calibration.json").write_text("{")
    assert main(["--bundle", str(bundle.path), "--undo"]) == 0
    assert read_bundle(bundle.path).calibration == bundle.calibration


def test_undo_does_not_promise_a_newer_threshold_that_there_is_not(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undo = ["--bundle", str(bundle.path), "--undo"]
    current = bundle.path / "calibration.json"
    assert main(command(bundle, good_parts)) == 0
    current.unlink()
    lasts = []
    for _ in range(2):
        assert main(undo) == 0
        lasts.append(capsys.readouterr().out.splitlines()[-1])
        assert read_bundle(bundle.path).calibration == bundle.calibration
    assert lasts == [
        f"wrote {current}, which was missing: there is no newer threshold to bring back",
        f"{current} is the previous threshold already: there is no other to bring back",
    ]
    assert main(command(bundle, good_parts)) == 0
    current.write_text("{")
    assert main(undo) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "which was damaged (" in last
    assert "there is no newer threshold to bring back" in last
    assert main(command(bundle, good_parts)) == 0
    assert main(undo) == 0
    assert capsys.readouterr().out.endswith("; --undo again brings the newer threshold back\n")


def test_nothing_to_undo_is_one_line(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(bundle.path), "--undo"]) == 2
    assert "its threshold was never replaced" in capsys.readouterr().err
    (bundle.path / PREVIOUS_CALIBRATION).write_text("[]")
    assert main(["--bundle", str(bundle.path), "--undo"]) == 2
    assert "calibration.previous.json: is not a JSON object" in capsys.readouterr().err
    assert read_bundle(bundle.path).calibration == bundle.calibration


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--undo", "--dry-run"], "--undo takes only --bundle"),
        (["--undo", "--camera", "x"], "--undo takes only --bundle"),
        ([], "--images with a folder of good parts is needed, --camera, or --undo"),
        (["--camera", ""], "argument --camera/--images: is empty; check that its shell variable"),
        (["--camera", "x", "--bundle", ""], "argument --bundle: is empty"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    flags: list[str], message: str, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--bundle", str(bundle.path), *flags])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_equal_images_are_refused_however_many_they_are(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cv2.imencode(".png", np.full((32, 32), 20, np.uint8))[1].tobytes()
    for i in range(100):
        (tmp_path / f"{i:02d}.png").write_bytes(data)
    assert main(["--bundle", str(bundle.path), "--camera", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "the 100 good images are all equal" in line
    assert read_bundle(bundle.path).calibration == bundle.calibration


def run(arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a shell, and append what follows it there."""
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m flawline.runtime.calibrate {arguments}"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("streams", "code", "message"),
    [
        ("| head -n 0", 0, ""),
        (">&- 2>&-", 0, ""),
        ("> /dev/full 2>/dev/full", 2, ""),
        ("> /dev/full", 2, "calibration.json, but the report cannot be printed (No space left"),
    ],
)
def test_a_threshold_is_written_whatever_happens_to_the_report(
    streams: str, code: int, message: str, bundle: Bundle, good_parts: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    flags = " ".join(command(bundle, good_parts))
    done = run(f"{flags} {streams}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert message in done.stderr
    assert read_bundle(bundle.path).calibration.good_images == 30


def test_sigterm_changes_nothing_and_is_one_line(bundle: Bundle) -> None:
    camera = "synthetic://?fps=20"
    flags = ["--bundle", str(bundle.path), "--camera", camera, "--max-frames", "100000"]
    words = [sys.executable, "-m", "flawline.runtime.calibrate", *flags]
    with subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        # Lines about the engine come first.
        while process.stderr.readline() != "50 frames scored\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not out
    assert err.splitlines()[-1] == "interrupted; the threshold was not changed"
    assert "Traceback" not in err


SIGNALS_AFTER_THE_WRITE = """
import os, signal, sys
from flawline.runtime import calibrate

write = calibrate.write_calibration

def write_and_interrupt(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)

calibrate.write_calibration = write_and_interrupt
sys.exit(calibrate.main(sys.argv[1:]))
"""


def test_a_signal_after_the_write_does_not_deny_it(bundle: Bundle, good_parts: Path) -> None:
    # In a process of its own, so that a signal that is not ignored ends that one.
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS_AFTER_THE_WRITE, *command(bundle, good_parts)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not changed" not in done.stderr
    assert "wrote" in done.stdout


def test_copies_of_an_image_count_once(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(good_parts.iterdir()):
        for copy in range(3):
            path.with_stem(f"{path.stem}-{copy}").write_bytes(path.read_bytes())
    assert main(["--bundle", str(bundle.path), "--camera", str(good_parts)]) == 2
    text = capsys.readouterr().err
    assert "note: 90 of 120 images are copies of others; not counted" in text
    assert "needs 99 good images, there are 30" in text
    assert main(command(bundle, good_parts)) == 0
    assert read_bundle(bundle.path).calibration.good_images == 30


# ---------------------------------------------------------------- before a part is judged


@pytest.fixture
def no_part_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("the engine would be opened and the parts judged in vain")

    monkeypatch.setattr("flawline.runtime.calibrate.Detector", unexpected)


@pytest.mark.usefixtures("no_part_is_judged")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--false-alarm-rate", "1"], "false-alarm rate 1 is not between 0 and 1"),
        (["--false-alarm-rate", "nan"], "false-alarm rate nan is not between 0 and 1"),
        ([], "needs 99 good images, there are 30; give more, or --false-alarm-rate 0.0323"),
        (["--max-frames", "300"], "needs 99 good images, there are 30"),
        ([*RATE, "--max-frames", "5"], "needs 9 good images, there are 5"),
    ],
)
def test_what_no_number_of_good_parts_can_repair_is_refused_first(
    flags: list[str],
    message: str,
    bundle: Bundle,
    good_parts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--bundle", str(bundle.path), "--images", str(good_parts), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.usefixtures("no_part_is_judged")
def test_pages_are_counted_before_a_part_is_judged(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "good.tif"
    cv2.imwritemulti(str(path), [np.full((32, 32), 20 + i, np.uint8) for i in range(30)])
    assert main(["--bundle", str(bundle.path), "--images", str(path)]) == 2
    assert "needs 99 good images, there are 30" in capsys.readouterr().err


# ---------------------------------------------------------------- images of the training


@pytest.fixture
def trained(tmp_path: Path, good_parts: Path) -> Bundle:
    """A bundle whose detector was trained on three of the good parts."""
    hashes = []
    for name in ("03.png", "11.png", "25.png"):
        hashes.append(content_hash(good_parts / name))
    return write_tiny_bundle(tmp_path / "trained", trained_images=tuple(sorted(hashes)))


@pytest.mark.usefixtures("no_part_is_judged")
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_images_of_the_training_set_no_threshold(
    flags: list[str], trained: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A copy is the same image, whatever its name.
    (good_parts / "03.png").rename(good_parts / "new.png")
    assert main([*command(trained, good_parts), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"flawline calibrate: 3 of 30 images were trained on, such as {good_parts}/11.png; "
        f"a threshold from such images would be too low; take new images of good parts"
    )
    assert read_bundle(trained.path).calibration == trained.calibration


def test_images_of_the_training_in_a_watched_folder_set_no_threshold(
    trained: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*command(trained, f"{good_parts}?watch=1&settle=0"), "--max-frames", "30"]
    assert main(flags) == 2
    assert f"{good_parts}/03.png was trained on; " in capsys.readouterr().err
    assert read_bundle(trained.path).calibration == trained.calibration


def test_other_good_parts_set_the_threshold(trained: Bundle, good_parts: Path) -> None:
    for name in ("03.png", "11.png", "25.png"):
        (good_parts / name).unlink()
    assert main(command(trained, good_parts)) == 0
    assert read_bundle(trained.path).calibration.good_images == 27
    # Only the frames that are used count.
    assert main([*command(trained, good_parts), "--max-frames", "9"]) == 0


def test_the_record_of_the_training_is_optional(trained: Bundle, bundle: Bundle) -> None:
    assert len(read_bundle(trained.path).manifest.trained_images) == 3
    assert read_bundle(bundle.path).manifest.trained_images == ()
    assert "trained_images" not in (bundle.path / "manifest.json").read_text()


@pytest.mark.parametrize("name", ["scratch", "NG", "ground_truth"])
def test_folders_of_defective_parts_are_refused(
    name: str, bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = good_parts.parent / "test"
    (folder / name / "inner").mkdir(parents=True)
    good_parts.rename(folder / "good")
    (folder / "good" / "00.png").rename(folder / name / "inner" / "00.png")
    assert main(command(bundle, folder)) == 2
    message = f"{folder}: {name}/inner shows that not every image here is a good part"
    assert message in capsys.readouterr().err
    assert read_bundle(bundle.path).calibration == bundle.calibration
    # A folder that is given by name may have any name.
    good = folder / "false-rejects"
    (folder / "good").rename(good)
    assert main(command(bundle, good)) == 0
