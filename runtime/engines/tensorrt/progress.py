"""Progress of a build on a terminal, and how Ctrl-C stops a build."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flawline.runtime.engines.tensorrt.api import IBuilderConfig, Module

_CLEAR_LINE = "\r\033[K"


class BuildProgress:
    """Shows the builder's phases in one terminal line. Setting `interrupted` stops the builder.

    The methods are called by the builder, with arguments of these names.
    """

    def __init__(self, engine: str) -> None:
        self.interrupted = False
        self._engine = engine
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Note the number of steps of a phase that starts."""
        self._steps[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Show that a step is complete. The builder continues while the result is True."""
        steps = self._steps.get(phase_name, 0)
        if steps > 1:
            percent = 100 * (step + 1) // steps
            _show(f"{self._engine}: {phase_name} {percent} %")
        return not self.interrupted

    def phase_finish(self, phase_name: str) -> None:
        """Clear the line when the last of the nested phases ends."""
        steps = self._steps.pop(phase_name, 0)
        if steps and not self._steps:
            _show("")


def attach_progress(trt: Module, config: IBuilderConfig, engine: str) -> BuildProgress | None:
    """Make the builder report its progress; None if this version cannot."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(BuildProgress, trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            BuildProgress.__init__(self, engine)
            trt.IProgressMonitor.__init__(self)

    progress = Monitor()
    config.progress_monitor = progress
    return progress


@contextmanager
def stopped_by_ctrl_c(progress: BuildProgress | None) -> Iterator[None]:
    """Let Ctrl-C stop a build without an exception, on which TensorRT's C++ code would abort.

    With `progress` the request is noted there and the builder stops; without it the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread receives signals and may change their handlers.
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        assert progress is not None
        progress.interrupted = True

    if progress is None:
        previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.SIG_DFL)


def _show(text: str) -> None:
    """Replace the current line of the terminal, which may be closed during the build."""
    try:
        if sys.stderr.isatty():
            sys.stderr.write(_CLEAR_LINE + text)
            sys.stderr.flush()
    except (OSError, ValueError):
        # The plan is still wanted.
        pass
