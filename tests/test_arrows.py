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
# Who may import whom, by package or by module. `export.fuse` is algebra on torch alone: the methods' fused() use it.
ARROWS = {
    "cameras": {"cameras"},
    "runtime": {"runtime"},
    "runtime.infer_stream": {"runtime", "cameras"},
    "runtime.calibrate": {"runtime", "cameras"},
    "train": {
        "train",
        "runtime.image",
        "runtime.bundle",
        "runtime.console",
        "runtime.environment",
        "cameras.CameraError",
        "cameras.files",
        "export.fuse",
    },
    "export.fuse": set(),
    "export": {"export", "train", "runtime", "cameras"},
    "benchmarks": set(OURS),
}


def modules() -> dict[str, Path]:
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for o in OURS for p in (ROOT / o).rglob("*.py")}


def imports(path: Path, top: bool = False) -> set[str]:
    """Dotted names, of the whole file or of its top level; for `from package import name` of ours, both."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names} if node.module in OURS else {str(node.module)}
    return found


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for name, path in modules().items():
        allowed = ARROWS.get(name, ARROWS[name.split(".")[0]])
        ours = {t for t in imports(path) if t.split(".")[0] in OURS}
        wrong += [f"{name} -> {t}" for t in ours if not any(f"{t}.".startswith(f"{a}.") for a in allowed)]
    assert not wrong


def test_the_edge_half_imports_nothing_beyond_its_dependencies() -> None:
    standard = sys.stdlib_module_names
    for name, path in modules().items():
        if name.split(".")[0] in ("runtime", "cameras"):
            whole, top = ({t.split(".")[0] for t in imports(path, top)} - set(OURS) - EDGE for top in (False, True))
            assert not whole - standard - ENGINES, f"{name} imports {whole - standard}"
            assert not top - standard, f"{name} imports {top - standard} at its top"


def test_no_file_hides_a_standard_module_from_the_script() -> None:
    assert not {p.stem for p in (ROOT / "runtime").glob("*.py")} & set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "module", ["runtime.infer_stream", "runtime.calibrate", "runtime.trt", "cameras.usb", "cameras.synthetic", "train"]
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
        "export",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_stream_command_loads_no_engine() -> None:
    code = "import sys, runtime.infer_stream; print([m for m in ('onnxruntime', 'torch', 'train') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_two_opencv_wheels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime import environment

    assert environment.opencv_conflict() is None
    monkeypatch.setattr(environment, "_version", lambda name: "4.8" if name.startswith("opencv-python") else None)
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
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'flawline[train]'")
    assert len(done.stderr.splitlines()) == 1
