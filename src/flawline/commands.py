"""The commands that `pip install` adds, and what Ctrl-C does until one of them is imported."""

from __future__ import annotations

import signal
from importlib import import_module


def end_quietly() -> None:
    """Let Ctrl-C end the process without a traceback until `run_command` takes it over.

    A command calls this before it imports numpy, OpenCV and the like, which takes a few tenths of a
    second. Nothing is written in that time, so that the default action of the system is right. A
    handler that was set before, and SIGINT that is ignored, stay as they are.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(module: str) -> int:
    end_quietly()
    code: int = import_module(module).main()
    return code


def train() -> int:
    return _run("flawline.train.fit")


def build() -> int:
    return _run("flawline.export.build")


def stream() -> int:
    return _run("flawline.runtime.infer_stream")


def calibrate() -> int:
    return _run("flawline.runtime.calibrate")


def bench() -> int:
    return _run("flawline.benchmarks.run")


def report() -> int:
    return _run("flawline.benchmarks.bundle_report.__main__")
