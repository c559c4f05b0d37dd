"""A network camera whose packets get lost on the way, over UDP and over TCP.

test_rtsp_loss.py runs it as root in a network of its own: `unshare -n python FILE`. It prints what
it saw as one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import time
from itertools import islice
from typing import Any

import numpy as np
from fakes.rtsp import BITS, BLOCK_ROWS, COLUMNS, RtspServer, true_age

from flawline.cameras import Camera, open_camera

LOST = 0.03
SECONDS = 12.0
FRAMES = 100
# Grey levels of the picture, of which the server fills the rest with the first.
GREY, BLACK, WHITE = 0x60, 0x20, 0xE0


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def is_whole(image: np.ndarray[Any, Any]) -> bool:
    """Tell whether an image shows what the server draws, in every block of 16 x 16 pixels."""
    if not 0 < true_age(image) < 10:
        return False
    height, width = image.shape[:2]
    green = image[..., 1].astype(int)
    rows = BITS // COLUMNS * BLOCK_ROWS
    below = np.abs(green[rows:] - green[-1, -1]).max()
    block = width // COLUMNS
    bars = green[:rows, : block * COLUMNS]
    # The levels of the picture, as the decoder gives them.
    nearest = np.min([np.abs(bars - level) for level in np.unique(bars[8::16, block // 2 :: block])], 0)
    return bool(below < 16 and np.mean(nearest > 24) < 0.02 and height > rows)


def watch(camera: Camera, until: float) -> dict[str, Any]:
    """Take frames for a while; count those that do not show the picture."""
    torn = 0
    taken = 0
    for frame in islice(camera, FRAMES):
        assert frame.image is not None
        taken += 1
        torn += not is_whole(frame.image)
        if time.monotonic() > until:
            break
    return {"taken": taken, "torn": torn, **camera.counts()}


def main() -> None:
    run("ip link set lo up")
    # Each frame is several packets.
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
                seen[transport] = watch(camera, time.monotonic() + SECONDS)
                run(f"iptables -D {rule} --probability {LOST} -j DROP")
        print(json.dumps(seen))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
