"""Which TensorRT is here, its logger and its progress."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import FrameType
from typing import Any

from flawline.runtime.engines import EngineError


@dataclass(frozen=True)
class Flavour:
    """Portable plans are built without a GPU for listed compute capabilities, and compiled to the end when loaded."""

    module: str
    install: str
    portable: bool = False


FLAVOURS = {
    "tensorrt": Flavour(
        "tensorrt",
        "JetPack brings it (a virtual environment needs --system-site-packages); elsewhere: pip install tensorrt",
    ),
    "tensorrt-rtx": Flavour("tensorrt_rtx", "pip install 'flawline[rtx]'", portable=True),
}


def library_missing(name: str) -> str | None:
    """What to install, or None. A package that is half there imports as an empty namespace: it has no origin."""
    spec = find_spec(FLAVOURS[name].module)
    return FLAVOURS[name].install if spec is None or spec.origin is None else None


def load(name: str) -> Any:
    """The TensorRT module. Raises EngineError with what to install."""
    if why := library_missing(name):
        raise EngineError(f"engine {name}: {why}")
    try:
        return import_module(FLAVOURS[name].module)
    except (ImportError, OSError) as error:
        raise EngineError(
            f"engine {name} cannot be loaded ({first_line(str(error))}); install it again"
        ) from error


@functools.cache
def logger(trt: Any) -> Any:
    """Collects errors. One for the process, as TensorRT keeps the first that it meets."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(text)

        def first(self) -> str:
            return first_line(self.errors[0]) if self.errors else "it does not say why"

    return Log()


def attach_progress(trt: Any, config: Any, name: str) -> Any:
    """Show on a terminal what the builder does, in one line, and let it be stopped. None where it does not tell."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self.steps.get(phase_name, 0)
            if steps > 1:
                _show(f"{name}: {phase_name} {100 * (step + 1) // steps} %")
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            if self.steps.pop(phase_name, 0) and not self.steps:
                _show("")

    progress = Progress()
    config.progress_monitor = progress
    return progress


def _show(text: str) -> None:
    try:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
    except (OSError, ValueError):
        pass  # the terminal went away: the plan is still wanted


@contextmanager
def stopped_by_ctrl_c(progress: Any) -> Iterator[None]:
    """Amid a build Ctrl-C must raise nothing: in a callback TensorRT's C++ would abort on it.

    With `progress` it is noted there, and the builder stops; without, the process ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of this thread's
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        progress.interrupted = True

    previous = signal.signal(signal.SIGINT, signal.SIG_DFL if progress is None else note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)


def first_line(text: str) -> str:
    """Of what a library says, short enough for our own line."""
    return (text.strip().splitlines() or ["no reason given"])[0][:200]
