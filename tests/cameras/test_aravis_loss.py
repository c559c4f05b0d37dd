"""A network camera that loses packets, is switched off or freezes, simulated by Aravis."""

from __future__ import annotations

import signal
import threading
import time
from itertools import islice

import pytest
from fakes.aravis import URI, WAIT_S, Simulator, is_whole, require_aravis

from flawline.cameras import events, open_camera
from flawline.cameras.events import CameraEvent

require_aravis()


@pytest.mark.slow
def test_lost_packets_give_no_torn_frame() -> None:
    # Of 1000 packets, 50 are lost; a frame has nine.
    simulator = Simulator("-r", "50")
    simulator.wait_until_found()
    try:
        with open_camera(f"{URI}&fps=100") as camera:
            for frame in islice(camera, 50):
                assert frame.image is not None
                assert is_whole(frame.image)
            assert camera.counts()["corrupt"] >= 5
    finally:
        simulator.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["killed", "frozen"])
def test_a_camera_that_is_gone_is_noticed_and_used_again_when_it_is_back(kind: str) -> None:
    simulator = Simulator()
    simulator.wait_until_found()
    noticed = threading.Event()

    def note(event: CameraEvent) -> None:
        if event.name in (events.STALLED, events.FAILED):
            noticed.set()

    with open_camera(f"{URI}&fps=25&stall=1&restarts=100") as camera:
        camera.on_event = note
        frames = iter(camera)
        next(frames)
        gone = time.monotonic()
        if kind == "killed":
            simulator.stop()
        else:
            simulator.process.send_signal(signal.SIGSTOP)
        back: list[float] = []

        def return_later() -> None:
            assert noticed.wait(WAIT_S)
            back.append(time.monotonic() - gone)
            time.sleep(3)
            if kind == "killed":
                back.append(time.monotonic())
                replaced.append(Simulator())
            else:
                simulator.process.send_signal(signal.SIGCONT)
                back.append(time.monotonic())

        replaced: list[Simulator] = []
        thread = threading.Thread(target=return_later)
        thread.start()
        try:
            for frame in frames:
                if len(back) == 2:
                    assert frame.image is not None
                    assert is_whole(frame.image)
                    break
            returned = time.monotonic() - back[1]
        finally:
            thread.join(WAIT_S)
            for other in [simulator, *replaced]:
                other.stop()
    assert back[0] < 2
    assert returned < 3
