"""Network cameras, on a real server of this machine: what fails, how, and what is done about it."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av", reason="needs the video extra")

from fakes.rtsp import RtspServer, rtsp_server, true_age

from flawline.cameras import Camera, CameraError, Frame, events, open_camera
from flawline.cameras.events import CameraEvent
from flawline.cameras.grabbed import PermanentError
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle

USER = "line one"
# As a user might choose it: each character has a meaning in an address.
PASSWORD = "t0p:s@cr/t%41?"
QUOTED = "line%20one:t0p%3As%40cr%2Ft%2541%3F@"
# A frame that waited during a stall would be older than this.
OLDEST_S = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    with rtsp_server() as server:
        yield server


@pytest.fixture(scope="module")
def protected() -> Iterator[RtspServer]:
    with rtsp_server("--login", f"{USER}:{PASSWORD}", "--digest") as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[RtspServer]:
    """A server that the test may stop."""
    with rtsp_server() as server:
        yield server


class Watched:
    """An open camera with its events, and the true ages of the frames that it gave."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.events: list[CameraEvent] = []
        self.ages: list[float] = []
        self._frames = iter(camera)
        camera.on_event = self.events.append

    def next(self) -> Frame:
        frame = next(self._frames)
        assert frame.image is not None
        self.ages.append(true_age(frame.image))
        return frame

    def until(self, name: str) -> CameraEvent:
        """Take frames until an event of this name was reported."""
        while True:
            for event in self.events:
                if event.name == name:
                    return event
            self.next()


@pytest.fixture
def watch() -> Iterator[Any]:
    opened: list[Camera] = []

    def watch(uri: str) -> Watched:
        opened.append(open_camera(uri))
        return Watched(opened[-1])

    yield watch
    for camera in opened:
        camera.close()


def error_of(uri: str) -> CameraError:
    """Return the error of a camera that gives no frame."""
    with open_camera(uri) as camera, pytest.raises(CameraError) as caught:
        next(iter(camera))
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_stream_gives_whole_frames_with_their_age(server: RtspServer, watch: Any) -> None:
    watched = watch(server.address())
    for _ in range(10):
        frame = watched.next()
        assert frame.source == server.address()
        assert frame.image.shape == (360, 640, 3)
        age = frame.age(watched.camera.clock.monotonic())
        # The pictures are made before they are encoded.
        assert 0 <= age <= watched.ages[-1] + 0.1
    counts = watched.camera.counts()
    assert counts["captured"] >= 10
    assert (counts["corrupt"], counts["stale"], counts["reconnects"]) == (0, 0, 0)
    assert watched.events == []


@pytest.mark.parametrize("codec", ["mjpeg", "h265"])
def test_a_stream_of_another_codec_is_read(codec: str, watch: Any) -> None:
    with rtsp_server("--codec", codec) as server:
        watched = watch(server.address())
        for _ in range(10):
            assert watched.next().image.shape == (360, 640, 3)
        assert max(watched.ages) < OLDEST_S
        assert watched.camera.counts()["corrupt"] == 0


def test_a_stream_over_udp_is_read(server: RtspServer, watch: Any) -> None:
    watched = watch(f"{server.address()}?transport=udp")
    for _ in range(5):
        watched.next()
    assert max(watched.ages) < OLDEST_S


def test_a_wrong_path_and_a_closed_port_are_different_errors(server: RtspServer) -> None:
    assert str(error_of(server.address(path="nope"))).endswith(
        "/nope: the server has no such stream (404); check the path"
    )
    assert "the connection was refused; check that the camera is on" in str(
        error_of("rtsp://127.0.0.1:1/line")
    )


