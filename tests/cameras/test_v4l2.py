"""Streams of Video4Linux: settings that are read back, time stamps, lost and damaged frames."""

from __future__ import annotations

import dataclasses
import errno
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from fakes.clock import FakeClock
from fakes.copies import memory_per_image
from fakes.v4l2 import WAIT_S, FakeDevice, SimulatedCamera, connect

from flawline.cameras import CameraError, Frame, capture, events, open_camera, usb
from flawline.cameras import v4l2_calls as calls
from flawline.cameras.events import CameraEvent
from flawline.cameras.usb import Usb, UsbOptions
from flawline.cameras.v4l2_settings import Wanted
from flawline.cameras.v4l2_stream import BufferStream

GREY = {"GREY": [(64, 48)]}
PICTURE = bytes(range(64)) * 48
# Long, because this machine may be busy.
LIMITS = UsbOptions(first_frame=60, stall=60, max_age=20)


class Watched:
    """An open camera whose frames are taken by a thread of their own, with its events."""

    def __init__(self, camera: Usb) -> None:
        self.camera = camera
        self.events: list[CameraEvent] = []
        self.camera.on_event = self.events.append
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            for frame in self.camera:
                with self._changed:
                    self.frames.append(frame)
                    self._changed.notify_all()
        except CameraError as error:
            self.error = error

    def wait_for(self, count: int) -> Frame:
        """Wait for so many frames; return the last one."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.frames) >= count, WAIT_S), self.error
            return self.frames[count - 1]

    def wait_until(self, is_so: Callable[[], bool], clock: FakeClock | None = None) -> None:
        """Wait until something is so; the seconds of a clock pass meanwhile."""
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.002)
            if clock is not None:
                clock.advance(0.5)

    def close(self) -> None:
        self.camera.close()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def texts(self, name: str) -> list[str]:
        return [event.text for event in self.events if event.name == name]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watched]]:
    opened: list[Watched] = []
    monkeypatch.setattr(usb, "POLL_S", 0.01)

    def watch(camera: SimulatedCamera, clock: FakeClock | None = None, **options: Any) -> Watched:
        path = connect(camera, monkeypatch).removeprefix("usb://")
        opened.append(Watched(Usb(path, dataclasses.replace(LIMITS, **options), clock)))
        return opened[-1]

    yield watch
    for watched in opened:
        watched.close()


# ---------------------------------------------------------------- requests


def test_the_requests_are_those_of_the_kernel() -> None:
    # From linux/videodev2.h, as a C compiler evaluates them on x86-64 and ARM64.
    expected = {
        "QUERYCAP": 0x80685600,
        "ENUM_FMT": 0xC0405602,
        "G_FMT": 0xC0D05604,
        "S_FMT": 0xC0D05605,
        "REQBUFS": 0xC0145608,
        "QUERYBUF": 0xC0585609,
        "QBUF": 0xC058560F,
        "DQBUF": 0xC0585611,
        "STREAMON": 0x40045612,
        "STREAMOFF": 0x40045613,
        "G_PARM": 0xC0CC5615,
        "S_PARM": 0xC0CC5616,
        "ENUM_FRAMESIZES": 0xC02C564A,
        "ENUM_FRAMEINTERVALS": 0xC034564B,
    }
    for name, number in expected.items():
        assert getattr(calls, name) == number, name
    places = {"seconds": 24, "sequence": 56, "memory": 60, "m": 64, "length": 72}
    for name, place in places.items():
        assert getattr(calls.Buffer, name).offset == place
    assert calls.PixelsOfPlanes.num_planes.offset == 180
    assert calls.Format.fmt.offset == 8


# ---------------------------------------------------------------- settings


def error_of(camera: SimulatedCamera, options: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the message of a camera that cannot be used with these options."""
    uri = f"{connect(camera, monkeypatch)}?{options}"
    with open_camera(uri) as opened, pytest.raises(CameraError) as caught:
        next(iter(opened))
    assert not any(device.is_open for device in camera.opened)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_the_driver_gives_is_read_back_and_reported(watch: Any) -> None:
    camera = SimulatedCamera()
    watched = watch(camera)
    camera.deliver(bytes(64 * 48 * 2))
    assert watched.wait_for(1).image.shape == (48, 64, 3)
    assert watched.texts(events.SETTINGS) == [
        "camera usb:///dev/null: gives YUYV 64x48, 30 frames per second"
    ]


