"""An open RTSP stream: its newest whole frame, and one line for everything that goes wrong."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

import av

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import CorruptFrame, Grabbed, PermanentError
from flawline.cameras.h264_numbers import FrameNumbers
from flawline.cameras.rtsp_options import RtspOptions
from flawline.cameras.stream_age import StreamAge

# The description of the stream comes with RTSP, so that nothing has to be read to find it out.
# Without these two, opening takes 1 s, and the frames of that time come late. `fflags=nobuffer`
# would throw away the first key frame, so that the first frame came after the next one.
LOW_DELAY = {"probesize": "32", "analyzeduration": "0", "flags": "low_delay"}
# Let the decoder fail where it would otherwise fill damaged areas from other frames.
STRICT = {"err_detect": "crccheck+explode"}
# Codecs whose frame is complete for FFmpeg only when the next one begins.
ENDED_BY_THE_NEXT = ("h264", "hevc")
# The codec whose frames have numbers.
NUMBERED = "h264"
NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH)
# An interrupted read lasts this much longer than a stall, which is then reported first.
LONGER = 1.5


class RtspReader:
    """Opens a stream and reads it. `address` holds the password, `source` does not.

    PyAV's exceptions hold the address, and therefore are never chained or printed. Raises
    CameraError, and PermanentError where another attempt gives the same result. Not safe for use by
    several threads.
    """

    def __init__(
        self, source: str, address: str, has_user: bool, options: RtspOptions, clock: Clock
    ) -> None:
        self._source = source
        self._options = options
        self._clock = clock
        start = clock.monotonic()
        try:
            self._container = av.open(
                address,
                options=_settings(options, source),
                timeout=(options.timeout, LONGER * options.stall),
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            took = clock.monotonic() - start
            raise self._open_error(error, took, has_user) from None
        if not self._container.streams.video:
            self._container.close()
            raise PermanentError(f"camera {source}: the stream has no video; check the path")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        context.options = STRICT
        # Each further thread would delay the frames by one.
        context.thread_count = 1
        self._age = StreamAge(context.name in ENDED_BY_THE_NEXT)
        self._numbers: FrameNumbers | None = None
        if context.name == NUMBERED:
            self._numbers = FrameNumbers(context.extradata or b"")
        self._packets = self._container.demux(self._stream)
        self._decoded: deque[Any] = deque()
        # Until a whole key frame came, no frame can be decoded.
        self._is_damaged = True

    def read(self) -> Grabbed:
        """Block for the next whole frame. Raises CorruptFrame for a damaged one, and CameraError.

        The payload is a frame of PyAV.
        """
        while not self._decoded:
            packet = self._next_packet()
            if self._numbers is not None and self._numbers.lost_before(bytes(packet)):
                self._is_damaged = True
            try:
                self._decoded.extend(self._stream.codec_context.decode(packet))
            except av.FFmpegError:
                self._is_damaged = True
                raise CorruptFrame("the decoder reports damage") from None
        frame = self._decoded.popleft()
        if frame.is_corrupt:
            self._is_damaged = True
            raise CorruptFrame("the decoder had to repair it")
        if frame.key_frame:
            self._is_damaged = False
        if self._is_damaged:
            raise CorruptFrame("it depends on a damaged or missing frame before it")
        stamp = None
        if frame.pts is not None:
            stamp = float(frame.pts * frame.time_base)
        return Grabbed(frame, self._age.captured_mono(stamp, self._clock.monotonic()))

    def _next_packet(self) -> Any:
        try:
            packet = next(self._packets, None)
        except av.ExitError:
            seconds = LONGER * self._options.stall
            raise CameraError(f"camera {self._source}: sent nothing for {seconds:g} s") from None
        except (av.FFmpegError, OSError) as error:
            raise CameraError(
                f"camera {self._source}: the connection is lost ({_reason(error)})"
            ) from None
        # At the end comes an empty packet. The frame that it would let the decoder give is old.
        if packet is None or not packet.size:
            raise CameraError(f"camera {self._source}: the server ended the stream")
        return packet

    def _open_error(self, error: Exception, took: float, has_user: bool) -> CameraError:
        """Return the error of a stream that cannot be opened; `took` is the time in seconds."""
        name = f"camera {self._source}"
        if isinstance(error, av.HTTPUnauthorizedError) and has_user:
            return PermanentError(f"{name}: wrong user name or password (401); check both")
        if isinstance(error, av.HTTPUnauthorizedError):
            return PermanentError(
                f"{name}: needs a user name and a password (401); give ?credentials=FILE with the "
                f"lines user=NAME and password=PASSWORD"
            )
        if isinstance(error, av.HTTPForbiddenError):
            return PermanentError(
                f"{name}: this user may not see the stream (403); check its rights"
            )
        if isinstance(error, av.HTTPNotFoundError):
            return CameraError(f"{name}: the server has no such stream (404); check the path")
        if isinstance(error, (av.HTTPError, av.HTTPClientError, av.HTTPServerError)):
            return CameraError(
                f"{name}: the server refused the stream ({_reason(error)}); check its log, and how "
                f"many clients it allows"
            )
        if isinstance(error, ConnectionRefusedError):
            return CameraError(
                f"{name}: the connection was refused; check that the camera is on, and the port"
            )
        if isinstance(error, OSError) and error.errno in NO_ROUTE:
            return CameraError(f"{name}: there is no route to it; check cable and network")
        # FFmpeg also reports a time-out as invalid data.
        if isinstance(error, TimeoutError) or took >= self._options.timeout:
            return CameraError(
                f"{name}: no answer within {self._options.timeout:g} s; check address and network"
            )
        if self._source.startswith("rtsps:"):
            return CameraError(
                f"{name}: no encrypted connection ({_reason(error)}); check the port, and the "
                f"certificate with ?ca=FILE"
            )
        return CameraError(
            f"{name}: the server does not answer as RTSP does ({_reason(error)}); check the port"
        )

    def close(self) -> None:
        """End the stream."""
        self._container.close()


def _settings(options: RtspOptions, source: str) -> dict[str, str]:
    """Return the options for FFmpeg."""
    # Other media of the stream, such as sound, are not requested.
    settings = {**LOW_DELAY, "rtsp_transport": options.transport, "allowed_media_types": "video"}
    if source.startswith("rtsps:"):
        settings["tls_verify"] = str(int(options.verify))
        if options.ca is not None:
            settings["ca_file"] = options.ca
    return settings


def _reason(error: Exception) -> str:
    """Return what FFmpeg reports, without the address."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
