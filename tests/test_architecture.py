"""The structure of the project: imports point one way; the edge half needs no training library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cameras", "runtime", "train", "export", "benchmarks")
# Each package may import itself and the packages before it; docs/architecture.md draws the same.
ALLOWED = {
    "cameras": {"cameras"},
    "runtime": {"cameras", "runtime"},
    "train": {"cameras", "runtime", "train"},
    "export": {"cameras", "runtime", "train", "export"},
    "benchmarks": {"cameras", "runtime", "train", "export", "benchmarks"},
}
CORE = {"numpy", "cv2", "tifffile", "msgspec"}
# Files that are only imported where the library of an extra is installed.
LIBRARY_OF_FILE = {
    "flawline.cameras.rtsp_reader": {"av"},
    "flawline.cameras.video_convert": {"av"},
    "flawline.cameras.video_decoder": {"av"},
    "flawline.cameras.video_open": {"av"},
    # FastAPI reads the annotations of its functions, whose types the file must have imported.
    "flawline.runtime.outputs.web.app": {"fastapi", "pydantic"},
    "flawline.runtime.outputs.web.teaching_app": {"fastapi", "pydantic"},
    "flawline.runtime.outputs.web.metrics": {"prometheus_client"},
    "flawline.runtime.teaching.exempting_graph": {"onnx"},
    "flawline.runtime.teaching.exempting_nodes": {"onnx"},
    "flawline.runtime.teaching.graph": {"onnx"},
    "flawline.runtime.teaching.positions": {"onnx"},
}
# Engines, cameras, outputs and signatures import the library of an extra where it is used.
ENGINE_LIBRARIES = {
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    "av",
    "pypylon",
    "genicam",
    "harvesters",
    "gi",
    "paho",
    "pymodbus",
    "asyncua",
    "gpiozero",
    "grpc",
    "tritonclient",
    "uvicorn",
    "cryptography",
}
TRAINING_LIBRARIES = ("torch", "torchvision", "onnx", "matplotlib", "tqdm", "FrEIA", "timm")


def modules() -> dict[str, Path]:
    """Dotted name of every module of the project, packages under their own name."""
    found = {"flawline": ROOT / "src/flawline/__init__.py"}
    for path in (ROOT / "src/flawline").glob("[!_]*.py"):
        found[f"flawline.{path.stem}"] = path
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = ["flawline", *path.relative_to(ROOT).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join(parts)] = path
    return found


class Source:
    """What the tests ask about the syntax of a file.

    top_level: the import statements outside of functions and classes. imports: all import
    statements. texts: strings with their lines.
    """

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.imports: list[ast.stmt] = []
        self.texts: list[tuple[int, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports.append(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.texts.append((node.lineno, node.value))
        self.top_level = [node for node in tree.body if node in self.imports]


@cache
def source_of(path: Path) -> Source:
    """Read each file once for all tests."""
    return Source(path)


def imported_names(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names of what a file imports; `from a import b` gives a and a.b."""
    source = source_of(path)
    for node in source.top_level if top_level_only else source.imports:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from submodules
            yield node.module


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the project that it imports, anywhere in the file."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for node in source_of(path).imports:
            if isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    targets.add(submodule if submodule in known else str(node.module))
        graph[name] = (targets & set(known)) - {name}
    return graph


def test_packages_import_only_what_the_architecture_allows() -> None:
    wrong = []
    for name, targets in import_graph().items():
        parts = name.split(".")
        allowed = ALLOWED[parts[1]] if len(parts) > 1 and parts[1] in ALLOWED else set()
        for target in targets:
            package = target.split(".")[1] if "." in target else ""
            if package in ALLOWED and package not in allowed:
                wrong.append(f"{name} -> {target}")
    assert not wrong


def test_every_import_uses_the_installed_name() -> None:
    wrong = []
    for name, path in modules().items():
        for target in imported_names(path):
            if target.split(".")[0] in PACKAGES:
                wrong.append(f"{name} -> {target}")
    assert not wrong


