"""Every command: help without training libraries, one-line errors, exit status 2 for mistakes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from flawline.extras import EXTRA_OF_PACKAGE, install_command

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "export", "runtime", "benchmarks")
# Engines are found by the metadata of their package, which cannot be hidden in this way.
ENGINE_PACKAGES = {"openvino", "tensorrt_rtx"}
HIDDEN = sorted({*EXTRA_OF_PACKAGE, "torchvision"} - ENGINE_PACKAGES)
# Runs the command lines of a list in JSON, each in a fork of this process, and prints exit statuses
# with stdout and stderr as JSON. It makes the packages of the extras look absent, as on a box that
# only inspects. What every command imports is imported once.
WITHOUT_EXTRAS = f"""
import json, os, runpy, sys, tempfile
for package in {HIDDEN}:
    sys.modules[package] = None
import cv2, msgspec, numpy, tifffile

def run(module, words):
    sys.argv[1:] = words
    runpy.run_module(f"flawline.{{module}}", run_name="__main__", alter_sys=True)

results = []
for module, *words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            run(module, words)
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        results.append([status, *(file.seek(0) or file.read() for file in (out, err))])
print(json.dumps(results))
"""

INSTALL = shlex.join([sys.executable, "-m", "pip", "install", "-e", str(ROOT)])
NOT_INSTALLED = f"flawline is not installed in this Python; run: {INSTALL}"


def commands() -> list[str]:
    """Module names of all files that can be run with `python -m`."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                parts = list(path.relative_to(ROOT).with_suffix("").parts)
                if parts[-1] == "__main__":
                    parts.pop()
                found.append(".".join(parts))
    return found


def run(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def run_here(module: str, *words: str) -> int:
    """Run a command in this process, which has imported its libraries already."""
    name = f"flawline.{module}"
    spec = find_spec(name)
    assert spec is not None
    if spec.submodule_search_locations is not None:
        name += ".__main__"
    try:
        return int(import_module(name).main(words))
    except SystemExit as ended:
        # argparse ends with a number.
        return int(ended.code or 0)


# Command lines that name a missing extra, and the extra.
NEED_EXTRAS = {
    ("train.fit", "--data", "."): "train",
    ("export.build", "--data", "."): "train",
    ("benchmarks.run", "--bundles", ".", "--data", "."): "report",
    ("benchmarks.bundle_report", "--bundle", ".", "--data", "."): "report",
    ("benchmarks.demo",): "report",
    ("benchmarks.studies.backbones", "--data", "."): "train",
    ("benchmarks.studies.bank_size", "--data", "."): "report",
    ("benchmarks.studies.fusion",): "train",
    ("benchmarks.studies.gpu_check",): "train",
    ("benchmarks.studies.stencils",): "train",
    ("benchmarks.studies.threshold_coverage", "--data", "."): "train",
}


class Ended(NamedTuple):
    """The exit status of a process, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_without_extras(lines: Sequence[Sequence[str]], code: str = WITHOUT_EXTRAS) -> list[Ended]:
    """Run command lines, each a module and its words, where the extras' packages are absent."""
    done = run("-c", code, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    return [Ended(*result) for result in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def without_extras() -> dict[tuple[str, ...], Ended]:
    """How commands end where the packages of the extras are absent, by their command lines."""
    lines = [*((module, "--help") for module in commands()), *NEED_EXTRAS]
    return dict(zip(lines, run_without_extras(lines), strict=True))


def test_the_commands_of_the_readme_are_among_them() -> None:
    assert {"train.fit", "export.build", "runtime.infer_stream", "benchmarks.run"} <= set(
        commands()
    )


@pytest.mark.parametrize("module", commands())
def test_help_needs_no_training_library(
    module: str, without_extras: dict[tuple[str, ...], Ended]
) -> None:
    done = without_extras[module, "--help"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert not done.stderr


@pytest.mark.parametrize("module", commands())
def test_an_unknown_flag_is_one_line(
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(module, "--no-such-flag") == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1, printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", NEED_EXTRAS, ids=lambda words: words[0])
def test_a_missing_extra_is_named_in_one_line(
    words: tuple[str, ...], without_extras: dict[tuple[str, ...], Ended]
) -> None:
    done = without_extras[words]
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.strip().endswith(install_command(NEED_EXTRAS[words]))


@pytest.mark.parametrize("module", commands())
def test_a_checkout_that_was_not_installed_says_what_to_type(module: str) -> None:
    # -S leaves out site-packages, and with it the installation of this checkout.
    done = run("-S", "-m", module, "--help", PYTHONPATH="")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [NOT_INSTALLED]


def test_the_stream_script_of_a_checkout_that_was_not_installed_says_what_to_type() -> None:
    done = run("-S", str(ROOT / "runtime" / "infer_stream.py"), "--list", PYTHONPATH="")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [NOT_INSTALLED]


def test_the_stream_script_runs_from_any_folder(tmp_path: Path) -> None:
    done = run(str(ROOT / "runtime" / "infer_stream.py"), "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["runtime.infer_stream", "--bundle"],
        ["runtime.calibrate", "--camera"],
        ["export.triton", "--bundle"],
        ["export.build", "--bundle"],
        ["export.build", "--checkpoint"],
        ["train.fit", "--data", ".", "--out"],
        ["benchmarks.run", "--bundles"],
        ["benchmarks.run", "--bundles", ".", "--data"],
        ["benchmarks.bundle_report", "--bundle"],
    ],
)
def test_an_empty_value_as_of_an_unset_shell_variable_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(*words, "") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is empty; check that its shell variable is set" in line


# The first import of numpy or of a part of Flawline, after the packages, is when Ctrl-C arrives.
INTERRUPTED_IMPORT = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "argparse"):
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
module, *sys.argv[1:] = sys.argv[1:]
sys.meta_path.insert(0, Interrupt())
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module",
    [
        "train.fit",
        "export.build",
        "export.triton",
        "runtime.infer_stream",
        "runtime.calibrate",
        "benchmarks.run",
        "benchmarks.bundle_report",
    ],
)
def test_ctrl_c_while_a_command_starts_prints_no_traceback(module: str) -> None:
    done = run("-c", INTERRUPTED_IMPORT, f"flawline.{module}", "--help")
    assert done.returncode == -signal.SIGINT
    assert not done.stderr


def test_the_root_command_ends_quietly_too() -> None:
    code = INTERRUPTED_IMPORT.replace(
        'runpy.run_module(module, run_name="__main__", alter_sys=True)',
        "sys.argv.insert(1, module); from flawline.__main__ import run; run()",
    )
    done = run("-c", code, "train", "--help")
    assert done.returncode == -signal.SIGINT
    assert not done.stderr
