"""Aravis' simulated GigE Vision camera as a process, on the loopback device."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from flawline.cameras import aravis, missing

SIMULATOR = shutil.which("arv-fake-gv-camera-0.8")
# Where Debian installs PyGObject, which every Python of the same version can load.
DEBIAN = "/usr/lib/python3/dist-packages"
WAIT_S = 20.0
URI = "aravis://SIM1?width=128&height=96&pixel_format=Mono8"


def require_aravis() -> None:
    """Skip the tests of a module where Aravis or its simulator is missing."""
    if SIMULATOR is None:
        pytest.skip("needs arv-fake-gv-camera-0.8", allow_module_level=True)
    sys.path.append(DEBIAN)
    try:
        if missing("aravis") is not None:
            pytest.skip("needs PyGObject and Aravis for this Python", allow_module_level=True)
    finally:
        sys.path.remove(DEBIAN)


class Simulator:
    """The simulated camera SIM1. Two of them cannot run on one machine at the same time."""

    def __init__(self, *options: str) -> None:
        assert SIMULATOR is not None
        command = [SIMULATOR, "-i", "127.0.0.1", "-s", "SIM1", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait_until_found(self) -> None:
        """Search for the camera; skip the test where it cannot be found."""
        for _ in range(10):
            if any(device.serial == "SIM1" for device in aravis.find_devices()):
                return
        self.stop()
        pytest.skip("the simulated camera cannot be found on the loopback device")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)


def is_whole(image: np.ndarray | None) -> bool:
    """Tell whether an image has the diagonal pattern of the simulator in every pixel."""
    assert image is not None
    rows, columns = np.indices(image.shape)
    return bool((image == (rows + columns + int(image[0, 0])) % 255).all())
