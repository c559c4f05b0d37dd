"""Network cameras and recorders: rtsp://HOST/PATH, and encrypted rtsps://HOST/PATH.

rtsp://192.168.0.10/stream1?credentials=camera.txt
rtsp://192.168.0.10/cam/realmonitor%3Fchannel=1&subtype=0?transport=tcp
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import numpy.typing as npt

from flawline.cameras import CameraError, Frame
from flawline.cameras.clock import Clock
from flawline.cameras.credentials import Credentials, permission_warning, read_credentials
from flawline.cameras.grabbed import Grabbed
from flawline.cameras.live import LiveCamera
from flawline.cameras.rtsp_options import RtspOptions
from flawline.extras import install_command
from flawline.uris import mask_secrets

PORT = 554
PORT_ENCRYPTED = 322


class Rtsp(LiveCamera):
    """A stream of a network camera, decoded by PyAV.

    The address may hold a user name and a password in percent-encoding; neither is in `source`, a
    message or a frame. A damaged frame, and those that depend on it, are left out.
    """

    untested: ClassVar[str | None] = "on a real camera"
    is_address: ClassVar[bool] = True
    Options: ClassVar[type[RtspOptions]] = RtspOptions
    usage: ClassVar[str] = "rtsp://192.168.0.10/stream1"
    scheme: ClassVar[str] = "rtsp"
    port: ClassVar[int] = PORT

    def __init__(
        self, path: str, options: RtspOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or RtspOptions()
        self._parts = _split(self.scheme, path)
        host = self._parts.netloc.rpartition("@")[2]
        location = self._parts.path
        if self._parts.query:
            location += f"?{self._parts.query}"
        source = mask_secrets(f"{self.scheme}://{host}{location}")
        super().__init__(source, self._options, clock)
        self._location = location
        self._host = host
        self._credentials = self._read_credentials()
        # Made for the first frame, because PyAV is in an extra.
        self._converter: Any = None

    def _read_credentials(self) -> Credentials | None:
        user = self._parts.username
        file = self._options.credentials
        if file is None:
            if user is None:
                return None
            return Credentials(unquote(user), unquote(self._parts.password or ""))
        if user is not None:
            raise CameraError(
                f"camera {self.source}: has a user name in its address and a credentials file; "
                f"leave one of them out"
            )
        return read_credentials(file)

    @classmethod
    def missing(cls) -> str | None:
        try:
            import av  # noqa: F401
        except ImportError:
            return f"network cameras need PyAV; {install_command('video')}"
        return None

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Return the address of a port of this machine that nothing listens to."""
        return f"{cls.scheme}://127.0.0.1:1/none"

    def notes(self) -> list[str]:
        warnings = []
        if self._options.credentials is not None:
            warning = permission_warning(self._options.credentials)
            if warning is not None:
                warnings.append(warning)
        if self.scheme == "rtsps" and not self._options.verify:
            warnings.append(
                f"warning: camera {self.source}: its certificate is not checked, so that another "
                f"device may take its place; give ?ca=FILE instead of ?verify=no"
            )
        return warnings

    def _open(self) -> Any:
        from flawline.cameras.rtsp_reader import RtspReader

        self._require_known_host()
        has_user = self._credentials is not None
        return RtspReader(self.source, self._address(), has_user, self._options, self.clock)

    def _require_known_host(self) -> None:
        """Raise CameraError if there is no host of this name, which FFmpeg reports as any error."""
        host = self._parts.hostname or ""
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            raise CameraError(
                f"camera {self.source}: the host {host} is not known ({error.strerror}); "
                f"check its name, or give its IP address"
            ) from None

    def _address(self) -> str:
        """Return the address for FFmpeg, with user name and password. Never for a message."""
        userinfo = ""
        if self._credentials is not None:
            user = quote(self._credentials.user, safe="")
            userinfo = f"{user}:{quote(self._credentials.password, safe='')}@"
        host = self._host
        if self._parts.port is None:
            # FFmpeg takes port 554 also for an encrypted stream.
            host = f"{host.rstrip(':')}:{self.port}"
        return f"{self.scheme}://{userinfo}{host}{self._location}"

    def _grab(self, handle: Any) -> Grabbed:
        grabbed: Grabbed = handle.read()
        return grabbed

    def _convert(self, payload: Any) -> npt.NDArray[Any] | Frame:
        import av

        from flawline.cameras.video_convert import FrameConverter

        if self._converter is None:
            self._converter = FrameConverter(threads=1)
        try:
            image: npt.NDArray[Any] = self._converter.convert(payload)
            return image
        except av.FFmpegError:
            reason = f"its pixel format {payload.format.name} cannot be converted"
            return Frame(self.source, 0, None, fault=f"{reason}; set the camera to H.264")

    def _release(self, handle: Any) -> None:
        handle.close()


class Rtsps(Rtsp):
    """A stream of a network camera over TLS. The certificate of the camera is checked."""

    scheme: ClassVar[str] = "rtsps"
    port: ClassVar[int] = PORT_ENCRYPTED
    usage: ClassVar[str] = "rtsps://192.168.0.10/stream1?ca=camera.pem"


def _split(scheme: str, path: str) -> SplitResult:
    """Split an address. Raises CameraError, which does not quote it: it may hold a password."""
    try:
        parts = urlsplit(f"{scheme}://{path}")
        # A wrong port is only noticed when it is read.
        valid = bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        raise CameraError(
            f"camera {scheme}: the address is not valid; write {scheme}://HOST:PORT/PATH, with the "
            f"special characters of user name and password in percent-encoding, such as %40 for @"
        )
    return parts
