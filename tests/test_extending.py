"""A new method, backbone, engine, camera or output costs one file and one line.

A copy of the project gets the smallest member of each kind, tests/toys/, and the contract tests run
on these members alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "export", "runtime", "cameras", "benchmarks", "src", "tests")
# Seconds for all contract tests of the toys.
LONGEST_S = 200
IGNORED = shutil.ignore_patterns("__pycache__", "results", "*.png")
# Kind -> (file to add, dictionary, its file, class)
TOYS = {
    "method": ("train/methods/toy.py", "METHODS", "train/__init__.py", "MeanImage"),
    "backbone": (
        "train/backbones/toy.py",
        "BACKBONES",
        "train/backbones/__init__.py",
        "StridedConvolutions",
    ),
    "engine": (
        "runtime/engines/toy.py",
        "ENGINES",
        "runtime/engines/__init__.py",
        "ReferenceEngine",
    ),
    "camera": ("cameras/toy.py", "CAMERAS", "cameras/__init__.py", "Grey"),
    "output": ("runtime/outputs/toy.py", "OUTPUTS", "runtime/outputs/__init__.py", "TextFile"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with one toy of each kind."""
    copy = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, symlinks=True, ignore=IGNORED)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for kind, (file, dictionary, home, name) in TOYS.items():
        shutil.copy(ROOT / "tests" / "toys" / f"{kind}.py", copy / file)
        module = "flawline." + file.removesuffix(".py").replace("/", ".")
        add_line(copy / home, dictionary, f'    "toy": "{module}:{name}",\n')
    return copy


def add_line(path: Path, dictionary: str, line: str) -> None:
    """Insert one line as the first entry of a dictionary."""
    text = path.read_text(encoding="utf-8")
    start = re.search(rf"^{dictionary}\b.*= {{\n", text, re.MULTILINE)
    assert start is not None, f"{path} has no dictionary {dictionary}"
    path.write_text(text[: start.end()] + line + text[start.end() :], encoding="utf-8")


@pytest.fixture(scope="module")
def results(project: Path) -> dict[str, list[str]]:
    """What became of each contract test of a toy: kind of toy -> "passed" or a failure each."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    report = project / "report.xml"
    files = [f"tests/contract/test_{plural(kind)}.py" for kind in TOYS]
    done = subprocess.run(
        [*command, "-k", "toy", "-m", "not alone", "--junitxml", str(report), *files],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr[-2000:]
    found: dict[str, list[str]] = {kind: [] for kind in TOYS}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        kind = case.attrib["classname"].removeprefix("tests.contract.test_").removesuffix("s")
        problems = [case.find(name) for name in ("failure", "error")]
        texts = [problem.text or "" for problem in problems if problem is not None]
        found[kind].append("\n".join(texts) or "passed")
    return found


@pytest.mark.parametrize("kind", TOYS)
def test_one_file_and_one_line_pass_the_contract(kind: str, results: dict[str, list[str]]) -> None:
    if kind in ("method", "backbone"):
        pytest.importorskip("torch", reason="needs the train extra")
    if kind == "engine":
        pytest.importorskip("onnx", reason="needs onnx")
    failures = [result for result in results[kind] if result != "passed"]
    assert not failures, "\n".join(failures)[-4000:]
    assert len(results[kind]) >= 3


def plural(kind: str) -> str:
    return f"{kind}s"
