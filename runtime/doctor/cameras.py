"""Cameras: device files, libraries, and which cameras are connected."""

from __future__ import annotations

from collections.abc import Iterator

from flawline.runtime.doctor.finding import Finding, note, ok, problem, split_remedy
from flawline.runtime.doctor.machine import Machine, Subject

USB_INTERFACES = "sys/bus/usb/devices/*/bInterfaceClass"
USB_VIDEO = "0e"
RECEIVE_BUFFER = "proc/sys/net/core/rmem_max"
# Bytes that Flawline asks for. With fewer, a fast network camera loses packets in most frames.
WANTED_BUFFER = 4_000_000


def check_device_files(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Look at the device files of USB cameras and others with a driver of Linux."""
    from flawline.cameras.v4l2 import NO_IMAGES, device_files, problem_of

    files = device_files(machine.path("dev"))
    for file in files:
        text = problem_of(str(file))
        if text is None:
            yield ok(f"{file} can be opened")
        elif text.startswith(NO_IMAGES):
            # Each USB camera has such a file beside that of its images.
            continue
        elif "another program" in text:
            yield ok(f"{file} is in use")
        else:
            reason, remedy = split_remedy(text)
            yield problem(f"{file}: {reason}", remedy or "connect it again")
    usb = [name for name in machine.glob(USB_INTERFACES) if machine.read(name) == USB_VIDEO]
    if usb and not files:
        remedy = "sudo modprobe uvcvideo"
        if machine.is_container:
            remedy = "start the container with --device /dev/video0"
        yield problem("a USB camera is connected, and there is no device file for it", remedy)
    elif not files:
        yield ok("there is no device file of a camera")


def camera_names() -> list[str]:
    """Return the schemes of all cameras."""
    from flawline.cameras import CAMERAS

    return list(CAMERAS)


def check_camera(machine: Machine, subject: Subject, name: str) -> Iterator[Finding]:
    """Say whether cameras of a kind can be used, and which are connected."""
    from flawline.cameras import missing
    from flawline.cameras.connected import connected

    reason = missing(name)
    if reason is not None:
        yield note(f"{name} cannot be used", reason)
        return
    found = connected(name)
    if found:
        yield ok(f"{name}: {', '.join(found)}")
    elif found is None:
        yield ok(f"{name} can be used")
    else:
        yield ok(f"{name} can be used; no camera was found")


def check_network(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Compare the receive buffer with what industrial network cameras need."""
    from flawline.cameras import CAMERAS, camera_class, missing
    from flawline.cameras.triggered import TriggeredCamera

    industrial = []
    for name in CAMERAS:
        if missing(name) is None and issubclass(camera_class(name), TriggeredCamera):
            industrial.append(name)
    size = machine.read_number(RECEIVE_BUFFER)
    if not industrial or size is None:
        return
    text = f"largest receive buffer of the network: {size} bytes"
    if size < WANTED_BUFFER:
        yield note(
            f"{text}; GigE cameras ({', '.join(industrial)}) may lose packets",
            f"sudo sysctl -w net.core.rmem_max={WANTED_BUFFER}, and a line in /etc/sysctl.d to "
            f"keep it",
        )
    else:
        yield ok(text)
