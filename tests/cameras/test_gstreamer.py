"""GStreamer pipelines as cameras. PyGObject usually belongs to the Python of the system."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes.rtsp import RtspServer, rtsp_server, true_age

from flawline.cameras import CameraError, events, missing, open_camera
from flawline.cameras.events import CameraEvent
from flawline.cameras.gst_pipeline import load_gstreamer
from flawline.cameras.gstreamer import Csi, CsiOptions, csi_pipeline

# Where Debian installs PyGObject, which every Python of the same version can load.
DEBIAN = "/usr/lib/python3/dist-packages"
LIVE = "videotestsrc is-live=true"


@pytest.fixture(scope="module")
def gst() -> Any:
    """GStreamer, if this Python can load it."""
    sys.path.append(DEBIAN)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = load_gstreamer()
    except (ImportError, ValueError) as error:
        pytest.skip(f"needs PyGObject and GStreamer for this Python ({error})")
    finally:
        sys.path.remove(DEBIAN)
    if loaded.ElementFactory.find("videotestsrc") is None:
        pytest.skip("needs gstreamer1.0-plugins-base")
    return loaded


def error_of(uri: str) -> str:
    with pytest.raises(CameraError) as caught, open_camera(uri) as camera:
        list(camera)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("caps", "shape", "pixel"),
    [
        ("format=BGR", (48, 65, 3), [0, 0, 255]),
        ("format=RGBx", (48, 65, 3), [0, 0, 255]),
        ("format=GRAY8", (48, 65), 81),
        ("format=GRAY16_LE", (48, 65), 81 * 257),
    ],
)
def test_pictures_keep_their_format_and_every_row_begins_in_its_place(
    caps: str, shape: tuple[int, ...], pixel: Any, gst: Any
) -> None:
    uri = f"gst://{LIVE} pattern=red ! video/x-raw,{caps},width=65,height=48,framerate=50/1"
    with open_camera(uri) as camera:
        frame = next(iter(camera))
        assert frame.age(camera.clock.monotonic()) >= 0
    assert frame.source == "gst://videotestsrc"
    assert frame.image.shape == shape
    assert frame.image.dtype == (np.uint16 if "16" in caps else np.uint8)
    # Conversions of the pattern round.
    tolerance = 600 if "GRAY16" in caps else 2
    assert np.abs(frame.image.astype(int) - np.array(pixel)).max() <= tolerance


def test_a_stream_that_may_end_ends(gst: Any) -> None:
    with open_camera("gst://videotestsrc num-buffers=5?ends=yes") as camera:
        indices = [frame.index for frame in camera]
        counts = camera.counts()
    # The sink counts those that it dropped before one that was taken.
    assert counts["captured"] == indices[-1] + 1 <= 5
    assert counts["dropped"] == counts["captured"] - len(indices)


def test_a_stream_that_may_not_end_is_opened_again(gst: Any) -> None:
    reported: list[CameraEvent] = []
    with open_camera("gst://videotestsrc num-buffers=2?restarts=1") as camera:
        camera.on_event = reported.append
        with pytest.raises(CameraError, match="the stream ended; given up after 1 attempts"):
            list(camera)
    assert [event.name for event in reported] == [events.FAILED, events.RECOVERED]


def test_a_pipeline_without_pictures_is_stalled(gst: Any) -> None:
    uri = f"gst://{LIVE} ! identity drop-probability=1?first_frame=0.3&stall=0.3&restarts=1"
    assert error_of(uri).startswith(
        "camera gst://videotestsrc ! identity: no frame for 0.3 s; given up after 1 attempts"
    )


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("no_such_element", 'cannot build this pipeline (no element "no_such_element")'),
        ("videotestsrc no_such=1", 'no property "no_such" in element "videotestsrc"'),
        ("videotestsrc ! appsink", "leave out appsink, which is added"),
        ("", "has no elements; write gst://ELEMENT ! ELEMENT"),
        ("videotestsrc name='x", "a quotation mark is not closed"),
        ("filesrc location=/no/file ! decodebin", "GStreamer reports: Resource not found"),
    ],
)
def test_errors_have_a_line_of_their_own(description: str, message: str, gst: Any) -> None:
    assert message in error_of(f"gst://{description}")


def test_no_message_holds_the_value_of_a_secret_property(gst: Any) -> None:
    address = "location=rtsp://me:topsecret@127.0.0.1:1/x"
    for description in (
        f"rtspsrc {address} ! decodebin",
        "rtspsrc location=rtsp://127.0.0.1:1/x user-id=me user-pw='topsecret ! x' ! decodebin",
        f"rtspsrc {address} no_such=1 ! decodebin",
        "filesrc location=/topsecret ! decodebin",
        f"rtspsrc {address} name='x",
    ):
        assert "secret" not in error_of(f"gst://{description}?restarts=0")
    assert "secret" not in error_of(f"gst://rtspsrc {address} ! decodebin?stall=x")


@pytest.fixture
def network_camera(gst: Any) -> Iterator[tuple[RtspServer, str]]:
    """A server, and the pipeline that reads it."""
    for name in ("rtspsrc", "rtph264depay", "avdec_h264"):
        if gst.ElementFactory.find(name) is None:
            pytest.skip(f"needs {name} of GStreamer")
    with rtsp_server() as server:
        description = f"rtspsrc location={server.address()} latency=0 protocols=tcp ! rtph264depay"
        yield server, f"gst://{description} ! avdec_h264 max-threads=1"


def test_a_network_camera_is_read_and_opened_again_after_its_server_was_killed(
    network_camera: tuple[RtspServer, str],
) -> None:
    server, uri = network_camera
    reported: list[CameraEvent] = []
    with open_camera(uri) as camera:
        camera.on_event = reported.append
        frames = iter(camera)
        assert true_age(next(frames).image) < 1.0
        server.kill()
        server.start()
        while events.RECOVERED not in [event.name for event in reported]:
            assert true_age(next(frames).image) < 1.0
        assert camera.source == "gst://rtspsrc ! rtph264depay ! avdec_h264"
    assert events.FAILED in [event.name for event in reported]


def test_a_server_that_freezes_is_noticed_although_gstreamer_reports_nothing(
    network_camera: tuple[RtspServer, str],
) -> None:
    server, uri = network_camera
    reported: list[CameraEvent] = []
    with open_camera(f"{uri}?stall=1&restarts=1000") as camera:
        camera.on_event = reported.append
        frames = iter(camera)
        next(frames)
        server.freeze()
        # It continues after the stall was noticed.
        resume = threading.Timer(2.0, server.resume)
        resume.start()
        while events.RECOVERED not in [event.name for event in reported]:
            assert true_age(next(frames).image) < 1.0
        resume.join(10)
    assert any("no frame for 1 s" in event.text for event in reported)


def test_the_camera_of_a_jetson_is_a_pipeline_of_its_elements() -> None:
    options = CsiOptions(width=1280, height=720, fps=60)
    assert csi_pipeline("1", options) == (
        "nvarguscamerasrc sensor-id=1 ! "
        "video/x-raw(memory:NVMM),width=1280,height=720,format=NV12,framerate=60/1 ! "
        "nvvidconv ! video/x-raw,format=BGRx"
    )
    assert Csi("1").source == "csi://1"
    assert Csi.untested == "on a Jetson"
    with pytest.raises(CameraError, match="is not the number of a camera; write csi://0"):
        Csi("front")
    with pytest.raises(ValueError, match="fps must be at least 1"):
        CsiOptions(fps=0)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    for scheme in ("gst", "csi"):
        assert "apt install python3-gi" in (missing(scheme) or "")
        with pytest.raises(CameraError, match=f"^camera {scheme}://0: needs GStreamer"):
            open_camera(f"{scheme}://0")


def test_every_frame_takes_every_picture_of_the_pipeline(gst: Any) -> None:
    # Not live: the source gives its pictures as fast as they are taken, so that many wait.
    caps = "video/x-raw,format=GRAY8,width=64,height=48"
    uri = f"gst://videotestsrc num-buffers=60 ! {caps}?ends=yes&every_frame=1&queue=60"
    with open_camera(uri) as camera:
        frames = list(camera)
        assert [frame.index for frame in frames if frame.image is not None] == list(range(60))
        assert camera.counts()["captured"] == 60
        assert camera.counts()["dropped"] == 0
