"""Cameras behind a GenTL producer, on the simulated one that the genicam package brings."""

from __future__ import annotations

import hashlib
import signal
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes.copies import memory_per_block

from flawline.cameras import CameraError, gentl, missing, open_camera
from flawline.cameras.genicam_pixels import parse_pixel_format
from flawline.cameras.gige import Gige, _Open

if missing("gige") is not None:
    pytest.skip("needs the genicam extra", allow_module_level=True)

PRODUCER = gentl.simulated_producer()
if PRODUCER is None:
    pytest.skip("needs the simulated producer of the genicam package", allow_module_level=True)
RED = f"gige://0?cti={PRODUCER}"


def digests(images: list[np.ndarray]) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def test_50_distinct_frames_in_3_seconds_stay_valid() -> None:
    images: list[np.ndarray] = []
    taken: list[str] = []
    with open_camera(f"{RED}&fps=50") as camera:
        frames = iter(camera)
        next(frames)
        start = time.monotonic()
        while len(set(taken)) < 50 and time.monotonic() - start < 3:
            image = next(frames).image
            assert image is not None
            images.append(image)
            # Before the producer fills the buffer again.
            taken.extend(digests([image]))
    assert len(set(taken)) == 50
    assert digests(images) == taken


def test_ctrl_c_keeps_its_meaning() -> None:
    before = signal.getsignal(signal.SIGINT)
    camera = open_camera(RED)
    assert isinstance(camera, Gige)
    handle = camera._open()
    try:
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        camera._release(handle)


def test_a_frame_is_copied_once() -> None:
    camera = open_camera(f"{RED}&pixel_format=Mono8")
    assert isinstance(camera, Gige)
    assert 1 <= memory_per_block(camera) < 1.1


def test_colour_becomes_bgr() -> None:
    with open_camera(f"gige://1?cti={PRODUCER}&features=AcquisitionFrameRate=50") as camera:
        (frame,) = islice(camera, 1)
    assert frame.image is not None
    assert frame.image.shape == (400, 400, 3)
    assert frame.pixel_format == "bgr"
    # The second camera shows a green scene.
    blue, green, red = frame.image.reshape(-1, 3).mean(0)
    assert green > max(blue, red)


def test_options_are_written_to_the_camera() -> None:
    with open_camera(f"{RED}&width=200&height=120&pixel_format=Mono8&fps=50") as camera:
        assert isinstance(camera, Gige)
        (frame,) = islice(camera, 1)
        nodes = camera._handle.acquirer.remote_device.node_map
        assert nodes.AcquisitionFrameRate.value == 50
    assert frame.image is not None
    assert frame.image.shape == (120, 200)
    assert frame.bit_depth == 8


def test_two_cameras_share_a_producer_and_each_can_be_opened_again() -> None:
    assert PRODUCER is not None
    with open_camera(RED) as red, open_camera(f"gige://2?cti={PRODUCER}") as blue:
        assert next(iter(red)).source == "gige://0"
        assert next(iter(blue)).source == "gige://2"
        blue.close()
        assert next(iter(red)).image is not None
        with open_camera(f"gige://2?cti={PRODUCER}") as again:
            assert next(iter(again)).image is not None
    assert PRODUCER.resolve() not in gentl._LOADED


def test_the_producers_of_the_environment_variable_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert PRODUCER is not None
    monkeypatch.setenv(gentl.PATH_VARIABLE, f"/nowhere:{PRODUCER.parent}")
    with open_camera("gige://0") as camera:
        assert next(iter(camera)).image is not None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"gige://?cti={PRODUCER}", r"none was chosen; give gige://0 \(Viky\), gige://1 \(Viky\)"),
        (f"gige://7?cti={PRODUCER}", "no camera has this serial number or name; give gige://0"),
        (f"{RED}&height=9", "height: Height=9 was refused: Value = 9 must be equal or greater"),
        (f"{RED}&exposure_us=9", "no ExposureTime or ExposureTimeAbs to write; leave it out"),
        (f"{RED}&trigger=line1", "this camera has no TriggerSource to write; leave it out"),
        (f"{RED}&pixel_format=Mono12", "PixelFormat=Mono12 was refused: .* is invalid"),
        (f"gige://?cti={__file__}", "is no GenTL producer of this machine .*invalid ELF header"),
    ],
)
def test_a_camera_that_cannot_be_opened_is_one_line(uri: str, message: str) -> None:
    with open_camera(uri) as camera, pytest.raises(CameraError, match=message) as caught:
        next(iter(camera))
    assert "\n" not in str(caught.value)
    assert not gentl._LOADED


