"""Messages to the program that supervises this process, by the protocol of systemd.

A message is a datagram of lines NAME=VALUE to the socket that NOTIFY_SOCKET names: see
sd_notify(3). Podman and other supervisors take the same messages.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from flawline.os_errors import reason_of
from flawline.runtime.console import terminal_line, warn

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"
# The messages that are sent, as sd_notify(3) names them.
READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
LONGEST_STATUS = 300  # characters


class ServiceManager:
    """Takes the messages of this process. It never delays or ends the work of the sender.

    `address` is the path of a socket, or "@" and the name of an abstract one. `watchdog_s` is the
    time in seconds within which the next ALIVE must come, or the process is killed; None if it is
    not supervised.
    """

    def __init__(self, address: str, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = address
        if address.startswith("@"):
            self._address = f"\0{address[1:]}"
        self._failed = False

    @classmethod
    def of_environment(cls, environ: MutableMapping[str, str]) -> ServiceManager | None:
        """Return the supervisor that started this process; None if there is none.

        The variables are removed, so that programs that this one starts send nothing.
        """
        address = environ.pop(SOCKET, "")
        microseconds = environ.pop(WATCHDOG, None)
        process = environ.pop(WATCHDOG_PID, str(os.getpid()))
        if not address:
            return None
        if not address.startswith(("/", "@")) or len(address) < 2:
            warn(f"warning: {SOCKET}={address} is no Unix socket; the supervisor gets no messages")
            return None
        seconds = None
        # The variables may have been inherited from a parent, for which they were meant.
        if microseconds is not None and process == str(os.getpid()):
            seconds = _seconds(microseconds)
        return cls(address, seconds)

    def send(self, *lines: str) -> bool:
        """Send a message; return whether it was taken. A signal handler may call it."""
        data = "\n".join(lines).encode("utf-8", "backslashreplace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                # A supervisor that hangs must not hold up the inspection.
                connection.setblocking(False)
                connection.sendto(data, self._address)
        except OSError as error:
            if not self._failed:
                warn(f"warning: the supervisor takes no messages ({reason_of(error)})")
            self._failed = True
            return False
        self._failed = False
        return True


def status(text: str) -> str:
    """Return the line that shows a text in the status of the service."""
    return f"STATUS={terminal_line(text)[:LONGEST_STATUS]}"


def _seconds(microseconds: str) -> float | None:
    if microseconds.isdecimal() and int(microseconds) > 0:
        return int(microseconds) / 1e6
    warn(f"warning: {WATCHDOG}={microseconds} is no time; no signs of life are sent")
    return None