def test_a_name_that_no_host_has_is_an_error() -> None:
    assert "the host camera.invalid is not known" in str(error_of("rtsp://camera.invalid/line"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "no answer within 0.5 s; check address and network"),
        (b"220 mail\r\n\r\n", "the server does not answer as RTSP does"),
        (b"RTSP/1.0 503 Busy\r\nCSeq: 1\r\n\r\n", "the server refused the stream"),
        (b"RTSP/1.0 453 Not Enough Bandwidth\r\nCSeq: 1\r\n\r\n", "the server refused the stream"),
        (b"RTSP/1.0 403 No\r\nCSeq: 1\r\n\r\n", r"may not see the stream (403)"),
    ],
)
def test_other_answers_are_errors_of_their_own(answer: bytes | None, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                if answer is None:
                    done.wait(10)
                else:
                    connection.sendall(answer)

        done = threading.Event()
        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        assert message in str(error_of(f"rtsp://127.0.0.1:{port}/line?timeout=0.5"))
        done.set()
        thread.join(10)


def test_a_missing_and_a_wrong_password_are_different_errors(protected: RtspServer) -> None:
    missing = error_of(protected.address())
    assert "needs a user name and a password (401); give ?credentials=FILE" in str(missing)
    wrong = error_of(protected.address(userinfo="line%20one:guess@"))
    assert "wrong user name or password (401)" in str(wrong)
    for error in (missing, wrong):
        # Some cameras lock an account after several attempts.
        assert isinstance(error, PermanentError)


def test_the_password_may_come_in_the_address_or_in_a_file(
    protected: RtspServer, watch: Any, tmp_path: Path
) -> None:
    path = tmp_path / "camera.txt"
    path.write_text(f"user={USER}\npassword={PASSWORD}\n")
    path.chmod(0o644)
    by_file = watch(f"{protected.address()}?credentials={path}")
    by_address = watch(protected.address(userinfo=QUOTED))
    for watched in (by_file, by_address):
        assert watched.next().source == protected.address()
    (warning,) = by_file.camera.notes()
    assert "other users may read" in warning
    assert by_address.camera.notes() == []


def test_an_encrypted_stream_needs_a_valid_certificate(watch: Any, tmp_path: Path) -> None:
    certificate = tmp_path / "camera.pem"
    key = tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs openssl ({error})")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    with rtsp_server("--certificate", str(both), "--login", f"{USER}:{PASSWORD}") as server:
        uri = server.address(userinfo=QUOTED).replace("rtsp:", "rtsps:")
        assert "check the port, and the certificate with ?ca=FILE" in str(error_of(uri))
        watched = watch(f"{uri}?ca={certificate}")
        assert watched.next().source == server.address().replace("rtsp:", "rtsps:")
        assert watched.camera.notes() == []
        unchecked = watch(f"{uri}?verify=no")
        unchecked.next()
        assert "its certificate is not checked" in unchecked.camera.notes()[0]


def test_a_server_that_is_killed_and_started_again_is_connected_again(
    own_server: RtspServer, watch: Any
) -> None:
    watched = watch(own_server.address())
    watched.next()
    own_server.kill()
    restart = threading.Thread(target=own_server.start)
    restart.start()
    recovered = watched.until(events.RECOVERED)
    restart.join(10)
    assert recovered.text.startswith(f"camera {own_server.address()}: gives frames again after")
    # The server may be killed in the middle of a frame, which is then damaged.
    failed = watched.until(events.FAILED)
    assert "it is opened again (attempt 1 of 60)" in failed.text
    assert watched.camera.reconnects >= 1
    assert max(watched.ages) < OLDEST_S


def test_a_server_that_freezes_is_noticed_and_its_old_frames_are_not_given(
    own_server: RtspServer, watch: Any
) -> None:
    watched = watch(f"{own_server.address()}?stall=1")
    for _ in range(3):
        watched.next()
    own_server.freeze()
    # It continues after the stall was noticed.
    resume = threading.Timer(2.0, own_server.resume)
    resume.start()
    watched.until(events.RECOVERED)
    for _ in range(3):
        watched.next()
    resume.join(10)
    assert any("no frame for 1 s" in event.text for event in watched.events)
    assert max(watched.ages) < OLDEST_S


def test_a_password_that_was_changed_ends_the_stream(own_server: RtspServer, watch: Any) -> None:
    watched = watch(own_server.address())
    watched.next()
    own_server.kill()
    own_server.arguments = ("--login", f"{USER}:{PASSWORD}")
    own_server.start()
    with pytest.raises(PermanentError, match="needs a user name"):
        watched.until("never")


def test_a_changed_resolution_is_reported_and_not_hidden(watch: Any) -> None:
    with rtsp_server("--size", "640x360,320x240") as server:
        watched = watch(server.address())
        assert watched.next().image.shape == (360, 640, 3)
        event = watched.until(events.RESOLUTION)
        assert event.text.endswith("the resolution changed from 640x360 to 320x240")
        assert watched.next().image.shape == (240, 320, 3)


def test_damaged_frames_are_counted_and_never_given() -> None:
    with rtsp_server("--codec", "sliced") as server:
        uri = f"{server.address()}?first_frame=2&timeout=2&restarts=0"
        with open_camera(uri) as camera:
            watched = Watched(camera)
            with pytest.raises(CameraError, match=r"only damaged or old frames, \d+ of them"):
                watched.next()
            assert camera.counts()["corrupt"] > 10
            assert camera.counts()["captured"] == 0
            assert watched.events[0].name == events.CORRUPT


def test_no_output_holds_a_secret(
    protected: RtspServer, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "camera.txt"
    path.write_text(f"user={USER}\npassword={PASSWORD}\n")
    saved = tmp_path / "saved"
    lines = tmp_path / "lines.jsonl"
    good = (
        protected.address(userinfo=QUOTED),
        f"{protected.address()}?credentials={path}",
    )
    wrong = (
        protected.address(userinfo="other:t0p%3Aguess@"),
        protected.address(userinfo=QUOTED, path="nope"),
        protected.address(path="nope%3Fuser=line%20one&password=t0p%3Aguess"),
        f"rtsp://{QUOTED}127.0.0.1:1/line",
        f"rtsp://{USER}:{PASSWORD}@127.0.0.1/line",
        f"rtsps://{QUOTED}127.0.0.1:{protected.port}/line",
        f"{protected.address(userinfo=QUOTED)}?stall=never",
    )
    options = ["--bundle", str(bundle.path), "--max-frames", "2", "--verbose"]
    outputs = ["--output", "jsonl", "--output", f"jsonl:{lines}", "--save", str(saved)]
    texts = []
    for uri in good:
        assert infer_stream.main([*options, *outputs, "--camera", uri]) == 0
        texts.append(lines.read_text())
        assert json.loads(texts[-1].splitlines()[0])["source"] == protected.address()
    for uri in wrong:
        assert infer_stream.main([*options, *outputs, "--camera", uri]) == 2
    assert len(list(saved.iterdir())) == 4
    for file in saved.iterdir():
        texts.append(file.name + file.read_bytes().decode("latin-1"))
    texts.extend(capsys.readouterr())
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for secret in ("t0p", "guess", "cr/t", "s%40cr", encoded, USER, "line%20one"):
        for text in texts:
            assert secret not in text