def test_there_is_no_import_cycle_between_files() -> None:
    graph = import_graph()
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in finished:
            return
        for target in sorted(graph[name]):
            visit(target, (*trail, name))
        finished.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("package", ["cameras", "runtime"])
def test_the_edge_half_imports_only_its_dependencies(package: str) -> None:
    core = set(sys.stdlib_module_names) | CORE | {"flawline"}
    for name, path in modules().items():
        if not name.startswith(f"flawline.{package}"):
            continue
        allowed = core | LIBRARY_OF_FILE.get(name, set())
        everywhere = {target.split(".")[0] for target in imported_names(path)}
        at_top = {target.split(".")[0] for target in imported_names(path, top_level_only=True)}
        assert not everywhere - allowed - ENGINE_LIBRARIES, name
        assert not at_top - allowed, name


def test_no_file_next_to_the_stream_script_hides_a_standard_module() -> None:
    # `python runtime/infer_stream.py` puts runtime/ first on the import path.
    names = {path.stem for path in (ROOT / "runtime").iterdir()}
    assert not names & (set(sys.stdlib_module_names) | CORE | ENGINE_LIBRARIES)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "flawline.runtime",
        "flawline.runtime.infer_stream",
        "flawline.runtime.calibrate",
        "flawline.runtime.engines.tensorrt.engine",
        "flawline.cameras.usb",
        "flawline.cameras.synthetic",
        "flawline.cameras.basler",
        "flawline.cameras.gige",
        "flawline.train",
        "flawline.train.fit",
        "flawline.export.build",
    ],
)
def test_modules_of_the_edge_and_commands_import_without_training_libraries(module: str) -> None:
    blocked = (*TRAINING_LIBRARIES, *ENGINE_LIBRARIES, "gi")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {module}"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_stream_command_loads_no_engine() -> None:
    heavy = ("onnxruntime", "torch", "flawline.train")
    code = (
        "import sys, flawline.runtime.infer_stream;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"


# Where a member of a dictionary may be named outside its own folder, and why.
NAMED = {
    "train/fit.py": "the default method",
    "benchmarks/measure/external.py": "models that fit no bundle, and so no engine",
    "benchmarks/peers/__main__.py": "the inferencers of another library",
    "benchmarks/peers/theirs.py": "models of another library",
    "benchmarks/studies/bank_size/__main__.py": "a study of PatchCore's memory bank",
    "benchmarks/studies/cutswap/__main__.py": "a study of CutSwap's fine-tuning",
    "benchmarks/studies/cutswap/variants.py": "a study of CutSwap's fine-tuning",
    "benchmarks/studies/gpu_check/__main__.py": "the default network of the study",
    "benchmarks/studies/gpu_check/expected.py": "the networks that have an aim",
    "export/triton_config.py": "the backends that Triton has",
    "src/flawline/extras.py": "names of packages and their extras",
    "runtime/environment.py": "names of packages whose versions are recorded",
}
# Dictionary -> the folders whose files may name its members: their own, and those built on them.
HOMES = {
    "METHODS": (
        "train/__init__.py",
        "train/methods/",
        "benchmarks/published/",
        "runtime/teaching/",
    ),
    "BACKBONES": ("train/backbones/",),
    "ENGINES": ("runtime/engines/",),
    "OUTPUTS": ("runtime/outputs/",),
}


def members(dictionary: str) -> set[str]:
    """Names in one of the dictionaries, read without importing it."""
    for path in (ROOT / HOMES[dictionary][0], ROOT / HOMES[dictionary][0] / "__init__.py"):
        if path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == dictionary:
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{dictionary} was not found")


@pytest.mark.parametrize("dictionary", HOMES)
def test_shared_code_names_no_single_member(dictionary: str) -> None:
    names = members(dictionary)
    wrong = []
    for path in modules().values():
        file = path.relative_to(ROOT).as_posix()
        if file.startswith(HOMES[dictionary]) or file in NAMED:
            continue
        for line, text in source_of(path).texts:
            if text in names:
                wrong.append(f"{file}:{line}: {text!r}")
    assert not wrong
