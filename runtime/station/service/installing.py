"""What installs a new station: shell commands, and what keeps its user from reading files."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from flawline.commands import shell_line
from flawline.runtime.station.service.unit import STATION_FILE, Service

UNITS = Path("/etc/systemd/system")
# Files of cameras, GPUs, pins and serial ports.
DEVICES = ("video*", "media*", "dri/render*", "nv*", "gpiochip*", "ttyACM*", "bus/usb/*/*")
CAMERAS = "video"


def device_groups(folder: Path = Path("/dev")) -> list[str]:
    """Return the groups that own devices of this machine; systemd refuses those that it lacks."""
    numbers = {path.lstat().st_gid for pattern in DEVICES for path in folder.glob(pattern)}
    names = {entry.gr_name for entry in grp.getgrall() if entry.gr_gid in numbers}
    # A camera may be connected later.
    present = {entry.gr_name for entry in grp.getgrall()}
    return sorted((names | ({CAMERAS} & present)) - {"root"})


def install_lines(service: Service, made: Path, unit: Path, names: Sequence[str]) -> list[str]:
    """Return the commands that install a station from the folder `made`, and start it.

    `names` are the files and folders of it that the service gets, and `unit` is its unit.
    """
    user = service.user
    folder = service.folder
    new_user = ("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", folder)
    return [
        f"id {shell_line([user])} >/dev/null 2>&1 || {_sudo(*new_user, user)}",
        _sudo("install", "-d", "-m", "0750", folder),
        _sudo("cp", "-r", *(made / name for name in names), folder),
        _sudo("chown", "-R", f"{user}:{user}", folder),
        _sudo("install", "-m", "0644", unit, UNITS / unit.name),
        _sudo("systemctl", "daemon-reload"),
        _sudo("systemctl", "enable", "--now", unit.name),
        shell_line(["systemctl", "status", unit.name]),
    ]


def change_line(service: Service) -> str:
    """Return a command that is run as the user of the station.

    It has the path of the program: sudo does not search the PATH of the person.
    """
    words = ("-u", service.user, *service.program, "recipe", service.folder / STATION_FILE)
    return _sudo(*words)


def _sudo(*words: str | Path) -> str:
    return shell_line(["sudo", *words])


def closed_to_others(paths: Iterable[Path]) -> list[Path]:
    """Return those files and folders that a user of no group cannot read, or what leads to them."""
    closed: list[Path] = []
    for path in paths:
        found = _closed(path.resolve())
        if found is not None and found not in closed:
            closed.append(found)
    return closed


def _closed(path: Path) -> Path | None:
    for folder in reversed(path.parents):
        if not _mode(folder) & stat.S_IXOTH:
            return folder
    names = [path]
    if path.is_dir():
        names += [Path(entry.path) for entry in os.scandir(path)]
    for name in names:
        needed = stat.S_IROTH | (stat.S_IXOTH if name.is_dir() else 0)
        if _mode(name) & needed != needed:
            return name
    return None


def _mode(path: Path) -> int:
    """Return the permissions of a file; none if it cannot be looked at."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0