def test_a_missing_producer_is_an_error_before_the_camera_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gentl.PATH_VARIABLE, raising=False)
    with pytest.raises(CameraError, match=r"no GenTL producer was found; install the software"):
        open_camera("gige://0")
    with pytest.raises(CameraError, match=r"there is no such file .*absent.cti; check the option"):
        open_camera(f"gige://0?cti={tmp_path}/absent.cti")


def test_a_camera_that_is_open_already_is_one_line() -> None:
    with open_camera(RED) as first, open_camera(RED) as second:
        next(iter(first))
        with pytest.raises(CameraError, match="it is open already; close the other program"):
            next(iter(second))
        assert next(iter(first)).image is not None


class Acquirer:
    """A camera of harvesters that gives one buffer, or raises, and notes what is queued again."""

    def __init__(self, buffer: Any = None, error: Exception | None = None) -> None:
        self.buffer = buffer
        self.error = error
        self.queued: list[Any] = []
        self.remote_device = SimpleNamespace(node_map=self)
        self.executed: list[str] = []

    def try_fetch(self, timeout: float, is_raw: bool) -> Any:
        assert is_raw
        if self.error is not None:
            raise self.error
        return self.buffer

    def queue_buffer(self, buffer: Any) -> None:
        self.queued.append(buffer)

    def get_node(self, name: str) -> Any:
        return SimpleNamespace(execute=lambda: self.executed.append(name))


def opened(acquirer: Acquirer, pixel_format: str = "Mono8", transport: str = "GEV") -> _Open:
    parsed = parse_pixel_format(pixel_format)
    assert parsed is not None
    return _Open(acquirer, transport, parsed, [], [])


def buffer_of(acquirer: Acquirer, data: bytes, **facts: Any) -> Any:
    values: dict[str, Any] = {"width": 4, "height": 2, "frame_id": 7, **facts}
    return SimpleNamespace(raw_buffer=data, parent=acquirer, **values)


def test_a_buffer_is_copied_and_queued_again() -> None:
    acquirer = Acquirer()
    acquirer.buffer = buffer_of(acquirer, bytes(range(8)))
    block = Gige("0", producers())._take(opened(acquirer))
    assert block is not None
    assert block.number == 7
    assert np.array_equal(block.image, np.arange(8).reshape(2, 4))
    assert acquirer.queued == [acquirer.buffer]


def producers() -> Any:
    return Gige.Options(cti=str(PRODUCER))


def test_the_first_part_of_a_buffer_and_the_padding_of_its_rows() -> None:
    acquirer = Acquirer()
    part = SimpleNamespace(width=2, height=2, data_offset=3, padding_x=1)
    acquirer.buffer = buffer_of(acquirer, bytes(range(20)), parts=(part,))
    block = Gige("0", producers())._take(opened(acquirer))
    assert block is not None
    assert block.image is not None
    assert block.image.tolist() == [[3, 4], [6, 7]]


def test_a_buffer_that_is_too_short_is_a_fault_and_is_queued_again() -> None:
    acquirer = Acquirer()
    acquirer.buffer = buffer_of(acquirer, bytes(7))
    block = Gige("0", producers())._take(opened(acquirer))
    assert block is not None
    assert block.image is None
    assert "holds 7 bytes, not the 8" in str(block.fault)
    assert acquirer.queued == [acquirer.buffer]


def test_gige_vision_has_no_block_0_and_usb3_vision_has() -> None:
    camera = Gige("0", producers())
    for transport, number, first in (("GEV", None, 1), ("U3V", 0, 0), ("Custom", 0, None)):
        acquirer = Acquirer()
        acquirer.buffer = buffer_of(acquirer, bytes(8), frame_id=0)
        handle = opened(acquirer, transport=transport)
        block = camera._take(handle)
        assert block is not None
        assert block.number == number
        assert camera._first_block(handle) == first


def test_no_pulse_is_no_block_and_an_incomplete_buffer_is_a_fault() -> None:
    camera = Gige("0", producers())
    acquirer = Acquirer()
    handle = opened(acquirer)
    assert camera._take(handle) is None

    def incomplete(timeout: float, is_raw: bool) -> None:
        handle.incomplete.append(None)

    acquirer.try_fetch = incomplete  # type: ignore[method-assign]
    block = camera._take(handle)
    assert block is not None
    assert "incomplete" in str(block.fault)


def test_an_error_of_the_producer_is_one_line_and_a_pulse_is_a_command() -> None:
    camera = Gige("0", producers())
    acquirer = Acquirer(error=RuntimeError("lost : RuntimeException thrown (file 'x', line 1)"))
    with pytest.raises(CameraError, match=r"stopped giving images \(lost\); check cable"):
        camera._take(opened(acquirer))
    camera._fire(opened(acquirer))
    assert acquirer.executed == ["TriggerSoftware"]
