"""An RTSP server for tests, run by the Python of the system, which has GStreamer's bindings.

    python3 rtsp_server.py --port 0 --size 640x360 --fps 25 --codec h264

It serves /line, a live stream with the time of each picture drawn into it, and prints its port as
the first line. `clock_of` in rtsp.py reads that time.
"""

from __future__ import annotations

import argparse
import threading
import time
import zlib

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer

# The time is drawn as BITS black and white blocks, in rows of COLUMNS, at the top of the picture.
BITS = 48
COLUMNS = 16
BLOCK_ROWS = 16  # pixels
ENCODERS = {
    # With one thread there is one slice per picture, between two of which nothing can be inserted.
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast threads=1 key-int-max=25 "
    "bitrate=4000 ! rtph264pay config-interval=-1 name=pay0 pt=96",
    # Between the slices of a key frame the payloader inserts a header, which ends the frame for
    # FFmpeg: both halves are decoded as damaged frames.
    "sliced": "x264enc tune=zerolatency speed-preset=ultrafast threads=2 sliced-threads=true "
    "key-int-max=25 ! rtph264pay config-interval=-1 name=pay0 pt=96",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=25 bitrate=4000 "
    "option-string=pools=none:frame-threads=1 ! h265parse ! "
    "rtph265pay config-interval=-1 name=pay0 pt=96",
    "mjpeg": "jpegenc quality=85 ! rtpjpegpay name=pay0 pt=26",
}


def with_checksum(milliseconds: int) -> int:
    """Return a time with its checksum above it, which no mixture of two pictures has."""
    time_bits = milliseconds % 2**32
    return time_bits | (zlib.crc32(time_bits.to_bytes(4, "big")) & 0xFFFF) << 32


def picture(width: int, height: int, number: int) -> bytes:
    """Return a grey I420 picture with a number in its blocks."""
    luma = bytearray(b"\x60") * (width * height)
    block = width // COLUMNS
    for row in range(BITS // COLUMNS):
        line = bytearray()
        for column in range(COLUMNS):
            bit = number >> (row * COLUMNS + column) & 1
            line += (b"\xe0" if bit else b"\x20") * block
        line += b"\x60" * (width - len(line))
        start = row * BLOCK_ROWS * width
        luma[start : start + BLOCK_ROWS * width] = line * BLOCK_ROWS
    return bytes(luma) + b"\x80" * (width * height // 2)


class Stream:
    """Pushes pictures into the pipeline of one media, at their rate, until it refuses them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.sizes = [tuple(map(int, size.split("x"))) for size in arguments.size.split(",")]

    def configure(self, _factory: object, media: object) -> None:
        """Start the pictures of a media that a client has requested."""
        source = media.get_element().get_child_by_name("source")
        threading.Thread(target=self._push, args=(source,), daemon=True).start()

    def _push(self, source: object) -> None:
        # Before that, there is no clock to give the pictures their time stamps.
        while source.get_state(0).state != Gst.State.PLAYING:
            time.sleep(0.002)
        period = 1 / self.arguments.fps
        start = time.monotonic()
        shown = -1
        for count in range(10**9):
            # With several sizes, the next one comes after each second.
            index = min(int(count * period), len(self.sizes) - 1)
            width, height = self.sizes[index]
            if index != shown:
                shown = index
                caps = f"video/x-raw,format=I420,width={width},height={height},"
                caps += f"framerate={self.arguments.fps}/1"
                source.set_property("caps", Gst.Caps.from_string(caps))
            time.sleep(max(0.0, start + count * period - time.monotonic()))
            data = picture(width, height, with_checksum(int(time.monotonic() * 1000)))
            if source.emit("push-buffer", Gst.Buffer.new_wrapped(data)) != Gst.FlowReturn.OK:
                return


def protect(factory: object, arguments: argparse.Namespace) -> object:
    """Return what lets only one user see the stream."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    user, password = arguments.login.split(":", 1)
    if arguments.digest:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(user, password, token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    permissions = GstRtspServer.RTSPPermissions()
    for permission in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("user", permission, True)
    factory.set_permissions(permissions)
    return auth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--codec", choices=ENCODERS, default="h264")
    parser.add_argument("--login")
    parser.add_argument("--digest", action="store_true")
    parser.add_argument("--certificate")
    arguments = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(arguments.port)
    factory = GstRtspServer.RTSPMediaFactory()
    source = "appsrc name=source is-live=true do-timestamp=true format=time"
    factory.set_launch(f"( {source} ! {ENCODERS[arguments.codec]} )")
    factory.set_shared(True)
    factory.connect("media-configure", Stream(arguments).configure)
    if arguments.login:
        server.set_auth(protect(factory, arguments))
    if arguments.certificate:
        auth = server.get_auth() or GstRtspServer.RTSPAuth()
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(arguments.certificate))
        server.set_auth(auth)
    server.get_mount_points().add_factory("/line", factory)
    if not server.attach(None):
        raise SystemExit("the port is in use")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
