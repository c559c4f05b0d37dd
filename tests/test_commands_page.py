"""docs/commands.md: the flags of every command, as its parser has them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from flawline.commands import COMMANDS

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "commands.md"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """The program that `make docs` runs."""
    spec = importlib.util.spec_from_file_location("writer", ROOT / ".ci" / "commands_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_present_flags(writer: ModuleType) -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == writer.page(), "docs/commands.md is out of date; run: make docs"


def test_the_page_does_not_depend_on_the_terminal(
    writer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = set()
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        pages.add(writer.page())
    assert len(pages) == 1


def test_every_command_has_examples_and_every_flag_a_meaning(writer: ModuleType) -> None:
    text = writer.page()
    for name in COMMANDS:
        section = text.split(f"\n## flawline {name}\n")[1].split("\n## ")[0]
        examples = section.split("```sh\n")[1].split("```")[0].splitlines()
        assert examples, name
        parser = writer.parser_of(name)
        for line in examples:
            words = shlex.split(line, comments=True)
            assert words[:2] == ["flawline", name]
            for word in words:
                if word.startswith("--"):
                    assert word in parser._option_string_actions, line
    assert not re.findall(r"^\| `.*\| *(?:required; *)?\|$", text, re.MULTILINE)
    # The options of the methods are listed with the method.
    parts = text.split("### flawline train: options of patchcore\n\n")
    assert len(parts) == 2
    assert parts[1].split("\n#")[0].count("`--coreset CORESET`") == 1


def test_no_path_of_this_machine_is_on_the_page(writer: ModuleType) -> None:
    assert str(ROOT) not in writer.page()
    assert str(Path.home()) not in PAGE.read_text(encoding="utf-8")
