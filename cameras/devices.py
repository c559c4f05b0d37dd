"""Which of the connected machine-vision cameras a URI means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flawline.cameras import CameraError


@dataclass(frozen=True)
class Device:
    """A connected camera: its serial number, its name from the user or "", and the library's entry.

    `model` describes it in messages.
    """

    serial: str
    name: str
    model: str
    entry: Any


def choose_device(devices: Sequence[Device], wanted: str, scheme: str, hint: str) -> Device:
    """Return the camera with this serial number or name, or at this position, counted from 0.

    An empty `wanted` means the only camera. `hint` says what to check if there is none. Raises
    CameraError, which lists the cameras.
    """
    if not devices:
        raise CameraError(f"camera {scheme}://{wanted}: no camera was found; {hint}")
    found = [device for device in devices if wanted and wanted in (device.serial, device.name)]
    if not found and wanted.isdecimal() and int(wanted) < len(devices):
        found = [devices[int(wanted)]]
    if not wanted:
        found = list(devices)
    if len(found) == 1:
        return found[0]
    problem = "no camera has this serial number or name"
    if not wanted:
        problem = "several cameras were found, and none was chosen"
    elif found:
        problem = "several cameras have this name"
    listed = []
    for device in devices:
        description = f"{device.model} {device.name}".strip()
        listed.append(f"{scheme}://{device.serial} ({description})")
    raise CameraError(f"camera {scheme}://{wanted}: {problem}; give {', '.join(listed)}")
