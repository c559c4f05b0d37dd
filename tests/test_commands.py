"""Every command: help without training libraries, one-line errors, exit status 2 for mistakes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flawline.extras import EXTRA_OF_PACKAGE, install_command

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "export", "runtime", "benchmarks")
# Engines are found by the metadata of their package, which cannot be hidden in this way.
ENGINE_PACKAGES = {"openvino", "tensorrt_rtx"}
HIDDEN = sorted({*EXTRA_OF_PACKAGE, "torchvision"} - ENGINE_PACKAGES)
# Makes the packages of the extras look absent, as on a box that only inspects.
WITHOUT_EXTRAS = f"""
import runpy, sys
for package in {HIDDEN}:
    sys.modules[package] = None
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
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


def test_the_commands_of_the_readme_are_among_them() -> None:
    assert {"train.fit", "export.build", "runtime.infer_stream", "benchmarks.run"} <= set(
        commands()
    )


@pytest.mark.parametrize("module", commands())
def test_help_needs_no_training_library(module: str) -> None:
    done = run("-c", WITHOUT_EXTRAS, f"flawline.{module}", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert not done.stderr


@pytest.mark.parametrize("module", commands())
def test_an_unknown_flag_is_one_line(module: str) -> None:
    done = run("-m", f"flawline.{module}", "--no-such-flag")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("module", "flags", "extra"),
    [
        ("train.fit", ["--data", "."], "train"),
        ("export.build", ["--data", "."], "train"),
        ("benchmarks.run", ["--bundles", ".", "--data", "."], "report"),
        ("benchmarks.bundle_report", ["--bundle", ".", "--data", "."], "report"),
        ("benchmarks.demo", [], "report"),
        ("benchmarks.studies.backbones", ["--data", "."], "train"),
        ("benchmarks.studies.bank_size", ["--data", "."], "report"),
        ("benchmarks.studies.fusion", [], "train"),
        ("benchmarks.studies.gpu_check", [], "train"),
        ("benchmarks.studies.stencils", [], "train"),
        ("benchmarks.studies.threshold_coverage", ["--data", "."], "train"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(module: str, flags: list[str], extra: str) -> None:
    done = run("-c", WITHOUT_EXTRAS, f"flawline.{module}", *flags)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.strip().endswith(install_command(extra))


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
def test_an_empty_value_as_of_an_unset_shell_variable_is_refused(words: list[str]) -> None:
    done = run("-m", *words, "")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
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
