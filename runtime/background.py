"""Work beside the stream: jobs that one thread does in order, within a limit of memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class BackgroundWorker:
    """A thread that does jobs in the order in which they were handed over.

    The jobs that wait may hold `capacity` bytes; one job is always accepted. The thread starts with
    the first job. A job that raises does not stop the others; its exception is kept for
    `take_failures`.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Job, int]] = deque()
        self._held = 0
        self._unfinished = 0
        self._finished = 0
        self._failures: list[BaseException] = []
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, job: Job, size: int, wait: bool) -> bool:
        """Hand over a job that holds `size` bytes; return False if there is no room for it.

        With `wait` true it waits for room instead. Raises RuntimeError after `close`.
        """
        with self._changed:
            if self._closing:
                raise RuntimeError("the worker is closed")
            while self._jobs and self._held + size > self._capacity:
                if not wait:
                    return False
                self._changed.wait()
            self._jobs.append((job, size))
            self._held += size
            self._unfinished += 1
            self._changed.notify_all()
            if self._thread is None:
                # A daemon, so that a disk that hangs cannot keep the process from ending.
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
        return True

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until every job is done, at most `timeout` seconds; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._unfinished == 0, timeout)

    def pending(self) -> int | None:
        """Return how many jobs were done before the one that waits; None if no job waits."""
        return self._finished if self._unfinished else None

    def discard(self) -> None:
        """Give up the jobs that wait. The one that has begun is not affected."""
        with self._changed:
            self._unfinished -= len(self._jobs)
            self._jobs.clear()
            self._held = 0
            self._changed.notify_all()

    def take_failures(self) -> list[BaseException]:
        """Return the exceptions of the jobs since the last call, the oldest first."""
        with self._changed:
            failures = self._failures
            self._failures = []
        return failures

    def close(self, timeout: float | None = None) -> None:
        """Wait until every job is done, and end the thread. May be called again.

        After `timeout` seconds the jobs that wait are given up, and one that hangs keeps its thread
        until the process ends.
        """
        if not self.drain(timeout):
            self.discard()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    if self._closing:
                        return
                    self._changed.wait()
                job, size = self._jobs.popleft()
                self._held -= size
                self._changed.notify_all()
            failure = _failure_of(job)
            # The image of a job is released before the next one is made.
            del job
            with self._changed:
                if failure is not None:
                    self._failures.append(failure)
                self._unfinished -= 1
                self._finished += 1
                self._changed.notify_all()


def _failure_of(job: Job) -> BaseException | None:
    try:
        job()
    except BaseException as error:
        return error
    return None
