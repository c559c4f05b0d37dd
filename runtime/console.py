"""Shared behaviour of all commands: messages on stderr, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from flawline import FlawlineError

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
    traceback: every FlawlineError, a package of an extra that is not installed, and an operating
    system error such as a full disk. Ctrl-C prints `interrupted` and returns 130. Any other
    exception is a bug and keeps its traceback.

    On stdout, a character that its encoding lacks is escaped, as Python does on stderr: a file may
    have any name.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return work() or 0
    except FlawlineError as error:
        log(f"{name}: {error}")
        return error.exit_code
    except ModuleNotFoundError as error:
        # Only a package of an extra is the user's to install; any other is a bug.
        if error.name is None or error.name.split(".")[0] not in EXTRA_OF_PACKAGE:
            raise
        log(f"{name}: {missing_package(error.name.split('.')[0])}")
        return USER_ERROR
    except BrokenPipeError:
        # The reader of stdout, for example `head`, has closed the pipe: there is nothing to report.
        discard_stdout()
        return 0
    except OSError as error:
        log(f"{name}: {describe_os_error(error)}")
        discard_stdout()
        return USER_ERROR
    except KeyboardInterrupt:
        log(interrupted)
        return INTERRUPTED


def missing_package(package: str) -> str:
    """Say which extra brings a package that is not installed."""
    return f"needs {package}; run: pip install 'flawline[{EXTRA_OF_PACKAGE[package]}]'"


def describe_os_error(error: OSError) -> str:
    """Describe an operating system error in one line that ends with a remedy."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"output cannot be written ({reason}); free disk space or choose another output"
    return f"{error.filename}: {reason}; check the path, its permissions and the free disk space"


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
