"""The parser of every command line: errors in one line, --quiet and --verbose."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from flawline.runtime.console import USER_ERROR, Verbosity, discard_stdout
from flawline.suggestions import did_you_mean

# How argparse begins its message about flags that a parser does not have.
UNKNOWN_FLAGS = "unrecognized arguments: "


def text_argument(value: str) -> str:
    """Return the value of a flag as it is: the argparse type that refuses an empty value."""
    if not value:
        raise argparse.ArgumentTypeError("is empty; check that its shell variable is set")
    return value


def path_argument(value: str) -> Path:
    """Return the value of a flag as a path: the argparse type that refuses an empty value.

    An empty value would be the current folder, which is rarely meant.
    """
    return Path(text_argument(value))


class _SetVerbosity(argparse.Action):
    """Sets an attribute of Verbosity when its flag is met."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self._attribute = dest

    def __call__(self, *_: object) -> None:
        setattr(Verbosity, self._attribute, True)


class _HelpFormatter(argparse.HelpFormatter):
    """Keeps the lines of a text that has several, such as a list of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong command line in one line, without the usage.

    `examples` are command lines that the help shows. A parser of a whole command line has --quiet
    and --verbose, one of a part of it has neither (`verbosity` False).
    """

    def __init__(
        self, examples: Sequence[str] = (), verbosity: bool = True, **options: Any
    ) -> None:
        self.examples = tuple(examples)
        epilog = None
        if examples:
            epilog = "\n  ".join(["examples:", *examples])
        super().__init__(
            epilog=epilog, formatter_class=_HelpFormatter, allow_abbrev=False, **options
        )
        if not verbosity:
            return
        self.add_argument(
            "-q", "--quiet", action=_SetVerbosity, help="print only results, warnings and errors"
        )
        self.add_argument(
            "-v", "--verbose", action=_SetVerbosity, help="also print the traceback of an error"
        )

    def error(self, message: str) -> NoReturn:
        if message.startswith(UNKNOWN_FLAGS):
            first = message.removeprefix(UNKNOWN_FLAGS).split()[0]
            message += did_you_mean(first.split("=")[0], self._option_string_actions)
        self.exit(USER_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        # The reader of --help may have closed the pipe.
        if sys.stdout is not None:
            discard_stdout()
        super().exit(status, message)
