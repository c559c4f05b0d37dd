from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flawline.cameras import CAMERAS, CameraError, open_camera
from flawline.cameras.decode import read_image
from flawline.cameras.live import EndOfStream, LiveCamera, RestartBudget


def encoded(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray) -> Path:
    for name in ("b/2.png", "a/1.png", "a/3.jpg"):
        path = tmp_path / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo, path.suffix))
    return tmp_path / "parts"


# ---------------------------------------------------------------- image files


def test_images_are_read_as_they_are(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(photo, ".png"))
    assert (read_image(path) == photo).all()
    path.write_bytes(encoded(photo[..., 0], ".png"))
    assert (read_image(path) == photo[..., 0]).all()


def test_opaque_alpha_is_dropped_any_other_refused(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.png"
    alpha = np.full((*photo.shape[:2], 1), 255, np.uint8)
    path.write_bytes(encoded(np.concatenate([photo, alpha], 2), ".png"))
    assert (read_image(path) == photo).all()
    alpha[0, 0] = 0
    path.write_bytes(encoded(np.concatenate([photo, alpha], 2), ".png"))
    with pytest.raises(CameraError, match="transparent"):
        read_image(path)


def test_sixteen_bits_need_a_bit_depth(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.png"
    twelve = photo[..., 0].astype(np.uint16) << 4
    path.write_bytes(encoded(twelve, ".png"))
    with pytest.raises(CameraError, match=r"16 bits.*--bits 12"):
        read_image(path)
    assert (read_image(path, bit_depth=12) == photo[..., 0]).all()
    with pytest.raises(CameraError, match="does not fit in 10 bits"):
        read_image(path, bit_depth=10)


def test_exif_rotation_is_applied(tmp_path: Path, photo: np.ndarray) -> None:
    pil = pytest.importorskip("PIL.Image")
    picture = pil.fromarray(photo)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape[:2] == photo.shape[1::-1]


def _with_thumbnail(jpeg: bytes) -> bytes:
    """The JPEG with a whole second JPEG in an APP1 segment, as cameras embed previews."""
    segment = b"\xff\xe1" + (len(jpeg) + 2).to_bytes(2, "big") + jpeg
    return jpeg[:2] + segment + jpeg[2:]


def test_a_truncated_file_is_never_a_grey_picture(tmp_path: Path, photo: np.ndarray) -> None:
    jpeg = encoded(photo, ".jpg")
    for suffix, data in {
        ".jpg": jpeg[: len(jpeg) // 2],
        ".jpeg": _with_thumbnail(jpeg)[:-200],
        ".png": encoded(photo, ".png")[:-50],
        ".bmp": encoded(photo, ".bmp")[:-50],
    }.items():
        path = tmp_path / f"x{suffix}"
        path.write_bytes(data)
        with pytest.raises(CameraError, match="truncated"):
            read_image(path)
    (tmp_path / "whole.jpg").write_bytes(_with_thumbnail(jpeg))
    assert read_image(tmp_path / "whole.jpg").shape == photo.shape


@pytest.mark.parametrize(("data", "message"), [(b"", "empty"), (b"hello", "not an image")])
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(CameraError, match=message):
        read_image(path)
    with pytest.raises(CameraError, match="cannot be read"):
        read_image(tmp_path / "absent.png")


# ---------------------------------------------------------------- folders and videos


def test_a_folder_gives_every_image_in_order(folder: Path) -> None:
    frames = list(open_camera(str(folder)))
    assert [Path(f.source).name for f in frames] == ["1.png", "3.jpg", "2.png"]
    assert [f.index for f in frames] == [0, 1, 2]
    assert all(f.fault is None for f in frames)


def test_an_unreadable_image_is_a_fault_not_a_gap(folder: Path) -> None:
    (folder / "a" / "2.png").write_bytes(b"rubbish")
    frames = list(open_camera(f"folder://{folder}"))
    assert len(frames) == 4
    assert frames[1].image is None
    assert "not an image" in (frames[1].fault or "")


def test_a_single_image_is_a_camera(folder: Path) -> None:
    assert len(list(open_camera(str(folder / "a" / "1.png")))) == 1


def test_a_video_gives_every_frame(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (120, 90))
    for i in range(7):
        writer.write(np.roll(photo, 5 * i, 1))
    writer.release()
    camera = open_camera(f"file://{path}")
    frames = list(camera)
    camera.close()
    assert [f.index for f in frames] == list(range(7))
    assert frames[0].image is not None
    assert np.abs(frames[0].image.astype(int) - photo).mean() < 8


def test_a_damaged_video_is_told_not_ended_early(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (120, 90))
    for i in range(40):
        writer.write(np.roll(photo, 5 * i, 1))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = list(open_camera(str(path)))
    assert 1 < len(frames) < 40
    assert frames[-1].image is None
    assert "cannot be decoded" in (frames[-1].fault or "")
    assert all(f.image is not None for f in frames[:-1])


def test_a_broken_link_is_a_fault_and_a_linked_folder_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "c").symlink_to(folder / "a")
    (folder / "d.png").symlink_to(tmp_path / "gone.png")
    frames = list(open_camera(str(folder)))
    assert len(frames) == 3 + 2 + 1
    assert [Path(f.source).name for f in frames if f.fault] == ["d.png"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/nope/nothing", "no such file"),
        ("webcam://0", "known: folder, video, usb, synthetic"),
        (
            "synthetic://?colour=red",
            r"'colour' is unknown; known options: width .*height .*fps .*frames",
        ),
        ("synthetic://?fps=fast", r"fps=fast: not a number; known options: width"),
        ("synthetic://?fps=0", "fps must be above 0"),
        ("usb://0?speed=1", r"'speed' is unknown; known options: width .*height .*fps"),
    ],
)
def test_a_wrong_uri_is_told_with_what_is_known(uri: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(uri)


def test_an_empty_folder_and_a_broken_video_are_told(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no image in this folder"):
        open_camera(str(tmp_path))
    (tmp_path / "x.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(CameraError, match="cannot open this video"):
        open_camera(str(tmp_path / "x.mp4"))


def test_a_usb_camera_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(CameraError, match="ls /dev/video"):
        next(iter(open_camera("usb:///dev/video63")))


@pytest.mark.parametrize("scheme", CAMERAS)
def test_every_listed_camera_resolves(scheme: str) -> None:
    from pkgutil import resolve_name

    camera = resolve_name(CAMERAS[scheme])
    assert camera.live in (True, False)
    assert camera.untested is None or isinstance(camera.untested, str)


# ---------------------------------------------------------------- live sources


def test_synthetic_gives_its_frames_and_ends() -> None:
    camera = open_camera("synthetic://?width=64&height=48&fps=500&frames=20")
    frames = list(camera)
    assert frames[-1].index == 19
    assert frames[0].image is not None
    assert frames[0].image.shape == (48, 64, 3)
    assert len(frames) + camera.dropped == 20


class Scripted(LiveCamera):
    """A live camera that plays a list: an int is a frame of that grey, an exception is raised, a callable is called."""

    def __init__(self, *opens: list[Any], **options: Any) -> None:
        self.opens = list(opens)
        super().__init__("scripted://", **options)

    def _open(self) -> list[Any]:
        if not self.opens:
            raise CameraError("camera scripted://: gone")
        return list(self.opens.pop(0))

    def _grab(self, handle: list[Any]) -> np.ndarray:
        item = handle.pop(0) if handle else EndOfStream()
        if isinstance(item, BaseException):
            raise item
        if callable(item):
            item = item()
        return np.full((4, 4), item, np.uint8)

    def _release(self, handle: list[Any]) -> None:
        pass


def test_the_newest_frame_wins_and_drops_are_counted() -> None:
    seen, go = threading.Event(), threading.Event()

    def wait_then(grey: int) -> Any:
        def grab() -> int:
            assert seen.wait(5)
            return grey

        return grab

    camera = Scripted([1, wait_then(2), 3, 4, lambda: (go.set(), 5)[1]], stall_s=5)
    frames = iter(camera)
    assert next(frames).image[0, 0] == 1
    seen.set()
    assert go.wait(5)
    while camera.captured < 5:
        time.sleep(0.001)
    assert next(frames).image[0, 0] == 5
    assert camera.dropped == 3
    assert next(frames, None) is None


def test_a_failing_camera_is_opened_again() -> None:
    camera = Scripted([1, CameraError("torn")], [2])
    assert [int(f.image[0, 0]) for f in camera if f.image is not None][-1] == 2
    assert camera.reconnects == 1


def test_whatever_a_driver_raises_reaches_the_consumer_and_the_budget_ends_it() -> None:
    camera = Scripted([1, RuntimeError("driver bug")], restarts=2)
    with pytest.raises(CameraError, match=r"given up after 2 attempts"):
        list(camera)


def test_a_hanging_driver_is_left_behind() -> None:
    hang = threading.Event()
    camera = Scripted([1, lambda: hang.wait(10) and 9], [2], stall_s=0.2)
    frames = [int(f.image[0, 0]) for f in camera if f.image is not None]
    hang.set()
    assert frames == [1, 2]


def test_closing_ends_a_waiting_consumer() -> None:
    hang = threading.Event()
    camera = Scripted([1, lambda: hang.wait(10) and 9], stall_s=5)
    threading.Timer(0.1, camera.close).start()
    assert len(list(camera)) == 1
    hang.set()


def test_closing_during_a_restart_ends_at_once_and_opens_nothing() -> None:
    camera = Scripted([1, CameraError("torn")], [2])
    camera._budget.backoff = lambda: 30.0  # type: ignore[method-assign]
    threading.Timer(0.2, camera.close).start()
    frames = list(camera)
    assert len(frames) == 1
    assert camera.opens == [[2]]


def test_a_driver_that_fails_twice_is_told_with_the_first_cause() -> None:
    class Twice(Scripted):
        def _release(self, handle: list[Any]) -> None:
            raise RuntimeError("again")

    with pytest.raises(CameraError, match="torn"):
        list(Twice([1, CameraError("torn")], restarts=0))


def test_the_restart_budget_forgets() -> None:
    budget = RestartBudget(2, window=10)
    assert [budget.spend(t) for t in (0, 1, 2, 9, 10.5)] == [True, True, False, False, True]
    assert 0.1 <= budget.backoff() <= 2
