"""What a running process holds: memory, threads and open files, sampled by a thread."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Sample:
    """At a time in seconds: resident memory in bytes, threads, and file descriptors."""

    at: float
    memory: int
    threads: int
    files: int


class WatchedProcess(threading.Thread):
    """Samples a process every `every` seconds until it has ended or `stop` is called."""

    def __init__(self, pid: int, every: float) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._folder = Path(f"/proc/{pid}")
        self._every = every
        self._stopped = threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        while not self._stopped.wait(self._every):
            try:
                self.samples.append(self._sample(time.monotonic() - start))
            except (OSError, KeyError):
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _sample(self, at: float) -> Sample:
        fields = {}
        for line in (self._folder / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.split()
        files = len(os.listdir(self._folder / "fd"))
        return Sample(at, 1024 * int(fields["VmRSS"][0]), int(fields["Threads"][0]), files)

    def after(self, seconds: float) -> list[Sample]:
        """Return the samples from this time on."""
        return [sample for sample in self.samples if sample.at >= seconds]


def slope_per_minute(samples: list[Sample]) -> float:
    """Return by how many bytes a minute the memory grows, as a straight line fits best."""
    times = [sample.at / 60 for sample in samples]
    return float(np.polyfit(times, [sample.memory for sample in samples], 1)[0])
