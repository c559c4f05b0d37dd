"""Shared behaviour of all commands: messages on stderr, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from flawline import FlawlineError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.signals import TERMINATED, Terminated, sigterm_interrupts

# Packages that are not installed with the core, and the extra of flawline that brings each of them.
EXTRA_OF_PACKAGE = {
    "torch": "train",
    "onnx": "train",
    "matplotlib": "train",
    "tqdm": "train",
    "FrEIA": "train",
    "jinja2": "report",
    "timm": "cait",
    "openvino": "openvino",
}
USER_ERROR = 2
INTERRUPTED = 130
LONGEST_QUOTE = 200
# Parts of the messages of torch and OpenCV, whose exceptions have no class for this.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Insufficient memory")


def log(text: str) -> None:
    """Print one line to stderr, because stdout is reserved for results."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return a text that every encoding of Unicode can hold.

    A file name need not be valid UTF-8; Python then represents its bytes by lone surrogates, which
    other programs refuse in JSON. They become escapes such as \\xc1.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # A surrogate that stands for no byte.
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong command line in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def run_command(name: str, work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a command and return its exit code.

    Errors of the user or the machine become one line on stderr and exit code 2, without a
    traceback: every FlawlineError, a package of an extra that is not installed, an operating system
    error such as a full disk, and too little memory. Ctrl-C prints `interrupted` and returns 130;
    SIGTERM does the same and returns 143, so that temporary files are removed and work is saved.
    Any other exception is a bug and keeps its traceback. Characters that stdout cannot encode are
    printed as escapes.
    """
    _escape_what_cannot_be_encoded()
    try:
        with sigterm_interrupts():
            return work() or 0
    except BrokenPipeError:
        # The reader of stdout, for example `head`, has closed the pipe: there is nothing to report.
        discard_stdout()
        return 0
    except KeyboardInterrupt as interrupt:
        log(interrupted)
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    except Exception as error:
        description = describe_failure(error)
        if description is None:
            raise
        log(f"{name}: {description}")
        if isinstance(error, OSError):
            discard_stdout()
        return error.exit_code if isinstance(error, FlawlineError) else USER_ERROR


def _escape_what_cannot_be_encoded() -> None:
    """Keep print() from failing on a path, which need not be text in the encoding of stdout."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def describe_failure(error: Exception) -> str | None:
    """Describe an error of the user or the machine in one line; None if the error is a bug."""
    if isinstance(error, FlawlineError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        # Only a package of an extra is the user's to install; any other is a bug.
        return missing_package(package) if package in EXTRA_OF_PACKAGE else None
    if is_out_of_memory(error):
        return (
            f"there is too little memory ({first_line(error)}); "
            f"close other programs, or use smaller images or batches"
        )
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an exception of numpy, torch or OpenCV says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return any(part in text for part in OUT_OF_MEMORY)


def missing_package(package: str) -> str:
    """Say which extra brings a package that is not installed."""
    return f"needs {package}; run: pip install 'flawline[{EXTRA_OF_PACKAGE[package]}]'"


def describe_os_error(error: OSError) -> str:
    """Describe an operating system error in one line that ends with a remedy."""
    reason = reason_of(error)
    if error.filename is None:
        return f"output cannot be written ({reason}); {remedy_of(error, 'output')}"
    return f"{error.filename}: {reason}; {remedy_of(error)}"


def first_line(error: BaseException | str) -> str:
    """Return the first line of a library's message, short enough to be quoted in a message."""
    return _lines(error)[0][:LONGEST_QUOTE]


def last_line(error: BaseException | str) -> str:
    """Return the last line of a library's message, short enough to be quoted in a message.

    Some libraries begin with the place in their sources, and give the reason last.
    """
    return _lines(error)[-1][:LONGEST_QUOTE]


def _lines(error: BaseException | str) -> list[str]:
    lines = []
    for line in str(error).splitlines():
        if line.strip():
            lines.append(line.strip())
    if lines:
        return lines
    if isinstance(error, BaseException):
        return [type(error).__name__]
    return ["no reason given"]


def discard_stdout() -> None:
    """Drop the text that stdout cannot take, so that flushing it at exit cannot fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
