"""Checks of the packets of a video for damage that the decoder does not report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from flawline.cameras.ffv1_checksum import slices_are_sound
from flawline.cameras.formats.jpeg import jpeg_is_damaged
from flawline.cameras.nal_units import units_are_damaged

# Codecs of which a packet of zeros may be a frame. All others have headers.
ZEROS_ARE_FRAMES = ("rawvideo", "huffyuv", "ffvhuff")
# Shorter packets of QuickTime Animation say that nothing has changed.
QTRLE_CHANGE = 8

# Codecs whose check takes long enough for a thread of its own.
SLOW = ("mjpeg",)


class PacketChecks:
    """Checks the packets of one video. `codec` and `header` (extradata) are FFmpeg's.

    `first_packets` are some packets from the start of the video, which show whether it has
    checksums.
    """

    def __init__(self, codec: str, header: bytes, first_packets: Iterable[bytes]) -> None:
        self._is_damaged = _choose_check(codec, header, first_packets)
        self._zeros_are_frames = codec in ZEROS_ARE_FRAMES
        self._pool: ThreadPoolExecutor | None = None
        if codec in SLOW:
            self._pool = ThreadPoolExecutor(1, "check of packets")

    def start(self, packet: bytes) -> Future[bool]:
        """Check a packet, in another thread where that takes long; the result is True for damage.

        Meanwhile this thread decodes the packets before it.
        """
        if self._pool is not None:
            return self._pool.submit(self._is_damaged, packet)
        result: Future[bool] = Future()
        is_zero = packet.count(0) == len(packet) and not self._zeros_are_frames
        result.set_result(is_zero or self._is_damaged(packet))
        return result

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _choose_check(
    codec: str, header: bytes, first_packets: Iterable[bytes]
) -> Callable[[bytes], bool]:
    if codec == "mjpeg":
        return jpeg_is_damaged
    if codec == "ffv1" and any(map(slices_are_sound, first_packets)):
        return _slices_are_damaged
    if codec == "qtrle":
        return _qtrle_is_damaged
    return partial(units_are_damaged, codec=codec, header=header)


def _slices_are_damaged(packet: bytes) -> bool:
    return not slices_are_sound(packet)


def _qtrle_is_damaged(packet: bytes) -> bool:
    """Tell whether a packet does not begin with its size, so that FFmpeg shows the frame before."""
    size = int.from_bytes(packet[:4], "big") & 0x3FFFFFFF
    return len(packet) >= QTRLE_CHANGE and size != len(packet)