@pytest.mark.parametrize("kind", [calls.CAPTURE, calls.CAPTURE_PLANES])
def test_what_is_requested_is_set(kind: int, watch: Any) -> None:
    camera = SimulatedCamera(kind=kind)
    watched = watch(camera, pixel_format="MJPG", width=128, height=96, fps=15)
    camera.deliver(cv2.imencode(".jpg", np.zeros((96, 128), np.uint8))[1].tobytes())
    assert watched.wait_for(1).image.shape == (96, 128)
    assert (camera.name, camera.size, camera.rate) == ("MJPG", (128, 96), 15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "pixel_format=GREY",
            "gives YUYV 64x48 instead of pixel_format=GREY; it offers YUYV of 64x48, 32x24; MJPG "
            "of 64x48, 128x96$",
        ),
        ("width=640&height=480", "gives YUYV 64x48 instead of width=640, height=480; it offers "),
        ("pixel_format=MJPG&width=32", "gives MJPG 64x48 instead of pixel_format=MJPG, width=32; "),
        (
            "fps=60",
            "gives 30 frames per second instead of 60; for YUYV 64x48 it offers 30, 15$",
        ),
        ("bits=12", "gives YUYV 64x48, 30 frames per second, of 8 bits; leave out bits=12$"),
    ],
)
def test_what_is_requested_and_not_given_is_an_error(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = error_of(SimulatedCamera(), options, monkeypatch)
    pattern = pytest.RaisesExc(CameraError, match=message)
    assert pattern.matches(CameraError(error)), error


def test_formats_with_the_same_sizes_are_listed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(8 * number, 8) for number in range(1, 15)]
    camera = SimulatedCamera({"YUYV": [(8, 8)], "GREY": sizes, "Y10": sizes, "H264": sizes})
    error = error_of(camera, "pixel_format=MJPG", monkeypatch)
    assert error.endswith(
        "YUYV of 8x8; GREY, Y10 of " + ", ".join(f"{width}x8" for width, _ in sizes[:12]) + ", ..."
    )


def test_ranges_are_listed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = SimulatedCamera({"GREY": [(32, 24), (640, 480)]})
    camera.has_ranges = True
    error = error_of(camera, "width=700", monkeypatch)
    assert error.endswith("it offers GREY of 32x24 to 640x480")
    error = error_of(camera, "fps=60", monkeypatch)
    assert error.endswith("it offers 15 to 30")


def test_a_camera_without_a_format_that_is_read_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    only = SimulatedCamera({"H264": [(64, 48)]})
    error = error_of(only, "", monkeypatch)
    assert "gives H264 64x48, which is not read; give pixel_format, and it offers no" in error
    both = SimulatedCamera({"H264": [(64, 48)], "GREY": [(64, 48)]})
    assert error_of(both, "", monkeypatch).endswith("it offers GREY of 64x48")


def test_half_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = SimulatedCamera()
    camera.field = 7
    assert "in half pictures (interlaced), which are not read" in error_of(camera, "", monkeypatch)


