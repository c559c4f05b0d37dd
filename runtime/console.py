"""Shared behaviour of all commands: messages on stderr, one-line errors and exit codes."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TextIO, cast

from flawline import FlawlineError
from flawline.extras import EXTRA_OF_PACKAGE, missing_package
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.signals import Terminated, termination_interrupts

USER_ERROR = 2
INTERRUPTED = 130
LONGEST_QUOTE = 200
# Parts of the messages of torch and OpenCV, whose exceptions have no class for this.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Insufficient memory")


class Verbosity:
    """How much this process prints on stderr; the flags --quiet and --verbose set it.

    quiet: only warnings and errors. verbose: also the traceback of every error.
    """

    quiet = False
    verbose = False


# Called with each warning, by the thread that gives it; they must not wait or raise.
_listeners: list[Callable[[str], None]] = []


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Also give each warning of the process to a function, within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def log(text: str) -> None:
    """Print a line of information on stderr, unless the process is quiet.

    stdout is reserved for results. A stderr that is closed or full never ends the work.
    """
    if not Verbosity.quiet:
        _print(text)


def warn(text: str) -> None:
    """Print a warning or an error on stderr, also when the process is quiet."""
    for listener in list(_listeners):
        listener(terminal_line(text))
    _print(text)


def _print(text: str) -> None:
    # print() would write to stdout instead.
    if sys.stderr is None:
        return
    with suppress(OSError):
        print(terminal_line(text), file=sys.stderr, flush=True)


def log_notes(notes: Iterable[str]) -> None:
    """Print lines of information; those that begin with "warning: " also in a quiet process."""
    for note in notes:
        if note.startswith("warning: "):
            warn(note)
        else:
            log(note)


def terminal_line(text: str) -> str:
    """Return a text for a terminal or a log: valid Unicode, with line breaks in names escaped."""
    # A carriage return would let a name overwrite the line that it is in.
    return printable(text).replace("\r", "\\r").replace("\n", "\\n")


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


def run_command(name: str, work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a command and return its exit code.

    Errors of the user or the machine become one line on stderr and exit code 2, without a
    traceback: every FlawlineError, a package of an extra that is not installed, an operating system
    error such as a full disk, and too little memory. Ctrl-C prints `interrupted` and returns 130;
    SIGTERM and SIGHUP do the same and return 143 and 129, so that work is saved. Any other
    exception is a bug and keeps its traceback. Characters that stdout cannot encode are printed as
    escapes; a closed stdout or stderr discards what is printed.
    """
    _replace_closed_streams()
    _escape_what_cannot_be_encoded()
    stderr = cast(TextIO, _UnfailingStream(sys.stderr))
    try:
        with termination_interrupts(), redirect_stderr(stderr):
            code = work() or 0
        # At the exit of the interpreter, a failure could no longer be reported in one line.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of stdout, for example `head`, has closed the pipe: there is nothing to report.
        return 0
    except KeyboardInterrupt as interrupt:
        warn(interrupted)
        return _interrupted_code(interrupt)
    except Exception as error:
        cause = _interrupt_behind(error)
        if cause is not None:
            warn(interrupted)
            return _interrupted_code(cause)
        description = describe_failure(error)
        if description is None:
            raise
        if Verbosity.verbose:
            traceback.print_exc()
        warn(f"{name}: {description}")
        return error.exit_code if isinstance(error, FlawlineError) else USER_ERROR
    finally:
        # What cannot be written now would fail again at the exit of the interpreter.
        _discard_unwritable(sys.stdout)
        _discard_unwritable(sys.stderr)


def _interrupted_code(interrupt: KeyboardInterrupt) -> int:
    return interrupt.exit_code if isinstance(interrupt, Terminated) else INTERRUPTED


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that caused an error, if any.

    A library in C++ that is interrupted while it is imported raises ImportError from it.
    """
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return cause
        cause = cause.__cause__
    return None


class _UnfailingStream:
    """A text stream that discards what its file cannot take: progress must not end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _replace_closed_streams() -> None:
    """Open the null device in place of a closed stdin, stdout or stderr.

    Python sets the stream of a closed descriptor to None. The descriptor would then be given to the
    next file that is opened, which libraries that print would damage.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        mode = "r" if name == "stdin" else "w"
        stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
        if not _is_open(number):
            os.dup2(stream.fileno(), number)
        setattr(sys, name, stream)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


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
    _discard_unwritable(sys.stdout)


def _discard_unwritable(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
