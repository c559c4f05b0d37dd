"""What Ctrl-C does until a command is imported."""

from __future__ import annotations

import signal


def end_quietly() -> None:
    """Let Ctrl-C end the process without a traceback until `run_command` takes it over.

    A command calls this before it imports numpy, OpenCV and the like, which takes a few tenths of a
    second. Nothing is written in that time, so that the default action of the system is right. A
    handler that was set before, and SIGINT that is ignored, stay as they are.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