@pytest.mark.parametrize(
    ("request_number", "number", "options", "message"),
    [
        (calls.STREAMON, errno.ENOSPC, "", "the USB bus has too little bandwidth left"),
        (calls.S_FMT, errno.EBUSY, "", "another program uses this camera"),
        (calls.QUERYBUF, errno.EIO, "", r"cannot be opened \(Input/output error\)"),
        (
            calls.REQBUFS,
            errno.EINVAL,
            "",
            "its driver does not let its buffers be mapped; try gst:",
        ),
        (calls.G_PARM, errno.ENOTTY, "fps=30", "does not let its rate be set .*; leave out fps"),
    ],
)
def test_a_driver_that_refuses_is_one_line(
    request_number: int,
    number: int,
    options: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = SimulatedCamera()
    camera.refused[request_number] = number
    error = error_of(camera, options, monkeypatch)
    assert pytest.RaisesExc(CameraError, match=message).matches(CameraError(error)), error


def test_a_driver_without_a_rate_is_used_without_one(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    camera.refused[calls.G_PARM] = errno.ENOTTY
    watched = watch(camera)
    camera.deliver(PICTURE)
    watched.wait_for(1)
    assert watched.texts(events.SETTINGS) == ["camera usb:///dev/null: gives GREY 64x48"]


@pytest.mark.parametrize("options", ["pixel_format=H264", "bits=7", "fps=0", "width=-1"])
def test_wrong_options_are_an_error_at_once(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = connect(SimulatedCamera(), monkeypatch)
    with pytest.raises(CameraError, match=options.partition("=")[0] + " must be"):
        open_camera(f"{uri}?{options}")


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("kind", [calls.CAPTURE, calls.CAPTURE_PLANES])
def test_frames_stay_valid_when_their_buffer_is_filled_again(kind: int, watch: Any) -> None:
    camera = SimulatedCamera(GREY, kind=kind)
    camera.data_offset = 16 if kind == calls.CAPTURE_PLANES else 0
    watched = watch(camera)
    for number in range(12):
        camera.deliver(bytes([number]) * (64 * 48))
        watched.wait_for(number + 1)
    for number, frame in enumerate(watched.frames):
        assert frame.index == number
        assert (frame.image == number).all()
    assert watched.camera.counts() == {
        "captured": 12,
        "dropped": 0,
        "corrupt": 0,
        "stale": 0,
        "reconnects": 0,
    }


def test_deep_pixels_keep_their_bits(watch: Any) -> None:
    values = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) & 1023
    camera = SimulatedCamera({"Y10": [(64, 48)]}, padding=6)
    watched = watch(camera)
    camera.deliver(np.pad(values, ((0, 0), (0, 3))).tobytes())
    frame = watched.wait_for(1)
    assert frame.bit_depth == 10
    assert np.array_equal(frame.image, values)


def test_bits_correct_the_depth_that_the_camera_declares(watch: Any) -> None:
    camera = SimulatedCamera({"Y16": [(64, 48)]})
    watched = watch(camera, bits=12)
    camera.deliver(np.full((48, 64), 4095, np.uint16).tobytes())
    frame = watched.wait_for(1)
    assert (frame.bit_depth, frame.image.max()) == (12, 4095)
    camera.deliver(np.full((48, 64), 4096, np.uint16).tobytes())
    assert "value 4096 does not fit in 12 bits" in watched.wait_for(2).fault


def test_the_age_comes_from_the_time_stamp_of_the_driver(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    captured = time.monotonic() - 0.5
    camera.deliver(PICTURE, captured=captured)
    frame = watched.wait_for(1)
    assert frame.captured_mono == pytest.approx(captured, abs=2e-6)
    assert frame.captured_at == pytest.approx(time.time() - 0.5, abs=0.4)
    assert frame.age(captured + 1) == pytest.approx(1, abs=2e-6)


def test_an_old_frame_is_left_out(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    camera.deliver(PICTURE, captured=time.monotonic() - 25)
    camera.deliver(PICTURE)
    watched.wait_for(1)
    assert watched.camera.counts()["stale"] == 1


@pytest.mark.parametrize(
    ("captured", "time_kind"),
    [(5.0, 0), (5.0, 0x4000), (0.0, calls.TIME_IS_MONOTONIC)],
)
def test_another_time_stamp_is_not_the_age(captured: float, time_kind: int, watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    before = time.monotonic()
    camera.deliver(PICTURE, captured=captured, time_kind=time_kind)
    frame = watched.wait_for(1)
    assert before <= frame.captured_mono <= time.monotonic()


def test_a_time_stamp_after_now_counts_as_now(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    camera.deliver(PICTURE, captured=time.monotonic() + 100)
    assert watched.wait_for(1).captured_mono <= time.monotonic()


def test_a_gap_in_the_sequence_counts_as_dropped(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    # The first number says nothing, and the numbers continue with 0.
    camera.sequence = 2**32 - 2
    watched = watch(camera)
    camera.deliver(PICTURE)
    watched.wait_for(1)
    camera.sequence = 2**32 - 1
    camera.deliver(PICTURE)
    watched.wait_for(2)
    camera.sequence = 0
    camera.lose(3)
    camera.deliver(PICTURE)
    frame = watched.wait_for(3)
    assert frame.index == 5
    assert watched.camera.counts()["dropped"] == 3
    assert watched.camera.counts()["captured"] == 6
    # A driver that counts from 0 again.
    camera.sequence = 0
    camera.deliver(PICTURE)
    assert watched.wait_for(4).index == 6


def test_frames_that_are_lost_next_to_a_damaged_one_count_too(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    camera.deliver(PICTURE)
    watched.wait_for(1)
    camera.lose(2)
    camera.deliver(PICTURE, flags=calls.DAMAGED)
    camera.lose(1)
    camera.deliver(PICTURE)
    watched.wait_for(2)
    assert watched.camera.counts()["dropped"] == 3
    assert watched.camera.counts()["corrupt"] == 1


@pytest.mark.parametrize(
    ("content", "flags", "used", "reason"),
    [
        (PICTURE, calls.DAMAGED, None, "the driver marks it as damaged"),
        (PICTURE, 0, 0, "the buffer is empty"),
        (PICTURE, 0, 3071, "the buffer holds 3071 bytes, not the 3072 of 64x48 pixels of Mono8"),
    ],
)
def test_a_damaged_buffer_is_counted_and_left_out(
    content: bytes, flags: int, used: int | None, reason: str, watch: Any
) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    camera.deliver(content, flags=flags, used=used)
    camera.deliver(PICTURE)
    frame = watched.wait_for(1)
    assert frame.image.tobytes() == PICTURE
    assert watched.camera.counts()["corrupt"] == 1
    assert watched.camera.counts()["captured"] == 1
    assert watched.texts(events.CORRUPT) == [
        f"camera usb:///dev/null: a damaged frame was left out: {reason}"
    ]


def test_a_damaged_jpeg_is_no_picture(watch: Any, photo: np.ndarray) -> None:
    whole = cv2.imencode(".jpg", cv2.resize(photo, (128, 96)))[1].tobytes()
    camera = SimulatedCamera()
    watched = watch(camera, pixel_format="MJPG", width=128, height=96)
    for number, bad in enumerate((whole[: len(whole) // 2], b"\0" * 100, b"\xff\xd8")):
        camera.deliver(bad)
        watched.wait_until(lambda count=number + 1: watched.camera.counts()["corrupt"] == count)
    # Cameras fill the rest of the buffer.
    camera.deliver(whole + bytes(50))
    frame = watched.wait_for(1)
    assert np.array_equal(frame.image, cv2.imdecode(np.frombuffer(whole, np.uint8), 1))
    assert len(watched.frames) == 1


@pytest.mark.parametrize(
    ("name", "padding", "kind"),
    [
        ("GREY", 0, calls.CAPTURE),
        ("GREY", 32, calls.CAPTURE),
        ("GREY", 0, calls.CAPTURE_PLANES),
        ("Y12", 0, calls.CAPTURE),
        ("Y12", 32, calls.CAPTURE),
        ("BGR3", 0, calls.CAPTURE),
        ("RGGB", 0, calls.CAPTURE),
        ("RG12", 0, calls.CAPTURE),
        ("YUYV", 0, calls.CAPTURE),
        ("YUYV", 32, calls.CAPTURE),
        ("NV12", 32, calls.CAPTURE),
    ],
)
def test_each_frame_is_written_once(
    name: str, padding: int, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = SimulatedCamera({name: [(800, 600)]}, kind=kind, padding=padding)
    opened = open_camera(connect(camera, monkeypatch))
    assert isinstance(opened, Usb)
    stream = opened._open()
    # Made beforehand, because its memory does not count.
    data = bytes(len(camera.memory[0]))
    images: list[np.ndarray] = []

    def take() -> np.ndarray | None:
        camera.deliver(data)
        grabbed = opened._grab(stream)
        image = opened._convert(grabbed.payload).image
        assert image is not None
        images[:] = [image]
        return image

    assert 1 <= memory_per_image(take) < 1.1
    for memory in camera.memory:
        assert not np.shares_memory(images[0], np.frombuffer(memory, np.uint8))
    opened._release(stream)


# ---------------------------------------------------------------- failures


def test_a_camera_that_was_unplugged_is_used_again_when_it_is_back(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    camera.deliver(PICTURE)
    watched.wait_for(1)
    camera.unplug()
    watched.wait_until(lambda: bool(watched.texts(events.FAILED)))
    assert "was disconnected; check the cable" in watched.texts(events.FAILED)[0]
    watched.wait_until(lambda: len(watched.texts(events.FAILED)) > 1)
    assert "no camera is connected to this device file" in watched.texts(events.FAILED)[1]
    camera.plug()
    camera.deliver(PICTURE)
    watched.wait_for(2)
    watched.wait_until(lambda: bool(watched.texts(events.RECOVERED)))
    assert watched.camera.counts()["reconnects"] >= 1
    # The same settings are not reported twice.
    assert len(watched.texts(events.SETTINGS)) == 1
    assert sum(device.is_open for device in camera.opened) == 1


def test_an_error_of_the_driver_opens_the_camera_again(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    camera.deliver(PICTURE)
    watched.wait_for(1)
    camera.refused[calls.DQBUF] = errno.EIO
    camera.deliver(PICTURE)
    watched.wait_until(lambda: bool(watched.texts(events.FAILED)))
    del camera.refused[calls.DQBUF]
    camera.full.clear()
    camera.deliver(PICTURE)
    watched.wait_for(2)
    assert "stopped giving frames (Input/output error)" in watched.texts(events.FAILED)[0]


def test_a_camera_that_stalls_is_released_and_opened_again(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    clock = FakeClock()
    watched = watch(camera, clock, stall=3.0, max_age=1.0, first_frame=1e5, window=1e5)
    camera.deliver(PICTURE, captured=clock.now)
    watched.wait_for(1)
    watched.wait_until(lambda: len(camera.opened) == 3, clock)
    camera.deliver(PICTURE, captured=clock.now)
    watched.wait_for(2)
    assert watched.texts(events.STALLED)
    # The first one was for the check before the stream.
    assert [device.is_open for device in camera.opened] == [False, False, True]
    assert watched.texts(events.FAILED) == []


def test_closing_a_camera_that_gives_nothing_does_not_wait(watch: Any) -> None:
    camera = SimulatedCamera(GREY)
    watched = watch(camera)
    watched.wait_until(lambda: bool(camera.queued))
    watched.close()
    assert not camera.opened[-1].is_open
    assert all(memory.closed for memory in camera.memory)


def test_a_driver_that_hangs_is_named(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "RELEASE_S", 0.05)
    camera = SimulatedCamera(GREY)
    clock = FakeClock()
    answers = threading.Event()
    original = FakeDevice.wait

    def wait(self: FakeDevice, seconds: float) -> bool:
        if self is camera.opened[1] and camera.sequence == 1 and not camera.full:
            answers.wait(WAIT_S)
        return original(self, seconds)

    monkeypatch.setattr(FakeDevice, "wait", wait)
    watched = watch(camera, clock, stall=3.0, max_age=1.0, first_frame=1e5, window=1e5)
    camera.deliver(PICTURE, captured=clock.now)
    watched.wait_for(1)
    watched.wait_until(lambda: bool(watched.texts(events.FAILED)), clock)
    assert "its driver does not answer; connect it again" in watched.texts(events.FAILED)[0]
    answers.set()
    watched.wait_until(lambda: len(camera.opened) == 3 and bool(camera.queued), clock)
    camera.deliver(PICTURE, captured=clock.now)
    watched.wait_for(2)


def test_a_stream_that_cannot_start_frees_its_buffers() -> None:
    camera = SimulatedCamera(GREY)
    camera.refused[calls.STREAMON] = errno.ENOSPC
    stream = BufferStream(camera.open(""), Wanted())  # type: ignore[arg-type]
    with pytest.raises(OSError, match="No space left"):
        stream.start()
    assert camera.owner is None
    assert camera.memory == []
