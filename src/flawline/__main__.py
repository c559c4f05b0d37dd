"""flawline COMMAND: every command of the project under one name; also `python -m flawline`.

flawline train --data /data/bottle
flawline build --method simplenet --data /data/bottle
flawline stream --bundle bundles/simplenet-bottle --camera usb://0
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pkgutil import resolve_name

from flawline import __version__
from flawline.commands import COMMANDS, PROGRAM
from flawline.interrupts import end_quietly
from flawline.suggestions import did_you_mean

USER_ERROR = 2
EXAMPLES = """\
examples:
  flawline demo                                           every step on built-in data
  flawline build --method simplenet --data DATA --out bundles/part
  flawline stream --bundle bundles/part --camera usb://0
  flawline calibrate --bundle bundles/part --camera good-parts
  flawline bench --bundles bundles/* --data DATA --engines all

Every command has --help, --quiet and --verbose."""


def run() -> int:
    """Run the command line of this process; return its exit status."""
    end_quietly()
    return main()


def run_station() -> int:
    """Run `flawline-station`, which is `flawline station`."""
    end_quietly()
    return main(["station", *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        sys.stderr.write(f"{PROGRAM}: a command is needed, one of {', '.join(COMMANDS)}\n")
        return USER_ERROR
    first, *rest = words
    if first in ("-h", "--help", "help"):
        if rest:
            return main([rest[0], "--help"])
        return _print(_help())
    if first in ("-V", "--version"):
        return _print(f"{PROGRAM} {__version__}")
    if first not in COMMANDS:
        sys.stderr.write(
            f"{PROGRAM}: there is no command {first!r}{did_you_mean(first, COMMANDS)}; "
            f"see {PROGRAM} --help\n"
        )
        return USER_ERROR
    # Only the chosen command is imported: some need packages that a box does not have.
    command: Callable[[Sequence[str]], int] = resolve_name(COMMANDS[first].target)
    return command(rest)


def _print(text: str) -> int:
    # Imported here, so that no command waits for it.
    from flawline.runtime.console import run_command

    return run_command(PROGRAM, lambda: print(text))


def _help() -> str:
    """List the commands."""
    lines = [f"usage: {PROGRAM} [--version] [--help] COMMAND ...", "", "commands:"]
    width = max(len(name) for name in COMMANDS)
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<{width}}  {command.summary}")
    return "\n".join([*lines, "", EXAMPLES])


if __name__ == "__main__":
    sys.exit(run())
