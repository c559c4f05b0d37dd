"""Which frames of a network stream count as damaged, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

av = pytest.importorskip("av", reason="needs the video extra")

from fakes.clock import FakeClock
from fakes.h264 import KEY_EVERY, encode

from flawline.cameras import CameraError
from flawline.cameras.grabbed import CorruptFrame, PermanentError
from flawline.cameras.rtsp_options import RtspOptions
from flawline.cameras.rtsp_reader import RtspReader

BROKEN = av.InvalidDataError(1, "broken", "rtsp://me:topsecret@host/line")


class FakePacket:
    """A packet of PyAV with its frames, or an exception; the first frame may have `data`."""

    def __init__(self, size: int, content: Any) -> None:
        self.size = size
        self.content = content

    def __bytes__(self) -> bytes:
        if isinstance(self.content, list) and self.content:
            return bytes(self.content[0].data)
        return b""


class FakeStream:
    """A container of PyAV whose packets are lists of frames, or exceptions."""

    def __init__(self, *packets: Any, codec: str = "h264", has_video: bool = True) -> None:
        self.context = SimpleNamespace(name=codec, decode=self._decode, extradata=None)
        stream = SimpleNamespace(codec_context=self.context)
        self.streams = SimpleNamespace(video=[stream] if has_video else [])
        self.closed = False
        self._packets = packets

    def demux(self, _stream: Any) -> Iterator[Any]:
        for content in self._packets:
            if isinstance(content, Exception) and content is not BROKEN:
                raise content
            yield FakePacket(1, content)
        yield FakePacket(0, [])

    def _decode(self, packet: Any) -> list[Any]:
        if isinstance(packet.content, Exception):
            raise packet.content
        return list(packet.content)

    def close(self) -> None:
        self.closed = True


def frame(
    pts: int | None, key: bool = False, corrupt: bool = False, data: bytes | Any = b""
) -> Any:
    return SimpleNamespace(
        pts=pts, time_base=Fraction(1, 100), key_frame=key, is_corrupt=corrupt, data=data
    )


@pytest.fixture
def open_reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    def open_reader(stream: FakeStream, clock: FakeClock | None = None) -> RtspReader:
        monkeypatch.setattr(av, "open", lambda *_args, **_options: stream)
        options = RtspOptions()
        return RtspReader(
            "rtsp://host/line", "rtsp://me:topsecret@host/line", True, options, clock or FakeClock()
        )

    return open_reader


def results(reader: RtspReader) -> list[Any]:
    """The time stamps of the frames that were given, and the reasons of those that were not."""
    found: list[Any] = []
    while True:
        try:
            found.append(reader.read().payload.pts)
        except CorruptFrame as error:
            found.append(str(error))
        except CameraError as error:
            found.append(str(error).removeprefix("camera rtsp://host/line: "))
            return found


DEPENDS = "it depends on a damaged or missing frame before it"
REPAIRED = "the decoder had to repair it"
REPORTED = "the decoder reports damage"
ENDED = "the server ended the stream"


def test_a_frame_that_depends_on_a_damaged_one_is_damaged(open_reader: Any) -> None:
    stream = FakeStream(
        [frame(0, key=True)],
        [frame(4)],
        [frame(8, corrupt=True)],
        [frame(12)],
        [frame(16, key=True), frame(20)],
        BROKEN,
        [frame(28)],
        [frame(32, key=True, corrupt=True)],
        [frame(36)],
        [],
        [frame(40, key=True)],
    )
    assert results(open_reader(stream)) == [
        *(0, 4, REPAIRED, DEPENDS, 16, 20, REPORTED, DEPENDS, REPAIRED, DEPENDS, 40, ENDED)
    ]


def test_frames_after_one_that_was_lost_as_a_whole_are_damaged(open_reader: Any) -> None:
    """The decoder itself takes a lost frame for one in which nothing has changed."""
    sent = encode({"tune": "zerolatency"})
    frames = []
    for number, packet in enumerate(sent):
        frames.append(frame(number, bool(packet.is_keyframe), data=bytes(packet)))
    received = frames[:5] + frames[6:]
    found = results(open_reader(FakeStream(*([one] for one in received))))
    lost = KEY_EVERY - 6
    assert found == [*range(5), *[DEPENDS] * lost, *range(KEY_EVERY, len(sent)), ENDED]
    # Where the codec has no such numbers, the decoder must find it.
    assert DEPENDS not in results(
        open_reader(FakeStream(*([one] for one in received), codec="vp9"))
    )


def test_no_frame_before_the_first_key_frame_is_given(open_reader: Any) -> None:
    stream = FakeStream([frame(0)], [frame(4, key=True)], [frame(8)])
    assert results(open_reader(stream)) == [DEPENDS, 4, 8, ENDED]


def test_the_decoder_is_strict_and_has_one_thread(open_reader: Any) -> None:
    stream = FakeStream()
    reader = open_reader(stream)
    assert stream.context.thread_count == 1
    assert "explode" in stream.context.options["err_detect"]
    reader.close()
    assert stream.closed


@pytest.mark.parametrize(("codec", "age"), [("h264", 0.04), ("mjpeg", 0.0)])
def test_the_age_is_that_of_the_codec(codec: str, age: float, open_reader: Any) -> None:
    clock = FakeClock()
    frames = [[frame(4 * index, key=True)] for index in range(5)]
    reader = open_reader(FakeStream(*frames, codec=codec), clock)
    for _ in range(5):
        grabbed = reader.read()
        captured = clock.monotonic() - grabbed.captured_mono
        clock.advance(0.04)
    assert captured == pytest.approx(age)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (av.ExitError(1, "exit", "rtsp://me:topsecret@host/line"), "sent nothing for 4.5 s"),
        (
            av.InvalidDataError(1, "Invalid data", "rtsp://me:topsecret@host/line"),
            "the connection is lost (Invalid data)",
        ),
        (
            ConnectionResetError(104, "Connection reset"),
            "the connection is lost (Connection reset)",
        ),
    ],
)
def test_a_lost_connection_is_an_error_without_the_address(
    error: Exception, message: str, open_reader: Any
) -> None:
    assert results(open_reader(FakeStream(error))) == [message]


def test_a_stream_without_video_is_an_error(open_reader: Any) -> None:
    stream = FakeStream(has_video=False)
    with pytest.raises(PermanentError, match="the stream has no video; check the path"):
        open_reader(stream)
    assert stream.closed
