"""Two simulated GigE Vision cameras, each at its own cable, of which one is pulled for a while.

test_aravis_network.py runs it as root in a network of its own: `unshare -n python FILE`. It prints
what it saw as one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from itertools import pairwise
from typing import Any

from fakes.aravis import DEBIAN, SIMULATOR, is_whole

sys.path.append(DEBIAN)

from flawline.cameras import aravis, events, open_camera
from flawline.cameras.events import CameraEvent

OPTIONS = "width=128&height=96&pixel_format=Mono8&fps=25&stall=1&restarts=100"
WATCHED_S = 4.0
PULLED_S = 4.0
WAIT_S = 30.0


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def connect(number: int) -> list[subprocess.Popen[bytes]]:
    """Start a camera with a network of its own, at the other end of a cable."""
    network = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    time.sleep(0.5)
    run(f"ip link add host{number} type veth peer name camera{number}")
    run(f"ip link set camera{number} netns {network.pid}")
    run(f"ip addr add 10.9.{number}.1/24 dev host{number}")
    run(f"ip link set host{number} up")
    enter = f"nsenter -t {network.pid} -n"
    run(f"{enter} ip addr add 10.9.{number}.2/24 dev camera{number}")
    run(f"{enter} ip link set camera{number} up")
    simulator = f"{enter} {SIMULATOR} -i 10.9.{number}.2 -s SIM{number}"
    camera = subprocess.Popen(simulator.split(), stdout=subprocess.DEVNULL)
    return [camera, network]


class Watched(threading.Thread):
    """Takes the frames of a camera, and notes when they and the events came."""

    def __init__(self, serial: str) -> None:
        super().__init__(daemon=True)
        self.camera = open_camera(f"aravis://{serial}?{OPTIONS}")
        self.camera.on_event = self.note
        self.times: list[float] = []
        self.torn = 0
        self.noticed: list[float] = []

    def note(self, event: CameraEvent) -> None:
        if event.name in (events.STALLED, events.FAILED):
            self.noticed.append(time.monotonic())

    def run(self) -> None:
        for frame in self.camera:
            self.torn += not is_whole(frame.image)
            self.times.append(time.monotonic())

    def wait_for_a_frame(self, after: float) -> float:
        """Return the time of the first frame after a time."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            later = [moment for moment in self.times if moment > after]
            if later:
                return later[0]
            time.sleep(0.01)
        raise SystemExit("no frame came")

    def longest_gap(self, start: float, end: float) -> float:
        """Return the longest time without a frame, in seconds."""
        moments = [start, *(moment for moment in self.times if start < moment < end), end]
        return max(later - moment for moment, later in pairwise(moments))


def watch_both() -> dict[str, Any]:
    pulled, other = Watched("SIM1"), Watched("SIM2")
    for watched in (pulled, other):
        watched.start()
        watched.wait_for_a_frame(0.0)
    start = time.monotonic()
    before = [watched.camera.counts() for watched in (pulled, other)]
    time.sleep(WATCHED_S)
    after = [watched.camera.counts() for watched in (pulled, other)]
    captured = [new["captured"] - old["captured"] for new, old in zip(after, before, strict=True)]
    corrupt = [counts["corrupt"] for counts in after]
    run("ip link set host1 down")
    down = time.monotonic()
    time.sleep(PULLED_S)
    run("ip link set host1 up")
    up = time.monotonic()
    returned = pulled.wait_for_a_frame(up)
    result = {
        "fps": [count / (down - start) for count in captured],
        "corrupt": corrupt,
        "noticed_s": min(moment - down for moment in pulled.noticed),
        "returned_s": returned - up,
        "other_gap_s": other.longest_gap(down, returned),
        "other_noticed": len(other.noticed),
        "torn": pulled.torn + other.torn,
    }
    pulled.camera.close()
    other.camera.close()
    return result


def main() -> None:
    processes = []
    run("ip link set lo up")
    try:
        for number in (1, 2):
            processes += connect(number)
        deadline = time.monotonic() + WAIT_S
        while {device.serial for device in aravis.find_devices()} != {"SIM1", "SIM2"}:
            if time.monotonic() > deadline:
                raise SystemExit("the simulated cameras were not found")
        print(json.dumps(watch_both()))
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
