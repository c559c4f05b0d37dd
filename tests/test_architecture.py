"""Imports point one way, and the edge half runs without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("train", "export", "runtime", "cameras", "benchmarks")
EDGE = {"numpy", "cv2"}
# What an engine brings is imported where it is used, never at the top of a file.
ENGINES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "pycuda"}
# Who may import whom, by package.
ARROWS = {
    "flawline.cameras": {"flawline.cameras"},
    "flawline.runtime": {"flawline.runtime", "flawline.cameras"},
    "flawline.train": {"flawline.train", "flawline.runtime", "flawline.cameras"},
    "flawline.export": {
        "flawline.export",
        "flawline.train",
        "flawline.runtime",
        "flawline.cameras",
    },
    "flawline.benchmarks": {f"flawline.{name}" for name in OURS},
}


def modules() -> dict[str, Path]:
    found = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("flawline", *parts))] = path
    return found


def imports(path: Path, top: bool = False) -> set[str]:
    """Dotted names of what a file imports, anywhere or at its top level."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
    return found


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for name, path in modules().items():
        allowed = ARROWS[".".join(name.split(".")[:2])] | {"flawline", "flawline.options"}
        for target in imports(path):
            package = ".".join(target.split(".")[:2])
            assert target.split(".")[0] not in OURS, (
                f"{path}: {target} is imported by its short name"
            )
            if package.startswith("flawline") and package not in allowed:
                wrong.append(f"{name} -> {target}")
    assert not wrong


def test_the_edge_half_imports_nothing_beyond_its_dependencies() -> None:
    standard = sys.stdlib_module_names
    for name, path in modules().items():
        if name.split(".")[1] in ("runtime", "cameras"):
            whole, top = (
                {t.split(".")[0] for t in imports(path, top)} - {"flawline"} - EDGE
                for top in (False, True)
            )
            assert not whole - standard - ENGINES, f"{name} imports {whole - standard}"
            assert not top - standard, f"{name} imports {top - standard} at its top"


def test_no_file_hides_a_standard_module_from_the_script() -> None:
    assert not {p.stem for p in (ROOT / "runtime").glob("*.py")} & set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "module",
    [
        "flawline.runtime.infer_stream",
        "flawline.runtime.calibrate",
        "flawline.runtime.engines.tensorrt.engine",
        "flawline.cameras.usb",
        "flawline.cameras.synthetic",
        "flawline.train",
    ],
)
def test_the_edge_half_imports_with_torch_blocked(module: str) -> None:
    blocked = (
        "torch",
        "torchvision",
        "tensorrt",
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt_rtx",
        "cuda",
        "pycuda",
        "matplotlib",
        "pypylon",
        "gi",
        "tqdm",
        "flawline.export",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {module}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_stream_command_loads_no_engine() -> None:
    code = "import sys, flawline.runtime.infer_stream; print([m for m in ('onnxruntime', 'torch', 'flawline.train') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_two_opencv_wheels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flawline.runtime import environment

    assert environment.opencv_conflict() is None
    monkeypatch.setattr(
        environment, "_version", lambda name: "4.8" if name.startswith("opencv-python") else None
    )
    told = environment.opencv_conflict() or ""
    assert "2 OpenCV wheels" in told
    assert "pip uninstall -y opencv-python-headless opencv-python" in told


@pytest.mark.parametrize("module", ["train.fit", "export.build", "benchmarks.run"])
def test_a_training_command_on_the_edge_names_the_extra(module: str) -> None:
    code = (
        "import importlib.util as u, runpy, sys; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a);"
        f"sys.argv = ['x']; runpy.run_module({module!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'flawline[train]'")
    assert len(done.stderr.splitlines()) == 1
