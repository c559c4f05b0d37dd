"""The command `flawline`: every command under one name, suggestions, and how much is printed."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path

import pytest

from flawline import FlawlineError, __version__
from flawline.__main__ import main
from flawline.commands import COMMANDS, command_line
from flawline.runtime import console
from flawline.runtime.command_parser import Parser
from flawline.runtime.console import Verbosity, log, run_command, warn


@pytest.fixture(autouse=True)
def default_verbosity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verbosity, "quiet", False)
    monkeypatch.setattr(Verbosity, "verbose", False)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in printed
        assert command.summary in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["help", name])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: flawline {name} ")
    assert "--quiet" in printed


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flawline {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is needed, one of train, build"),
        (["strean"], "no command 'strean' (did you mean stream?); see flawline --help"),
        (["xyz"], "no command 'xyz'; see flawline --help"),
    ],
)
def test_a_wrong_command_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_wrong_flag_is_one_line_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["stream", "--bundel", "x", "--camera", "y"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        "flawline stream: unrecognized arguments: --bundel x (did you mean --bundle?); "
        "see flawline stream --help\n"
    )


def test_a_flag_is_not_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stream", "--bund", "x", "--camera", "y"])
    assert "did you mean --bundle?" in capsys.readouterr().err


@pytest.mark.torch
def test_help_lists_the_flags_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    assert "options of patchcore:" in printed
    assert "options of padim:" in printed
    assert "examples:\n  flawline train --data" in printed


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    Parser(prog="x").parse_args(["--quiet"])
    log("information")
    warn("an error")
    assert capsys.readouterr().err == "an error\n"


def test_the_help_says_that_quiet_leaves_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args(["--help"])
    assert "print only results, warnings and errors" in " ".join(capsys.readouterr().out.split())


def test_verbose_prints_the_traceback_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise FlawlineError("wrong; do this")

    assert run_command("x", work) == 2
    assert capsys.readouterr().err == "x: wrong; do this\n"
    Parser(prog="x").parse_args(["-v"])
    assert run_command("x", work) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "x: wrong; do this"


def test_a_command_in_a_message_is_quoted_and_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    line = command_line("calibrate", "--bundle", tmp_path / "good cells", "--undo")
    assert shlex.split(line)[:4] == [sys.executable, "-m", "flawline", "calibrate"]
    assert shlex.split(line)[5] == str(tmp_path / "good cells")
    with pytest.raises(ValueError, match="calibrat"):
        command_line("calibrat")


def test_a_command_in_a_message_is_short_where_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "flawline"
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nowhere")
    # Another installation of the same name.
    assert not command_line("demo").startswith("flawline ")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert command_line("demo") == "flawline demo"


def test_progress_is_quiet_too(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="needs the train extra")
    from flawline.train.progress import Bars

    console.Verbosity.quiet = True
    with Bars() as bars:
        bars("training", 1, 2)
    assert not capsys.readouterr().err
