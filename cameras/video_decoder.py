"""The frames of a video file in the order in which they are shown, with the lost ones in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import chain, islice
from typing import Any

import av

from flawline.cameras import CameraError
from flawline.cameras.formats.libjpeg import reports_are_recorded
from flawline.cameras.packet_checks import PacketChecks
from flawline.cameras.pipe import Pipe
from flawline.cameras.video_convert import FrameConverter, Image
from flawline.cameras.video_end import missing_end
from flawline.cameras.video_gaps import find_gaps
from flawline.cameras.video_open import image_stream, open_video

RECORD_AGAIN = "record it again"
LOST = f"it is damaged and cannot be decoded; {RECORD_AGAIN}"
INTERLACED = "it is a single field of interlaced H.265; convert the video to progressive frames"
DEPENDS = f"it depends on a damaged frame before it; {RECORD_AGAIN}"
UNREPORTED = "the OpenCV of this machine does not report damage in a JPEG; record H.264"
CONVERT = "convert the video to H.264"
ENDS_EARLY = f"the file is damaged or cut off here, so the frames after it are lost; {RECORD_AGAIN}"
# Let the decoder fail where it would otherwise fill damaged areas from other frames.
STRICT = {"err_detect": "crccheck+explode"}
MOST_THREADS = 16
# Packets that are read before one is decoded.
LOOK_AHEAD = 2
# A longer step in time than so many frames, where a part of the stream is missing, is a lost frame.
LARGEST_STEP = 1.5
# How many packets behind a marked one that part may be.
SUSPICIOUS = 3
# A frame may be shown this many frames after it was decoded.
MOST_REORDERED = 16
# How many failed reads in a row are tried before the file is taken to end there.
MOST_FAILED_READS = 16
# Decoders that give a frame for each packet. Others also have packets of frames that are never
# shown.
ONE_FRAME_PER_PACKET = (
    *("libdav1d", "vp9", "ffv1", "prores", "dnxhd", "wmv1", "wmv2", "wmv3", "flv", "cinepak"),
    *("qtrle", "png", "dvvideo", "huffyuv", "ffvhuff", "utvideo", "jpeg2000", "magicyuv"),
)
# How many packets are searched for checksums.
FIRST_PACKETS = 8

# A packet, and whether it is damaged, which another thread may still be finding out.
CheckedPacket = tuple[Any, Future[bool]]


class VideoDecoder:
    """Decodes a video: an image, uint8 [h, w, 3] BGR, or the text of a fault for each frame.

    `path` is a file, or the name of a `pipe` in messages. Raises CameraError for a video that
    cannot be opened. Not safe for use by several threads.
    """

    def __init__(self, path: str, pipe: Pipe | None = None) -> None:
        self._container = open_video(path, pipe)
        self._path = path
        self._is_file = pipe is None
        self._stream = image_stream(self._container, path)
        context = self._stream.codec_context
        context.options = STRICT
        # With these threads FFmpeg marks more of the frames that it had to repair than without.
        context.thread_type = "FRAME"
        self._threads = min(max(2, len(os.sched_getaffinity(0))), MOST_THREADS)
        context.thread_count = self._threads
        self._converter = FrameConverter(self._threads)
        self._gives_every_frame = context.name in ONE_FRAME_PER_PACKET
        if context.name == "mjpeg" and not reports_are_recorded():
            self._container.close()
            raise CameraError(f"camera {path}: {UNREPORTED}")
        header = bytes(context.extradata or b"")
        self._packets = self._read_packets()
        self._first: list[Any] = []
        self._checks = PacketChecks(context.name, header, self._first_packets())
        self._gaps: list[int] = []
        if self._is_file:
            self._gaps = find_gaps(path)
        # Presentation times of packets whose frames have not come yet, and whether one failed.
        self._pending: list[int] = []
        self._has_failed = False
        self._packets_read = 0
        self._last_decoded: int | None = None
        self._frame_time: int | None = None
        # How many packets may still be those behind a missing part of the stream.
        self._suspicious = 0
        # The last damaged packet: its number and time. None when no frame depends on it any more.
        self._damage: tuple[int, int | None] | None = None

    def close(self) -> None:
        """Release the file."""
        self._checks.close()
        self._container.close()

    def __iter__(self) -> Iterator[Image | str]:
        is_broken = False
        waiting: list[CheckedPacket] = []
        for packet in chain(self._first, self._packets):
            if packet is None:
                is_broken = True
                break
            waiting.append((packet, self._checks.start(bytes(packet))))
            if len(waiting) > LOOK_AHEAD:
                yield from self._decode_first(waiting)
        while waiting:
            yield from self._decode_first(waiting)
        if is_broken:
            yield from self._decode(None)
        yield from self._lost_before(None)
        if is_broken or self._gaps or (self._is_file and missing_end(self._path)):
            yield ENDS_EARLY

    def _first_packets(self) -> Iterator[bytes]:
        """Yield some packets from the start of the video, which are decoded later."""
        self._first = list(islice(self._packets, FIRST_PACKETS))
        for packet in self._first:
            if packet is not None:
                yield bytes(packet)

    def _decode_first(self, waiting: list[CheckedPacket]) -> Iterator[Image | str]:
        """Decode the first packet of a list and remove it.

        FFmpeg marks a packet as corrupt where a part of the stream is missing, up to two packets
        before that part, and also where two recordings were joined. In the second case a key frame
        follows, and no time is missing.
        """
        packet, check = waiting.pop(0)
        if self._suspicious > 0:
            self._suspicious -= 1
            if self._leaves_gap(self._last_decoded, packet.dts):
                self._note_lost_frame(packet)
        self._note_frame_time(packet)
        is_damaged = False
        if packet.is_corrupt:
            self._suspicious = SUSPICIOUS
            is_damaged = not self._is_joined(packet, waiting)
        if packet.size and check.result():
            is_damaged = True
        yield from self._decode(packet, is_damaged)

    def _note_frame_time(self, packet: Any) -> None:
        """Record the shortest time between two packets."""
        if packet.dts is None or self._last_decoded is None:
            return
        step = packet.dts - self._last_decoded
        if step > 0 and (self._frame_time is None or step < self._frame_time):
            self._frame_time = step

    def _is_joined(self, packet: Any, following: list[CheckedPacket]) -> bool:
        """Tell whether a marked packet is whole: another recording, or a lost frame, follows."""
        before = packet
        for other, _ in following:
            if other.is_keyframe or self._leaves_gap(before.dts, other.dts):
                return True
            before = other
        return False

    def _leaves_gap(self, before: int | None, after: int | None) -> bool:
        if before is None or after is None or self._frame_time is None:
            return False
        return after - before > LARGEST_STEP * self._frame_time

    def _read_packets(self) -> Iterator[Any]:
        """Yield every packet, the empty one that flushes the decoder, and None for a broken end."""
        packets = self._container.demux(self._stream)
        failed = 0
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, IndexError):
                # PyAV raises IndexError where damage looks like the start of another stream.
                failed += 1
                if failed >= MOST_FAILED_READS:
                    yield None
                    return
                packets = self._container.demux(self._stream)
                continue
            if packet is None:
                return
            yield packet

    def _decode(self, packet: Any, is_damaged: bool = False) -> Iterator[Image | str]:
        self._packets_read += 1
        if packet is not None and packet.dts is not None:
            if self._last_decoded is not None and packet.dts < self._last_decoded:
                yield from self._finish_part()
            self._last_decoded = packet.dts
        if packet is not None and packet.size:
            time = _time(packet)
            self._note_gap(packet)
            if time is not None and not packet.is_discard:
                self._pending.append(time)
            if is_damaged:
                yield from self._fail(packet)
                return
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.FFmpegError:
            yield from self._fail(packet)
            return
        for frame in frames:
            yield from self._lost_before(_time(frame))
            yield self._judge(frame)

    def _note_gap(self, packet: Any) -> None:
        """Record a lost frame before the first packet behind a place where the file is broken."""
        if not self._gaps or packet.pos is None or packet.pos < self._gaps[0]:
            return
        while self._gaps and packet.pos >= self._gaps[0]:
            self._gaps.pop(0)
        self._note_lost_frame(packet)

    def _note_lost_frame(self, following: Any) -> None:
        time = _time(following)
        if time is not None:
            self._pending.append(time - 1)
            self._has_failed = True
            self._damage = (self._packets_read, time - 1)

    def _finish_part(self) -> Iterator[Image | str]:
        """Give the last frames of a part, where the time starts again in a joined recording."""
        self._last_decoded = None
        yield from self._decode(None)
        yield from self._lost_before(None)
        self._stream.codec_context.flush_buffers()
        self._has_failed = False
        self._damage = None

    def _fail(self, packet: Any) -> Iterator[str]:
        """Record that a packet gives no frame. Its fault comes now where its time is unknown.

        The empty packet at the end has no frame: those that it would have flushed are pending.
        """
        time = None
        if packet is not None:
            time = _time(packet)
        self._damage = (self._packets_read, time)
        is_end = packet is None or not packet.size
        if time is None and not (is_end and self._pending):
            yield LOST
        else:
            self._has_failed = True

    def _lost_before(self, time: int | None) -> Iterator[str]:
        """Yield a fault for every frame that should have been shown before `time`, and was not.

        Without damage, packets that give no frame are no loss: some codecs send frames that are
        never shown.
        """
        lost = 0
        later = []
        for pending in self._pending:
            if time is None or pending < time:
                lost += 1
            elif pending > time:
                later.append(pending)
        self._pending = later
        if self._has_failed or self._damage is not None or self._gives_every_frame:
            for _ in range(lost):
                self._has_failed = False
                yield LOST

    def _judge(self, frame: Any) -> Image | str:
        if frame.is_corrupt:
            self._damage = (self._packets_read, _time(frame))
            return LOST
        if frame.interlaced_frame and self._stream.codec_context.name == "hevc":
            return INTERLACED
        if self._damage is not None and self._depends_on_damage(frame):
            return DEPENDS
        self._damage = None
        try:
            return self._converter.convert(frame)
        except av.FFmpegError:
            return f"its pixel format {frame.format.name} cannot be converted; {CONVERT}"

    def _depends_on_damage(self, frame: Any) -> bool:
        """Tell whether a frame may have been made from the damaged one.

        Only a key frame after it, in the order of showing, needs nothing from before itself. The
        frames that are shown before that key frame may be decoded after it.
        """
        if self._damage is None or not frame.key_frame:
            return self._damage is not None
        number, damaged_time = self._damage
        time = _time(frame)
        if time is None or damaged_time is None:
            return self._packets_read - number <= MOST_REORDERED
        return time <= damaged_time


def _time(part: Any) -> int | None:
    """Return when a packet or a frame is shown; some containers only give when it is decoded."""
    time: int | None = part.pts
    return part.dts if time is None else time
