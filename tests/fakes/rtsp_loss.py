"""A network camera whose packets get lost on the way, over UDP and over TCP.

test_rtsp_loss.py runs it as root in a network of its own: `unshare -n python FILE`. It prints what
it saw as one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from fakes.rtsp import RtspServer, shown_time
from flawline.cameras import Camera, open_camera

LOST = 0.03
SECONDS = 12.0


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def watch(camera: Camera) -> dict[str, Any]:
    """Take frames for a while; count those that show parts of several pictures."""
    torn = 0
    taken = 0
    end = time.monotonic() + SECONDS
    for frame in camera:
        assert frame.image is not None
        taken += 1
        torn += shown_time(frame.image) is None
        if time.monotonic() > end:
            break
    return {"taken": taken, "torn": torn, **camera.counts()}


def main() -> None:
    run("ip link set lo up")
    # A frame without much change is a single packet, and a key frame is several.
    server = RtspServer("--size", "640x360")
    seen = {}
    try:
        for transport in ("udp", "tcp"):
            options = f"transport={transport}&stall=5&restarts=1000"
            with open_camera(f"{server.address()}?{options}") as camera:
                frames = iter(camera)
                next(frames)
                rule = f"INPUT -i lo -p {transport} -m statistic --mode random"
                run(f"iptables -A {rule} --probability {LOST} -j DROP")
                seen[transport] = watch(camera)
                run(f"iptables -D {rule} --probability {LOST} -j DROP")
        print(json.dumps(seen))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
