"""A supervisor as systemd is one: it starts a command, takes its messages, and starts it again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

WAIT_S = 60.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


class Supervisor:
    """Supervises one command. Use it as a context manager, which ends the command.

    `address` is the path of its socket, or "@" and a name. `messages` are the lines that came since
    the last start. `watchdog_s` is what the command is asked to give signs of life within.
    """

    def __init__(
        self, words: Sequence[str | Path], address: str, watchdog_s: float | None = None
    ) -> None:
        self._words = [str(word) for word in words]
        self._address = address
        self._watchdog_s = watchdog_s
        self.messages: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._log = Path()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._socket.close()

    def start(self, log: Path) -> None:
        """Start the command, whose stderr goes to a file."""
        environment = {**ENVIRONMENT, "NOTIFY_SOCKET": self._address}
        if self._watchdog_s is not None:
            environment["WATCHDOG_USEC"] = str(int(1e6 * self._watchdog_s))
        self.messages.clear()
        self._log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                self._words, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, text=True
            )

    def wait_for(self, line: str, seconds: float = WAIT_S) -> None:
        """Take messages until this line comes."""
        assert self.wait_until(lambda: line in self.messages, seconds), self.log()

    def wait_until(self, is_so: Callable[[], bool], seconds: float = WAIT_S) -> bool:
        """Take messages until something is so; return whether it was in so many seconds."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.process is not None
            if time.monotonic() > deadline or self.process.poll() is not None:
                self._take(0.0)
                return is_so()
            self._take(0.05)
        return True

    def signs(self) -> int:
        """Return how many signs of life came."""
        return self.messages.count("WATCHDOG=1")

    def forget(self) -> None:
        """Take and forget what was sent until now."""
        self._take(0.0)
        self.messages.clear()

    def _take(self, seconds: float) -> None:
        self._socket.settimeout(seconds or 1e-6)
        try:
            while True:
                self.messages += self._socket.recv(4096).decode().splitlines()
                self._socket.settimeout(1e-6)
        except (TimeoutError, BlockingIOError):
            return

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send the command a signal, and return its status."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)
