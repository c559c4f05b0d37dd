"""Writes docs/commands.md from the parsers of all commands: `make docs`.

The page is made from the parsers and not from the text of --help, whose layout depends on the
terminal and on the version of Python.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from unittest import mock

from flawline.__main__ import main
from flawline.benchmarks.tables import markdown_table
from flawline.commands import COMMANDS, program_of
from flawline.runtime.command_parser import Parser
from flawline.train import METHODS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
INTRODUCTION = """\
# Commands

This page is written by `make docs` from the flags of the commands; do not edit it. In a checkout,
each command also runs as `python -m` with the module in brackets.

Every command has three more flags: `-h`, `--help` lists its flags; `-q`, `--quiet` prints only
results, warnings and errors; `-v`, `--verbose` also prints the traceback of an error.
`flawline --version` prints the version."""
# The flags in the introduction.
COMMON = ("help", argparse.SUPPRESS)
HEADER = ("flag", "meaning")
# The command whose flags depend on --method.
TRAIN = "train"

EXPLANATION = re.compile(r"( {2,})(?=\S)")

Table = tuple[tuple[str, str], ...]


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, "\n".join(_contents())]
    # Title and flags of a group -> the command that has listed it.
    listed: dict[tuple[str | None, Table], str] = {}
    for command in COMMANDS:
        parts += _section(command, listed)
    return "\n\n".join(parts) + "\n"


def _contents() -> Iterator[str]:
    for name, command in COMMANDS.items():
        yield f"- {_link(name)}: {command.summary}"


def _link(command: str) -> str:
    program = program_of(command)
    return f"[`{program}`](#{program.replace(' ', '-')})"


def _section(command: str, listed: dict[tuple[str | None, Table], str]) -> Iterator[str]:
    parser = parser_of(command)
    module = COMMANDS[command].target.split(":")[0].removeprefix("flawline.")
    yield f"## {program_of(command)}"
    yield f"{parser.description} (`{module.removesuffix('.__main__')}`)"
    examples = []
    for line in parser.examples:
        # In the help, an example and its explanation are separated by spaces.
        examples.append(EXPLANATION.sub(r"\1# ", line))
    yield "\n".join(["```sh", *examples, "```"])
    groups = _groups(parser)
    if command == TRAIN:
        for method in METHODS:
            for title, table in _groups(parser_of(command, "--method", method)).items():
                # The other groups are those that the command has without --method.
                groups.setdefault(title, table)
    for title, table in groups.items():
        key = (title, table)
        if title is not None:
            yield f"### {program_of(command)}: {title}"
        if key in listed:
            yield f"As for {_link(listed[key])}."
            continue
        listed[key] = command
        yield markdown_table(HEADER, table)
    if command != TRAIN and any(action.dest == "method" for action in parser._actions):
        yield f"The options of the methods are those of {_link(TRAIN)}."


def parser_of(command: str, *words: str) -> Parser:
    """Return the parser that prints the help of a command line."""
    parsers: list[Parser] = []

    def print_help(parser: Parser) -> None:
        parsers.append(parser)

    with mock.patch.object(Parser, "print_help", print_help), suppress(SystemExit):
        main([command, *words, "--help"])
    return parsers[0]


def _groups(parser: Parser) -> dict[str | None, Table]:
    """Return the rows of each group of flags by its title; the first group has none."""
    groups: dict[str | None, Table] = {}
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if action.dest not in COMMON:
                rows.append((_flag(action), _meaning(parser, action)))
        if rows:
            title = group.title
            if group in (parser._optionals, parser._positionals):
                title = None
            groups[title] = groups.get(title, ()) + tuple(rows)
    return groups


def _flag(action: argparse.Action) -> str:
    names = list(action.option_strings)
    if not names:
        return f"`{action.metavar or action.dest.upper()}`"
    if action.nargs != 0:
        metavar = action.metavar or action.dest.upper()
        if isinstance(metavar, tuple):
            # A flag with several values has a name for each.
            metavar = " ".join(metavar)
        names[-1] += f" {metavar}"
    if action.nargs == "+":
        names[-1] += " ..."
    return ", ".join(f"`{name}`" for name in names)


def _meaning(parser: Parser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    if action.choices is not None and action.metavar is None:
        text = f"{_joined(list(action.choices))}; {text}"
    if action.required and action.option_strings:
        text = f"required; {text}"
    return text


def _joined(choices: Sequence[object]) -> str:
    words = [f"`{choice}`" for choice in choices]
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} or {words[-1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
