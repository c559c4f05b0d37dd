"""URIs, folders and videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline import cameras
from flawline.cameras import CameraError, open_camera
from flawline.cameras.usages import usages
from flawline.cameras.usb import Usb
from flawline.uris import quote_path


def encoded(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray) -> Path:
    for name in ("b/2.png", "a/1.png", "a/3.jpg"):
        path = tmp_path / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo, path.suffix))
    return tmp_path / "parts"


@pytest.fixture
def video(tmp_path: Path, photo: np.ndarray) -> Path:
    """40 frames, each moved to the right."""
    path = tmp_path / "x.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (120, 90))
    for index in range(40):
        writer.write(np.roll(photo, 5 * index, 1))
    writer.release()
    return path


def test_a_folder_gives_every_image_in_order(folder: Path) -> None:
    frames = list(open_camera(str(folder)))
    assert [Path(frame.source).name for frame in frames] == ["1.png", "3.jpg", "2.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert all(frame.fault is None for frame in frames)


def test_an_unreadable_image_is_a_fault_not_a_gap(folder: Path) -> None:
    (folder / "a" / "2.png").write_bytes(b"rubbish")
    frames = list(open_camera(f"folder://{folder}"))
    assert len(frames) == 4
    assert frames[1].image is None
    assert "not an image" in (frames[1].fault or "")


def test_a_single_image_is_a_camera(folder: Path) -> None:
    assert len(list(open_camera(str(folder / "a" / "1.png")))) == 1


def test_a_question_mark_in_a_file_name_starts_no_options(folder: Path, photo: np.ndarray) -> None:
    path = folder / "is it good?.png"
    path.write_bytes(encoded(photo, ".png"))
    assert len(list(open_camera(str(path)))) == 1


def test_a_uri_may_hold_any_character_of_a_path(folder: Path, photo: np.ndarray) -> None:
    path = folder / "is it good? #1 100%.png"
    path.write_bytes(encoded(photo, ".png"))
    (frame,) = open_camera(f"folder://{quote_path(path)}?bits=12")
    assert frame.source == str(path)
    # A number sign has no meaning, so that nothing is dropped silently.
    renamed = path.rename(folder / "good#1.png")
    (frame,) = open_camera(f"folder://{renamed}")
    assert frame.source == str(renamed)


def test_an_example_of_every_camera_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cameras.CAMERAS, "gone", "flawline.cameras.gone:Gone")
    expected = (
        "/data/images, folder:///data/images?watch=1, /data/line.mp4, usb://0, /dev/video0, "
        "rtsp://192.168.0.10/stream1, rtsps://192.168.0.10/stream1?ca=camera.pem, "
        "gst://v4l2src ! image/jpeg ! jpegdec, csi://0, basler://SERIAL, gige://SERIAL?cti=FILE, "
        "aravis://SERIAL, synthetic://?fps=25&frames=100, gone://"
    )
    assert usages() == expected


def test_sixteen_bit_files_carry_the_declared_bit_depth(folder: Path, photo: np.ndarray) -> None:
    path = folder / "a" / "1.png"
    path.write_bytes(encoded(photo[..., 0].astype(np.uint16) << 4, ".png"))
    (undeclared,) = open_camera(str(path))
    assert undeclared.bit_depth is None
    assert undeclared.image is not None
    assert undeclared.image.dtype == np.uint16
    (declared,) = open_camera(f"{path}?bits=12")
    assert declared.bit_depth == 12
    (wrong,) = open_camera(f"{path}?bits=10")
    assert wrong.image is None
    assert "does not fit in 10 bits" in (wrong.fault or "")
    (eight,) = open_camera(f"{folder / 'b' / '2.png'}?bits=12")
    assert eight.bit_depth == 8


def test_a_video_gives_every_frame(video: Path, photo: np.ndarray) -> None:
    with open_camera(f"file://{video}") as camera:
        frames = list(camera)
    assert [frame.index for frame in frames] == list(range(40))
    assert frames[0].image is not None
    assert np.abs(frames[0].image.astype(int) - photo).mean() < 8


def test_a_damaged_video_is_a_fault_not_an_early_end(video: Path) -> None:
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    frames = list(open_camera(str(video)))
    assert 1 < len(frames) < 40
    assert frames[-1].image is None
    assert "damaged or cut off here" in (frames[-1].fault or "")
    # The last packet before the end is not whole.
    assert all(frame.image is not None for frame in frames[:-2])


def test_a_stopped_video_is_not_reported_as_damaged(video: Path) -> None:
    camera = open_camera(str(video))
    frames = []
    for frame in camera:
        frames.append(frame)
        camera.stop()
    assert len(frames) == 1
    assert frames[0].fault is None


def test_a_broken_link_is_a_fault_and_a_linked_folder_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "a").rename(tmp_path / "elsewhere")
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    (folder / "d.png").symlink_to(tmp_path / "gone.png")
    frames = list(open_camera(str(folder)))
    assert len(frames) == 3 + 1
    assert [Path(frame.source).name for frame in frames if frame.fault] == ["d.png"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/nope/nothing", "no such file or folder; check the path"),
        ("folder:///nope/nothing", "no such file or folder; check the path"),
        ("video:///nope/nothing", "no such file; check the path"),
        ("webcam://0", "known: folder, video, usb, .*synthetic"),
        (
            "synthetic://?colour=red",
            r"option 'colour' is unknown; known options: .*width .*height .*fps .*frames",
        ),
        (
            "synthetic://?fps=fast",
            r"fps=fast: not a number; fps \(float, default 25.0\): frames per second[^;]*$",
        ),
        ("synthetic://?fps=", r"fps=: not a number"),
        ("synthetic://?width=6.5", r"width=6.5: not a whole number"),
        ("synthetic://?fps=0", "fps must be from 1 to 1000"),
        ("synthetic://?width=1000000&height=1000000", "width and height must be from 16 to 8192"),
        ("synthetic://?fps=25#frames=3", "fps=25#frames=3: not a number"),
        ("synthetic://?fps=25&fps=30", "option 'fps' is given twice; leave one of them out"),
        ("{folder}?bits=12&bits=10", "option 'bits' is given twice"),
        ("http://[::1", "camera 'http' is unknown; known: folder"),
        ("usb://[::1?fps=x", "fps=x: not a whole number"),
        ("usb://0?width=-640", "width must be at least 1"),
        ("usb://0?fps=29.97", "fps=29.97: not a whole number"),
        ("usb://0?speed=1", r"'speed' is unknown; known options: .*width .*height .*fps"),
        ("{folder}?bits=17", "bits=17 is not a whole number from 8 to 16"),
        ("video://{folder}/a/1.png?bits=9", r"known options: name \(str, default None\)"),
        ("synthetic://?name=", "name must be 1 to 24 letters, digits, dots, hyphens and under"),
        ("synthetic://?name=left/right", "name must be 1 to 24 letters"),
    ],
)
def test_a_wrong_uri_is_an_error_that_names_what_is_known(
    uri: str, message: str, folder: Path
) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(uri.format(folder=folder))


def test_an_empty_folder_and_a_broken_video_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no image in this folder"):
        open_camera(str(tmp_path))
    (tmp_path / "x.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(CameraError, match="cannot open this video"):
        open_camera(str(tmp_path / "x.mp4"))


def test_a_camera_whose_package_is_absent_is_an_error_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Usb, "missing", classmethod(lambda cls: "pip install v4l"))
    with pytest.raises(CameraError, match=r"^camera usb://0: pip install v4l$"):
        open_camera("usb://0")
    monkeypatch.setitem(cameras.CAMERAS, "gone", "flawline.cameras.gone:Gone")
    with pytest.raises(CameraError, match=r"No module named 'flawline\.cameras\.gone'"):
        open_camera("gone://0")
