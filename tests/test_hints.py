"""Commands in messages: they exist, have their flags, and lead on when they are run."""

from __future__ import annotations

import ast
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import SIZE, tiny_model, write_levels, write_tiny_bundle
from test_commands import commands, run_here

from flawline.__main__ import main
from flawline.commands import COMMANDS
from flawline.extras import EXTRA_OF_PACKAGE
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.training_length import TrainingLength

pytest_plugins = ["fakes.fixtures"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cameras", "runtime", "train", "export", "benchmarks")
# A command of a message: with the interpreter of this process, or as on any machine.
COMMAND = re.compile(r"(?:\S+ -m )?flawline ([a-z]+)((?: (?!and |with |or )[^\s;,]+)*)")
# A command that has no name of its own.
MODULE = re.compile(r"python -m ([\w.]+)((?: (?!and |with |or )[^\s;,]+)*)")
# Functions that write a command into a message.
WRITERS = ("command_line", "command_line_elsewhere")
# These write down the command that was run, which is no hint.
RECORDS = (
    "train/pretrain/__main__.py",
    "benchmarks/studies/live_page/report.py",
    "benchmarks/studies/pipeline/report.py",
    "benchmarks/studies/source/report.py",
    "benchmarks/studies/swap/report.py",
    "benchmarks/studies/threshold_coverage/report.py",
)
EXTRA = re.compile(r"install_command\(['\"](\w+)['\"]\)")


def texts() -> Iterator[tuple[str, str]]:
    """The texts of all five packages, with their file; a value in a text is written as VALUE."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            documentation = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr):
                    documentation.add(id(node.value))
            parts = {id(value) for node in ast.walk(tree) for value in getattr(node, "values", ())}
            for node in ast.walk(tree):
                text = text_of(node)
                if text and id(node) not in documentation and id(node) not in parts:
                    yield str(path.relative_to(ROOT)), text


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    text = ""
    for value in node.values:
        text += str(value.value) if isinstance(value, ast.Constant) else "VALUE"
    return text


@cache
def help_of(module: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert run_here(module.removeprefix("flawline."), "--help") == 0
    return printed.getvalue()


def written_commands() -> Iterator[tuple[str, list[str]]]:
    """The names and flags of all commands that messages are written with."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in WRITERS:
                    words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                    if words:
                        yield words[0], words[1:]


def test_the_commands_in_messages_exist_and_have_their_flags() -> None:
    found = 0
    for name, words in written_commands():
        found += 1
        module = COMMANDS[name].target.partition(":")[0]
        for word in words:
            if word.startswith("--"):
                assert f"{word} " in help_of(module), (name, word)
    assert found >= 8


def test_the_modules_in_messages_run_from_any_folder_and_have_their_flags() -> None:
    known = {f"flawline.{module}" for module in commands()}
    found = 0
    for file, text in texts():
        for module, words in MODULE.findall(text):
            if module == "VALUE" or file in RECORDS:
                continue
            found += 1
            assert module in known, (file, text)
            for word in words.split():
                if word.startswith("--"):
                    assert f"{word} " in help_of(module), (file, text)
    assert found >= 2


def test_the_extras_in_messages_exist() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    assert set(EXTRA_OF_PACKAGE.values()) <= extras
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found |= set(EXTRA.findall(path.read_text(encoding="utf-8")))
    assert found <= extras
    assert {"openvino", "rtx", "video", "cait"} <= found


def follow(message: str, number: int = 0, **placeholders: Path) -> int:
    """Run a command of the remedy of a message and return its exit status."""
    _reason, _, remedy = message.partition("; ")
    name, words = COMMAND.findall(remedy)[number]
    arguments = [str(placeholders.get(word, word)) for word in shlex.split(words)]
    return main([name, *arguments])


def command(module: str, *words: object) -> int:
    return int(import_module(f"flawline.{module}").main([str(word) for word in words]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Uniform images, whose score is their grey level; two are above the threshold."""
    levels = {"train/good": range(80, 92), "test/good": [90], "test/bright": [108, 140]}
    return write_levels(tmp_path / "levels", levels, SIZE)


@pytest.fixture
def part(tmp_path: Path) -> Bundle:
    """A bundle without an FP16 graph, whose path has to be quoted in a command."""
    return write_tiny_bundle(tmp_path / "a part")


def test_a_graph_that_is_missing_is_added_by_the_command_in_the_message(
    part: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="needs the train extra")
    triton = ("export.triton", "--bundle", part.path, "--out", tmp_path / "r", "--name", "p")
    assert command(*triton, "--precision", "fp16") == 2
    assert follow(capsys.readouterr().err, DATA=data) == 0
    assert "fp16" in read_bundle(part.path).precisions
    assert command(*triton, "--precision", "fp16") == 0


def test_a_graph_without_parity_leads_on_to_a_plan_of_another_precision(
    part: Bundle,
    data: Path,
    tmp_path: Path,
    install: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnx", reason="needs the train extra")
    install("10.3")
    triton = ("export.triton", "--bundle", part.path, "--out", tmp_path / "r", "--name", "p")
    triton = (*triton, "--engine", "tensorrt")
    stream = ("runtime.infer_stream", "--bundle", part.path, "--camera", data / "test")
    stream = (*stream, "--engine", "tensorrt")
    messages = []
    # The engine computes in FP16 by default, for which the bundle has no graph.
    assert command(*stream) == 2
    messages.append(capsys.readouterr().err)
    assert "--precision fp16 --data DATA, or use --precision fp32" in messages[-1]
    # The graph cannot be added, as for a network that overflows in FP16.
    with monkeypatch.context() as patch:
        patch.setattr("flawline.export.add_precision.write_graph", lambda *_: other_graph())
        assert follow(messages[-1], DATA=data) == 2
    messages.append(capsys.readouterr().err)
    assert "fp16 was not added" in messages[-1]
    assert "use another precision" in messages[-1]
    # The other half of the first message.
    assert command(*stream, "--precision", "fp32") == 0
    capsys.readouterr()
    assert command(*triton) == 2
    messages.append(capsys.readouterr().err)
    assert "--engine tensorrt --precision fp32" in messages[-1]
    assert follow(messages[-1]) == 0
    capsys.readouterr()
    (plan,) = part.path.glob("engines/tensorrt-fp32-*/model.plan")
    assert command(*triton, "--plan", plan) == 0
    assert len(set(messages)) == len(messages)


def other_graph() -> bytes:
    """A graph whose scores are 2 % above those of tiny.onnx."""
    from odd_graphs import graph

    return graph(factor=1.02)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_the_command_that_builds_a_plan_elsewhere_names_a_precision_of_the_bundle(
    engine: str, part: Bundle
) -> None:
    from flawline.export.local_engine import build_command
    from flawline.runtime.bundle import add_model

    assert build_command(part, engine).endswith(f"--engine {engine} --precision fp32")
    full = add_model(part, "fp16", tiny_model())
    assert build_command(full, engine).endswith(f"--engine {engine}")


def test_a_damaged_threshold_is_replaced_by_the_command_in_the_message(
    part: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = data / "train" / "good"
    rate = ("--false-alarm-rate", 0.1)
    assert command("runtime.calibrate", "--bundle", part.path, "--images", good, *rate) == 0
    path = part.path / "calibration.json"
    path.write_bytes(path.read_bytes()[:20])
    stream = ["--bundle", str(part.path), "--camera", str(data / "test")]
    capsys.readouterr()
    assert infer_stream.main(stream) == 2
    message = capsys.readouterr().err
    assert message.rstrip().endswith("--undo")
    assert follow(message) == 0
    assert read_bundle(part.path).calibration == part.calibration
    assert infer_stream.main(stream) == 0


def test_a_damaged_previous_threshold_is_not_suggested(
    part: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("calibration.json", "calibration.previous.json"):
        (part.path / name).write_text("{}")
    assert command("runtime.infer_stream", "--bundle", part.path, "--camera", part.path) == 2
    assert "--undo" not in capsys.readouterr().err
    assert command("runtime.calibrate", "--bundle", part.path, "--undo") == 2
    assert "calibration.previous.json" in capsys.readouterr().err


@pytest.mark.torch
def test_a_missing_bundle_and_checkpoint_lead_on_to_both(
    part: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from builders import write_squares

    squares = write_squares(tmp_path / "squares")
    checkpoint = tmp_path / "my runs" / "c.pt"
    stream = ("runtime.infer_stream", "--bundle", part.path, "--camera", squares / "test")
    (part.path / "manifest.json").unlink()
    assert command(*stream) == 2
    message = capsys.readouterr().err
    # A folder that is no bundle is never replaced.
    assert follow(message, CHECKPOINT=checkpoint) == 2
    assert "move it away and build it" in message
    part.path.rename(tmp_path / "away")
    missing = capsys.readouterr().err
    small = "--method padim --weights random --size 64"
    assert follow(missing.replace(" --data", f" {small} --data"), DATA=squares) == 0
    assert follow(message, CHECKPOINT=checkpoint) == 0
    assert command(*stream) == 0


@pytest.mark.parametrize(
    ("module", "flag"), [("runtime.infer_stream", "--camera"), ("runtime.calibrate", "--images")]
)
def test_exchanged_bundle_and_images_are_not_to_be_moved_away(
    module: str, flag: str, part: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "my parts"
    images.mkdir()
    (images / "1.png").touch()
    assert command(module, "--bundle", images, flag, part.path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f": {images} is not a bundle (manifest.json is missing); {part.path} is one: the two may "
        f"have been exchanged"
    )
    assert command(module, "--bundle", images, flag, images) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; pass the folder that flawline build wrote")


def test_a_folder_that_is_no_bundle_is_not_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, flags in (("runtime.calibrate", ["--undo"]), ("export.build", [])):
        assert command(module, "--bundle", tmp_path, *flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f": {tmp_path} is not a bundle (manifest.json is missing); pass the" in line


@pytest.mark.parametrize("kind", ["unfinished", "schema 1", "score"])
def test_a_graph_is_added_to_every_kind_of_bundle(
    kind: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="needs the train extra")
    import shutil

    from odd_bundles import SCHEMA_1

    path = tmp_path / "b"
    if kind == "unfinished":
        write_tiny_bundle(path, training=TrainingLength(17, 100))
    elif kind == "score":
        write_tiny_bundle(path, outputs=("score",))
    else:
        shutil.copytree(SCHEMA_1, path)
        manifest = path / "manifest.json"
        # The tiny graph has no node of this name.
        manifest.write_text(manifest.read_text().replace('"/tail"', ""))
    before = read_bundle(path)
    words = ("--bundle", path, "--precision", "fp16")
    assert command("export.build", *words) == 2
    assert "adding the fp16 graph needs images" in capsys.readouterr().err
    assert read_bundle(path) == before
    assert command("export.build", *words, "--data", data) == 0, capsys.readouterr().err
    # Nothing is left to do, so that no images are needed.
    assert command("export.build", *words) == 0
    after = read_bundle(path)
    assert after.precisions == ("fp32", "fp16")
    assert after.manifest == before.manifest
    assert (after.manifest.cut_short == "17 of 100 steps") == (kind == "unfinished")
