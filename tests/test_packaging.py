"""The wheel: one top-level name, no file missing, commands that foreign modules cannot confuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "export", "runtime", "cameras", "benchmarks")
# Files of the folders that are not part of the installation.
NOT_INSTALLED = ("benchmarks/results/",)


IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without network from a copy of its files."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools >= 77 to build")
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "src"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True)
    (built,) = out.glob("*.whl")
    return built


def files_of_the_packages() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in name and not name.startswith(NOT_INSTALLED):
                yield name


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"flawline"}


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = [name for name in files_of_the_packages() if f"flawline/{name}" not in names]
    assert not missing
    assert not [name for name in names if name.startswith("flawline/benchmarks/results")]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed, scripts in its bin/."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    return target


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose own modules have the names of our folders."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "train.py").write_text("raise RuntimeError('the foreign train was imported')")
    for name in ("runtime", "export", "cameras", "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('foreign')")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "train --help",
        "build --help",
        "stream --list",
        "doctor --only system",
        "station --help",
        "calibrate --help",
        "bench --help",
        "report --help",
        "triton --help",
        "demo --help",
    ],
)
def test_installed_commands_run_in_a_folder_with_foreign_modules(
    command: str, installed: Path, foreign: Path
) -> None:
    program = str(installed / "bin" / "flawline")
    run_in_foreign([sys.executable, program, *command.split()], installed, foreign)


@pytest.mark.parametrize(
    "module",
    [
        "flawline.train.fit",
        "flawline.export.build",
        "flawline.runtime.infer_stream",
        "flawline.benchmarks.run",
    ],
)
def test_installed_modules_run_in_a_folder_with_foreign_modules(
    module: str, installed: Path, foreign: Path
) -> None:
    run_in_foreign([sys.executable, "-m", module, "--help"], installed, foreign)


def run_in_foreign(command: list[str], installed: Path, foreign: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        command, cwd=foreign, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_version_is_said_once() -> None:
    import flawline

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in text
    assert 'version = { attr = "flawline.__version__" }' in text
    assert flawline.__version__
