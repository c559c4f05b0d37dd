"""Teaching in a process of its own, and the new bundle in the place of the one in use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flawline import FlawlineError
from flawline.commands import PROGRAM, program_of
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import describe_failure, first_line, log, printable, warn
from flawline.runtime.outputs.web.desk import manifest_hash
from flawline.runtime.replaced import install_bundle

TEACHING, INSTALLING, INSTALLED, FAILED = "teaching", "installing", "installed", "failed"
# The lines of the command that are kept.
LINES = 12
# Added to the niceness of the stream: on a machine without idle time, it still gets a tenth
# of what one thread of the stream gets, and does not take for ever.
NICENESS = 10
LARGEST_NICENESS = 19
# Of /proc/PID/oom_score_adj: the process that is ended first when memory runs out.
ENDED_FIRST = "1000"
STOP_S = 5.0
NEW_BUNDLE = "bundle"


@dataclass(frozen=True)
class Order:
    """What is to be done.

    `bundle` judges now. `words` are the arguments of the command after the bundle, but for the
    folder of the new one; it runs in `folder`, where `pictures` are linked into folders of these
    names. `person` started it, in the `mode`, and `note` is for the audit log.
    """

    bundle: Bundle
    mode: str
    person: str
    note: str
    folder: Path
    pictures: Mapping[str, Sequence[Path]]
    words: Sequence[str]


class TeachingJob:
    """Runs `flawline teach` at a low priority, and puts the bundle in place that it wrote.

    `changed` is called after each change, and `done` when the bundle is in place. Any thread may
    read the attributes.
    """

    def __init__(self, order: Order, changed: Callable[[], None], done: Callable[[], None]) -> None:
        self.order = order
        self.phase = TEACHING
        self.started = time.time()
        self.ended: float | None = None
        # Why it failed.
        self.reason: str | None = None
        # The identifier of the bundle that was put in place.
        self.new: str | None = None
        self._changed = changed
        self._done = done
        self._lines: deque[str] = deque(maxlen=LINES)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopped_by: str | None = None
        self._thread = threading.Thread(target=self._run, name="teaching", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.phase in (TEACHING, INSTALLING)

    def lines(self) -> list[str]:
        """Return the last lines of the command."""
        with self._lock:
            return list(self._lines)

    def stop(self, person: str) -> None:
        """End it in the name of a person, unless its bundle is being put in place."""
        with self._lock:
            self._stopped_by = person
            if self._process is not None:
                self._process.terminate()

    def close(self) -> None:
        """End it, and wait for that."""
        self.stop("the end of the stream")
        self._thread.join(STOP_S)
        with self._lock:
            if self._process is not None:
                self._process.kill()
        self._thread.join(STOP_S)

    # What its thread does.

    def _run(self) -> None:
        order = self.order
        work = order.folder / "teaching"
        try:
            self._teach(work)
            self._install(work / NEW_BUNDLE)
            self.phase = INSTALLED
            self._forget_pictures()
        except Exception as error:
            # Whatever it is, it must not look as if it were still running.
            reason = describe_failure(error) or f"{type(error).__name__}: {first_line(error)}"
            self.reason = printable(reason)
            self.phase = FAILED
            warn(f"page: {order.bundle.path} was not taught: {reason}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
            self.ended = time.time()
            self._changed()

    def _forget_pictures(self) -> None:
        try:
            self._done()
        except OSError as error:
            # The bundle is in place all the same.
            warn(f"page: pictures that were taught cannot be removed: {error}")

    def _teach(self, work: Path) -> None:
        order = self.order
        shutil.rmtree(work, ignore_errors=True)
        for name, files in order.pictures.items():
            (work / name).mkdir(parents=True)
            for file in files:
                _link(file, work / name / file.name)
        path = str(order.bundle.path.resolve())
        words = ["teach", path, *order.words, "--out", NEW_BUNDLE]
        process = self._start([sys.executable, "-m", PROGRAM, *words], work)
        last = ""
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                last = printable(line.rstrip("\n"))
                with self._lock:
                    self._lines.append(last)
                self._changed()
        status = process.wait()
        with self._lock:
            self._process = None
            stopped_by = self._stopped_by
        if stopped_by is not None:
            raise TeachingError(f"stopped by {stopped_by}")
        if status < 0:
            raise TeachingError(
                f"its process was ended by signal {-status}, as where memory runs out; close other "
                f"programs, or teach from fewer pictures"
            )
        if status != 0:
            raise TeachingError(last.removeprefix(f"{program_of('teach')}: ") or f"status {status}")

    def _start(self, command: Sequence[str], work: Path) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        # One thread, and not one for each core that the stream uses.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = "1"
        # Large arrays go where the pictures are, and with them if the process is killed.
        environment["TMPDIR"] = str(work)
        # Relative paths begin in the folder of the stream.
        paths = environment.get("PYTHONPATH", "").split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
        with self._lock:
            if self._stopped_by is not None:
                raise TeachingError(f"stopped by {self._stopped_by}")
            # In the session of the stream: the scheduler of some systems shares the time between
            # sessions, and a low priority counts within one of them alone.
            process = subprocess.Popen(
                command,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._process = process
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, min(niceness, LARGEST_NICENESS))
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(ENDED_FIRST)
        return process

    def _install(self, new: Path) -> None:
        order = self.order
        old = order.bundle
        self.phase = INSTALLING
        self._changed()
        if manifest_hash(old.path) != old.manifest_sha256:
            raise TeachingError(
                "another bundle came to its folder meanwhile, which stays there; teach again"
            )
        taught = read_bundle(new)
        install_bundle(old.path, new, order.note)
        self.new = taught.short_id
        log(f"page: bundle {self.new} is in {old.path} now: {order.note}")


def _link(file: Path, target: Path) -> None:
    """Give a file a second name, or copy it where its file system has no such names."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


class TeachingError(FlawlineError):
    """Teaching failed, or cannot begin."""
