"""USB cameras on vivid, the simulated camera of Linux, which is loaded into the kernel.

test_vivid_machine.py runs these tests in a virtual machine. On a machine that has vivid itself,
loaded as `machine.py` does, they run as root.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.copies import memory_per_image

from flawline.cameras import CameraError, Frame, events, open_camera
from flawline.cameras.events import CameraEvent
from flawline.cameras.usb import Usb
from flawline.cameras.v4l2_calls import Device
from flawline.cameras.v4l2_pixels import COMPRESSED, READ, bits_of
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle

DRIVER = Path("/sys/bus/platform/drivers/vivid")
if not DRIVER.exists() or os.geteuid() != 0:
    pytest.skip("needs the module vivid, and root", allow_module_level=True)

SIZE = "width=320&height=180"
# vivid has no JPEG and no 14 bits.
ABSENT = (*COMPRESSED, "Y14")
FORMATS = [name for name in READ if name not in ABSENT]
KINDS = ("one area per frame", "areas for planes")
WAIT_S = 60.0


class Query(ctypes.Structure):
    """struct v4l2_queryctrl"""

    _fields_ = (
        ("id", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("name", ctypes.c_char * 32),
        ("values", ctypes.c_int32 * 4),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 2),
    )


class Control(ctypes.Structure):
    """struct v4l2_control"""

    _fields_ = (("id", ctypes.c_uint32), ("value", ctypes.c_int32))


S_CTRL = 0xC008561C
QUERYCTRL = 0xC0445624
NEXT = 0x80000000


def set_control(name: str, value: int, number: int = 0) -> None:
    """Set a control of the camera that has this name."""
    device = Device(f"/dev/video{number}")
    try:
        query = Query(id=NEXT)
        while True:
            device.call(QUERYCTRL, query)
            if query.name.decode() == name:
                device.call(S_CTRL, Control(query.id, value))
                return
            query.id |= NEXT
    finally:
        device.close()


@pytest.fixture(autouse=True)
def still() -> None:
    """Let both cameras show colour bars that do not move, without text."""
    for number in range(2):
        set_control("OSD Text Mode", 2, number)


class Watched:
    """An open camera with its events."""

    def __init__(self, uri: str) -> None:
        self.camera = open_camera(uri)
        self.events: list[CameraEvent] = []
        self.camera.on_event = self.events.append
        self.frames = iter(self.camera)

    def next(self) -> Frame:
        return next(self.frames)

    def texts(self, name: str) -> list[str]:
        return [event.text for event in self.events if event.name == name]

    def until(self, name: str) -> str:
        """Take frames until an event of this name was reported; return its text."""
        deadline = time.monotonic() + WAIT_S
        while not self.texts(name):
            assert time.monotonic() < deadline
            self.next()
        return self.texts(name)[0]


@pytest.fixture
def watch() -> Iterator[Any]:
    opened: list[Watched] = []

    def watch(uri: str) -> Watched:
        opened.append(Watched(uri))
        return opened[-1]

    yield watch
    for watched in opened:
        watched.camera.close()


def picture(number: int, name: str) -> Frame:
    """Return a frame of one of the two cameras in a pixel format."""
    with open_camera(f"usb://{number}?pixel_format={name}&{SIZE}&fps=30") as camera:
        return next(iter(camera))


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """The colour bars of the camera, float32 [h, w, 3] BGR, in 0..255."""
    set_control("OSD Text Mode", 2)
    image = picture(0, "BGR3").image
    assert image is not None
    return image.astype(np.float32)


def test_the_picture_has_colours(colours: np.ndarray) -> None:
    assert colours.shape == (180, 320, 3)
    middle = colours[90]
    # White, yellow, and so on to black.
    assert middle[20].min() > 150
    assert middle[60].argmin() == 0
    assert middle[60].min() < 30 < 150 < middle[60, 1]
    assert middle[-20].max() < 30


@pytest.mark.parametrize("number", range(2), ids=KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_picture(name: str, number: int, colours: np.ndarray) -> None:
    frame = picture(number, name)
    assert frame.fault is None
    image = frame.image
    assert image is not None
    bits = bits_of(name)
    assert frame.bit_depth == bits
    assert image.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert image.max() >> bits == 0
    scaled = image.astype(np.float32) / 2 ** (bits - 8)
    # At the edges of the bars, formats with less chroma and Bayer mosaics differ.
    columns = np.arange(20, 320, 40)
    bars = scaled[4:-4, columns]
    if image.ndim == 3:
        assert np.abs(bars - colours[4:-4, columns]).max() < 12
    else:
        # White, yellow, cyan, green, magenta, red, blue and black: each is darker.
        assert (np.diff(bars, axis=1) < -5).all()
        assert np.abs(bars - bars.mean(0)).max() < 1
        assert bars[0, 0] > 150
        assert bars[0, -1] < 5


def test_what_is_not_given_is_an_error_with_the_offer(watch: Any) -> None:
    offers = {
        "pixel_format=MJPG": "instead of pixel_format=MJPG; it offers YUYV, ",
        "width=700&height=500": "instead of width=700, height=500; it offers ",
        f"{SIZE}&fps=7": "frames per second instead of 7; for ",
        "pixel_format=GREY&bits=12": "of 8 bits; leave out bits=12",
    }
    for options, text in offers.items():
        with pytest.raises(CameraError) as caught:
            watch(f"usb://0?{options}").next()
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_what_the_driver_gives_is_reported(watch: Any) -> None:
    watched = watch(f"usb://0?pixel_format=GREY&{SIZE}&fps=10")
    assert watched.until(events.SETTINGS) == (
        "camera usb://0: gives GREY 320x180, 10 frames per second"
    )


def test_a_camera_is_used_by_one_program(watch: Any) -> None:
    first = watch("usb://0")
    first.next()
    with pytest.raises(CameraError, match="another program uses this camera; end that program"):
        open_camera("usb://0")
    first.next()
    first.camera.close()
    watch("usb://0").next()


def test_two_frames_per_second_are_fresh(watch: Any) -> None:
    watched = watch(f"usb://0?pixel_format=GREY&{SIZE}&fps=25")
    watched.next()
    ages = []
    for _ in range(8):
        time.sleep(0.5)
        frame = watched.next()
        ages.append(frame.age(time.monotonic()))
    # Without the capture thread, four buffers of 0.5 s wait: 2 s.
    assert sorted(ages)[len(ages) // 2] < 0.2
    counts = watched.camera.counts()
    assert counts["dropped"] > 20
    assert (counts["corrupt"], counts["reconnects"]) == (0, 0)
    print(f"ages in s: {np.round(ages, 3)}, {counts}")


def test_frames_are_written_once() -> None:
    camera = open_camera("usb://0?pixel_format=GREY&width=1920&height=1080")
    assert isinstance(camera, Usb)
    stream = camera._open()

    def take() -> np.ndarray | None:
        if not stream.wait(1):
            return None
        return camera._convert(camera._grab(stream).payload).image

    try:
        assert 1 <= memory_per_image(take) < 1.1
    finally:
        camera._release(stream)


def test_a_damaged_frame_is_counted(watch: Any) -> None:
    watched = watch(f"usb://0?{SIZE}")
    watched.next()
    set_control("Inject V4L2_BUF_FLAG_ERROR", 1)
    assert "the driver marks it as damaged" in watched.until(events.CORRUPT)
    assert watched.camera.counts()["corrupt"] == 1
    assert watched.camera.counts()["reconnects"] == 0


def test_lost_frames_are_counted(watch: Any) -> None:
    watched = watch(f"usb://0?pixel_format=GREY&{SIZE}&fps=25")
    watched.next()
    set_control("Percentage of Dropped Buffers", 60)
    try:
        deadline = time.monotonic() + WAIT_S
        while watched.camera.counts()["dropped"] < 20:
            assert time.monotonic() < deadline
            frame = watched.next()
        assert frame.index > watched.camera.counts()["dropped"]
    finally:
        set_control("Percentage of Dropped Buffers", 0)


def test_a_fatal_error_of_the_driver_opens_the_camera_again(watch: Any) -> None:
    watched = watch(f"usb://0?{SIZE}")
    watched.next()
    set_control("Inject Fatal Streaming Error", 1)
    assert "stopped giving frames" in watched.until(events.FAILED)
    watched.until(events.RECOVERED)
    assert watched.next().image is not None


@pytest.mark.parametrize("how", ["disconnected", "unbound"])
def test_a_camera_that_was_unplugged_is_used_when_it_is_back(how: str, watch: Any) -> None:
    watched = watch(f"usb://0?{SIZE}&restarts=1000")
    watched.next()
    gone = time.monotonic()
    noticed: list[float] = []

    def note(event: CameraEvent) -> None:
        watched.events.append(event)
        if event.name == events.FAILED and not noticed:
            noticed.append(time.monotonic() - gone)
            # Connected again, it is a new device with the same number.
            if how == "disconnected":
                (DRIVER / "unbind").write_text("vivid.0")
            (DRIVER / "bind").write_text("vivid.0")

    watched.camera.on_event = note
    if how == "disconnected":
        set_control("Disconnect", 1)
    else:
        (DRIVER / "unbind").write_text("vivid.0")
    watched.until(events.RECOVERED)
    assert "was disconnected; check the cable" in watched.texts(events.FAILED)[0]
    assert noticed[0] < 1
    assert watched.next().image is not None


def test_a_camera_that_stays_away_is_an_error(watch: Any) -> None:
    watched = watch(f"usb://0?{SIZE}&restarts=2")
    watched.next()
    (DRIVER / "unbind").write_text("vivid.0")
    try:
        with pytest.raises(CameraError, match="there is no such device; connect the camera"):
            list(watched.frames)
    finally:
        (DRIVER / "bind").write_text("vivid.0")


def test_a_station_judges_its_frames(bundle: Bundle, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    arguments = ["--bundle", str(bundle.path), "--output", f"jsonl:{lines}"]
    arguments += ["--engine", "onnxruntime", "--accept-size", "--max-frames", "10"]
    arguments += ["--camera", f"usb://0?pixel_format=Y12&{SIZE}&fps=10"]
    assert infer_stream.main(arguments) == 0
    *records, end = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) == 10
    for record in records:
        assert record["verdict"] in ("good", "anomalous")
        assert record["age_ms"] >= 0
    assert end["summary"]["corrupt"] == 0
