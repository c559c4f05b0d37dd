"""Which TensorRT is here, its logger and its progress."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from runtime.engine import EngineError


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
        raise EngineError(f"engine {name} cannot be loaded ({first_line(str(error))}); install it again") from error


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
    """Show on a terminal what the builder does, in one line. None where it does not tell or nobody looks."""
    if not hasattr(trt, "IProgressMonitor") or not sys.stderr.isatty():
        return None

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            # No exception may leave: this is called from C++, where it would end the process.
            try:
                steps = self.steps.get(phase_name, 0)
                if steps > 1:
                    sys.stderr.write(f"\r\033[K{name}: {phase_name} {100 * (step + 1) // steps} %")
                    sys.stderr.flush()
            except KeyboardInterrupt:
                self.interrupted = True
            except (OSError, ValueError):
                pass  # the terminal went away: the plan is still wanted
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            if self.steps.pop(phase_name, 0) and not self.steps:
                sys.stderr.write("\r\033[K")

    progress = Progress()
    config.progress_monitor = progress
    return progress


def first_line(text: str) -> str:
    """Of what a library says, short enough for our own line."""
    return (text.strip().splitlines() or ["no reason given"])[0][:200]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
