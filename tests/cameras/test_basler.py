"""Basler cameras on the emulation of pylon, without hardware."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fakes.copies import memory_per_block

from flawline.cameras import CameraError, Frame, basler, missing, open_camera
from flawline.cameras.basler import Basler
from flawline.cameras.devices import Device
from flawline.cameras.parts import LOST
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle

if missing("basler") is not None:
    pytest.skip("needs the basler extra", allow_module_level=True)

# Pylon sends SIGALRM to its process, which pytest-timeout would take for the end of its time.
pytestmark = pytest.mark.timeout(240, method="thread")
WAIT_S = 20.0
FIRST = "basler://0815-0000"
SIZE = "width=64&height=32&fps=500&exposure_us=100"
SOFTWARE = f"{FIRST}?{SIZE}&trigger=software&answer_s=20"
HEIGHT = 32
WIDTH = 64


@pytest.fixture(scope="module")
def devices() -> list[Device]:
    return basler.find_devices()


@pytest.fixture(autouse=True)
def _found_once(
    devices: list[Device], monkeypatch: pytest.MonkeyPatch, patient_pulses: None
) -> None:
    """Search for cameras once: that takes longer than most of the tests."""
    monkeypatch.setattr(basler, "find_devices", lambda: devices)
    monkeypatch.setattr(basler, "READY_S", WAIT_S)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", ["Mono8", "Mono12", "BayerRG8"])
def test_a_frame_is_copied_once(name: str) -> None:
    camera = open_camera(f"{FIRST}?width=640&height=480&fps=100&pixel_format={name}")
    assert isinstance(camera, Basler)
    assert 1 <= memory_per_block(camera) < 1.1


def images(path: Path) -> str:
    """Options that let the emulation show an image file, or those of a folder."""
    return f"features=TestImageSelector=Off;ImageFilename={path};ImageFileMode=On"


def write_image(path: Path, image: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def take(uri: str, count: int = 1) -> list[Frame]:
    with open_camera(uri) as camera:
        return list(islice(camera, count))


class Pulsed:
    """A camera with software pulses, and a thread that takes its frames."""

    def __init__(self, uri: str) -> None:
        camera = open_camera(uri)
        assert isinstance(camera, Basler)
        self.camera = camera
        self.frames: list[Frame] = []
        self._thread = threading.Thread(target=lambda: self.frames.extend(camera), daemon=True)
        self._thread.start()
        assert camera.wait_until_open()

    @property
    def device(self) -> Any:
        """The camera of pypylon."""
        return self.camera._handle.camera

    def finish(self) -> list[Frame]:
        self.camera.end_of_pulses()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.frames


@pytest.fixture
def pulsed() -> Iterator[Pulsed]:
    pulsed = Pulsed(SOFTWARE)
    yield pulsed
    pulsed.camera.close()


def test_the_images_of_a_folder_come_in_order(tmp_path: Path) -> None:
    for level in range(5):
        write_image(tmp_path / f"{level}.png", np.full((HEIGHT, WIDTH), 40 + level, np.uint8))
    pulsed = Pulsed(f"{SOFTWARE}&{images(tmp_path)}")
    for _ in range(7):
        pulsed.camera.pulse()
    frames = pulsed.finish()
    pulsed.camera.close()
    levels = [int(frame.image[0, 0]) for frame in frames if frame.image is not None]
    assert levels == [40, 41, 42, 43, 44, 40, 41]
    assert [frame.index for frame in frames] == list(range(7))


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_mono_is_right_to_the_bit(
    bits: int, random: np.random.Generator, tmp_path: Path
) -> None:
    image = random.integers(0, 1 << bits, (HEIGHT, WIDTH)).astype(np.uint16)
    # The emulation takes files of 16 bits and gives their highest bits.
    path = write_image(tmp_path / "deep.tif", image << (16 - bits))
    (frame,) = take(f"{FIRST}?{SIZE}&pixel_format=Mono{bits}&{images(path)}")
    assert frame.bit_depth == bits
    assert frame.pixel_format == "mono"
    assert np.array_equal(frame.image, image)


@pytest.mark.parametrize(
    ("pattern", "bits"), [("RG", 8), ("GR", 8), ("GB", 8), ("BG", 8), ("BG", 12)]
)
def test_bayer_gives_the_colours_of_the_scene(pattern: str, bits: int, tmp_path: Path) -> None:
    scene = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    scene[:] = (20, 100, 220)
    path = write_image(tmp_path / "scene.png", scene)
    (frame,) = take(f"{FIRST}?{SIZE}&pixel_format=Bayer{pattern}{bits}&{images(path)}")
    assert frame.bit_depth == bits
    assert np.array_equal(frame.image, scene.astype(frame.image.dtype) << (bits - 8))


def test_bayer_keeps_every_pixel_of_the_sensor(random: np.random.Generator, tmp_path: Path) -> None:
    mosaic = random.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    path = write_image(tmp_path / "mosaic.png", mosaic)
    (frame,) = take(f"{FIRST}?{SIZE}&pixel_format=BayerRG8&{images(path)}")
    assert frame.image is not None
    blue, green, red = cv2.split(frame.image[2:-2, 2:-2])
    sensor = mosaic[2:-2, 2:-2]
    assert np.array_equal(red[::2, ::2], sensor[::2, ::2])
    assert np.array_equal(green[::2, 1::2], sensor[::2, 1::2])
    assert np.array_equal(green[1::2, ::2], sensor[1::2, ::2])
    assert np.array_equal(blue[1::2, 1::2], sensor[1::2, 1::2])


@pytest.mark.parametrize("name", ["RGB8Packed", "BGR8Packed", "BGRA8Packed"])
def test_colour_formats_give_bgr(name: str, random: np.random.Generator, tmp_path: Path) -> None:
    scene = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = write_image(tmp_path / "scene.png", scene)
    (frame,) = take(f"{FIRST}?{SIZE}&pixel_format={name}&{images(path)}")
    assert np.array_equal(frame.image, scene)


def test_a_region_is_a_part_of_the_image(random: np.random.Generator, tmp_path: Path) -> None:
    image = random.integers(0, 256, (100, 120), dtype=np.uint8)
    path = write_image(tmp_path / "image.png", image)
    uri = f"{FIRST}?fps=500&{images(path)}"
    (frame,) = take(f"{uri}&width=40&height=30&offset_x=0&offset_y=0")
    assert np.array_equal(frame.image, image[:30, :40])


def test_a_frame_stays_valid_while_the_camera_fills_its_buffers_again(tmp_path: Path) -> None:
    for level in range(4):
        write_image(tmp_path / f"{level}.png", np.full((HEIGHT, WIDTH), level, np.uint8))
    frames = take(f"{FIRST}?{SIZE}&{images(tmp_path)}", 30)
    for frame in frames:
        assert frame.image is not None
        assert frame.image.flags.owndata
        assert len(np.unique(frame.image)) == 1


def test_options_are_written_to_the_camera() -> None:
    options = "exposure_us=2000&gain=6&fps=50&width=64&height=32&offset_x=16&offset_y=8"
    with open_camera(f"{FIRST}?{options}&packet_size=9000&features=Gamma=1.2") as camera:
        assert isinstance(camera, Basler)
        (frame,) = islice(camera, 1)
        device = camera._handle.camera
        assert device.ExposureTime.Value == 2000
        assert device.Gain.Value == pytest.approx(6, abs=0.05)
        assert device.AcquisitionFrameRateAbs.Value == 50
        assert (device.OffsetX.Value, device.OffsetY.Value) == (16, 8)
        assert device.GevSCPSPacketSize.Value == 9000
        assert device.Gamma.Value == pytest.approx(1.2, abs=0.01)
        assert device.TriggerMode.Value == "Off"
    assert frame.image is not None
    assert frame.image.shape == (32, 64)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("basler://", r"none was chosen; give basler://0815-0000 \(Emulation\), basler://0815-00"),
        ("basler://7", "no camera has this serial number or name; give basler://0815-0000"),
        (f"{FIRST}?width=100000", "width: Width=100000 was refused: .* smaller than Max = 4096"),
        (f"{FIRST}?gain=99", "gain: Gain=99.0 was refused"),
        (f"{FIRST}?features=NoSuch=1", "this camera has no NoSuch to write; leave it out"),
        (f"{FIRST}?features=Width", "Width is not a command of this camera; give Width=VALUE"),
        (f"{FIRST}?features=PixelFormat=Mono99", "PixelFormat=Mono99 was refused: .* invalid"),
    ],
)
def test_a_camera_that_cannot_be_opened_is_one_line(uri: str, message: str) -> None:
    with open_camera(uri) as camera, pytest.raises(CameraError, match=message) as caught:
        next(iter(camera))
    assert "\n" not in str(caught.value)
    assert "(file" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"{FIRST}?exposure_us=0", "exposure_us must be above 0"),
        (f"{FIRST}?width=0", "width must be at least 1"),
        (f"{FIRST}?pixel_format=YUV422_8", "pixel_format=YUV422_8 is not read"),
        (f"{FIRST}?trigger=line9", "not one of off, software, line1"),
        (f"{FIRST}?queue=0", "queue must be from 1 to 1000"),
    ],
)
def test_a_wrong_option_is_an_error_before_the_camera_is_opened(uri: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(uri)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Failed to open device '2676:ba02' for XML file download. Error: 'Device is "
            "exclusively opened by another client.' : RuntimeException thrown (file 'x', line 4)",
            "it is used by another program; close that program",
        ),
        (
            "Failed to open 'Basler raL2048'. The device is controlled by another application. "
            "Err: An attempt was made (0xE1018006)\n : RuntimeException thrown (file 'x', line 4)",
            "it is used by another program",
        ),
        ("Failed to open device: Access denied", "install pylon's udev rules"),
        ("Failed to open device: no route", "check cable and power"),
    ],
)
def test_the_reason_why_a_camera_cannot_be_opened_has_its_remedy(text: str, message: str) -> None:
    error = str(Basler("1")._open_error(RuntimeError(text)))
    assert message in error
    assert "\n" not in error
    assert "(file" not in error


def test_a_camera_by_its_position_or_serial_number() -> None:
    for wanted in ("0", "1", "0815-0001"):
        (frame,) = take(f"basler://{wanted}?{SIZE}")
        assert frame.source == f"basler://{wanted}"


def test_a_trigger_without_a_pulse_gives_no_frame_and_no_fault() -> None:
    # The limit of a stall passes while the camera is asked for buffers.
    pulsed = Pulsed(f"{SOFTWARE}&stall=1")
    polls = 0
    take = pulsed.camera._take
    polled = threading.Event()

    def count(handle: Any) -> Any:
        nonlocal polls
        polls += 1
        if polls > 5:
            polled.set()
        return take(handle)

    pulsed.camera._take = count  # type: ignore[method-assign]
    assert polled.wait(WAIT_S)
    assert pulsed.frames == []
    assert pulsed.camera.reconnects == 0
    assert pulsed.finish() == []
    pulsed.camera.close()


def test_every_pulse_is_one_part(pulsed: Pulsed) -> None:
    for number in range(20):
        pulsed.camera.pulse(f"SN{number}")
    frames = pulsed.finish()
    assert [frame.part for frame in frames] == [f"SN{number}" for number in range(20)]
    assert all(frame.image is not None for frame in frames)


def test_forced_bad_buffers_are_counted_and_never_handed_out(pulsed: Pulsed) -> None:
    pulsed.device.ForceFailedBufferCount.Value = 3
    pulsed.device.ForceFailedBuffer.Execute()
    for _ in range(6):
        pulsed.camera.pulse()
    frames = pulsed.finish()
    assert [frame.part for frame in frames] == ["1", "2", "3", "4", "5", "6"]
    assert [frame.image is None for frame in frames] == [True] * 3 + [False] * 3
    assert "incompletely grabbed" in str(frames[0].fault)
    assert pulsed.camera.corrupt == 3


def test_a_running_camera_counts_bad_buffers_and_hands_out_none() -> None:
    with open_camera(f"{FIRST}?{SIZE}") as camera:
        assert isinstance(camera, Basler)
        frames = iter(camera)
        next(frames)
        device = camera._handle.camera
        device.ForceFailedBufferCount.Value = 3
        device.ForceFailedBuffer.Execute()
        while camera.corrupt < 3:
            assert next(frames).image is not None
        assert next(frames).image is not None
        assert camera.corrupt == 3


def test_100_pulses_are_100_numbered_frames_although_the_consumer_waits_for_the_last() -> None:
    with open_camera(f"{SOFTWARE}&queue=4") as camera:
        assert isinstance(camera, Basler)

        def send() -> None:
            assert camera.wait_until_open()
            for _ in range(100):
                camera.pulse()
            camera.end_of_pulses()

        sender = threading.Thread(target=send)
        sender.start()
        iterator = iter(camera)
        frames = [next(iterator)]
        sender.join(WAIT_S)
        frames.extend(iterator)
    assert [frame.part for frame in frames] == [str(number) for number in range(1, 101)]
    images = sum(frame.image is not None for frame in frames)
    # Those that are in flight after the last pulse find room again.
    assert 4 <= images <= 4 + 1 + camera.most_in_flight
    assert camera.dropped == 100 - images


def test_the_lines_of_a_file_are_numbered_verdicts(bundle: Bundle, tmp_path: Path) -> None:
    names = tmp_path / "parts.txt"
    names.write_text("\n" * 25)
    lines = tmp_path / "lines.jsonl"
    flags = ["--bundle", str(bundle.path), "--camera", f"{SOFTWARE}&queue=4"]
    flags += ["--parts", str(names), "--output", f"jsonl:{lines}"]
    assert infer_stream.main(flags) == 0
    *records, end = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["part"] for record in records] == [str(number) for number in range(1, 26)]
    for record in records:
        unjudged = record["verdict"] == "unjudged"
        assert unjudged == (record["score"] is None)
        assert not unjudged or "4 images were waiting already" in record["reason"]
    assert end["summary"]["frames"] == 25


def test_a_lost_block_is_a_fault_with_its_number(pulsed: Pulsed) -> None:
    number = pulsed.camera._number

    def skip_one(handle: Any, result: Any) -> int | None:
        return (number(handle, result) or 0) + 1

    pulsed.camera.pulse()
    while not pulsed.frames:
        pulsed._thread.join(0.001)
    pulsed.camera._number = skip_one  # type: ignore[method-assign]
    pulsed.camera.pulse()
    frames = pulsed.finish()
    assert [(frame.part, frame.fault) for frame in frames][:2] == [("1", None), ("2", LOST)]


def test_a_disconnected_camera_is_an_error_also_without_a_pulse() -> None:
    class Removed:
        def RetrieveResult(self, *_: object) -> object:
            return SimpleNamespace(IsValid=lambda: False)

        def IsCameraDeviceRemoved(self) -> bool:
            return True

    with pytest.raises(CameraError, match="was disconnected; check cable and power"):
        Basler("1")._take(SimpleNamespace(camera=Removed()))  # type: ignore[arg-type]
