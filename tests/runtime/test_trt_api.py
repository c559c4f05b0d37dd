"""Every TensorRT member that the code uses exists in seven versions, or stands under its hasattr.

A test follows the code for each version, with the answers that its hasattr calls would have there.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fakes.api_checker import Checker
from fakes.api_kinds import ALIASES, RETURNS, Instance
from fakes.tensorrt_api import CLASSES, VERSIONS, versions_with

FOLDER = Path(__file__).resolve().parents[2] / "runtime" / "engines" / "tensorrt"
SOURCES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.py"))}


def parsed() -> dict[str, ast.Module]:
    return {name: ast.parse(source) for name, source in SOURCES.items()}


def guards() -> list[tuple[str, int]]:
    """Where the code calls hasattr: the file, and the number among the file's nodes."""
    found = []
    for name, tree in parsed().items():
        for number, node in enumerate(ast.walk(tree)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr":
                found.append((name, number))
    return found


class Unguarded(ast.NodeTransformer):
    """Replaces one guard by True. `owner` and `member` are what it asked for."""

    def __init__(self, guard: ast.Call) -> None:
        self.guard = guard
        # Every guard in this folder asks for a member of the module or of one of its classes.
        asked, member = guard.args
        self.owner = asked.attr if isinstance(asked, ast.Attribute) else ""
        assert isinstance(member, ast.Constant)
        self.member = str(member.value)

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.guard:
            return ast.copy_location(ast.Constant(True), node)
        return super().generic_visit(node)


def test_every_member_that_is_used_exists_or_is_guarded() -> None:
    checker = Checker(parsed())
    assert not checker.wrong
    assert len(checker.used) > 60, "the check does not see the code that it is meant for"


@pytest.mark.parametrize(("file", "number"), guards())
def test_the_check_fails_without_any_one_of_the_guards(file: str, number: int) -> None:
    trees = parsed()
    guard = list(ast.walk(trees[file]))[number]
    assert isinstance(guard, ast.Call)
    unguarded = Unguarded(guard)
    versions = versions_with(unguarded.owner, unguarded.member)
    assert versions, f"{unguarded.member} is in no version"
    assert versions != set(VERSIONS), f"{unguarded.member} is in every version and needs no guard"
    trees[file] = unguarded.visit(trees[file])  # type: ignore[assignment]
    assert any(" is not in " in line for line in Checker(trees).wrong)


def test_a_member_that_is_looked_up_by_its_text_exists_in_some_versions() -> None:
    """A misspelt name in `"MEMBER" in trt.Class.__members__` would decide wrongly, unnoticed."""
    looked_up = []
    for tree in parsed().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and ".__members__" in ast.unparse(node.comparators[0]):
                enumeration = node.comparators[0]
                assert isinstance(node.left, ast.Constant)
                assert isinstance(enumeration, ast.Attribute)
                assert isinstance(enumeration.value, ast.Attribute)
                looked_up.append((enumeration.value.attr, str(node.left.value)))
    assert len(looked_up) == 2
    for owner, member in looked_up:
        assert versions_with(owner, member) not in (frozenset(), frozenset(VERSIONS))


def test_the_names_of_annotations_and_results_are_classes_of_tensorrt() -> None:
    assert {"Module", "Builder", "Runtime"} <= ALIASES
    assert ALIASES - {"Module"} <= CLASSES
    for (owner, member), kind in RETURNS.items():
        assert versions_with(owner, member), f"{owner}.{member} is in no version"
        assert not isinstance(kind, Instance) or kind.name in CLASSES


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(trt: Module): trt.BuilderFlag.FP16", "trt.BuilderFlag.FP16 is not in 11.4, rtx1.7"),
        (
            "def f(anything: Module): anything.BuilderFlag.FP16",
            "anything.BuilderFlag.FP16 is not in 11.4, rtx1.7",
        ),
        (
            "def f(c: IBuilderConfig): c.progress_monitor = 1",
            "c.progress_monitor is not in 8.5, 8.6",
        ),
        (
            "def f(e: ICudaEngine): e.get_binding_shape(0)",
            "not in 10.13, 10.16, 10.3, 11.4, rtx1.7",
        ),
        (
            "def f(trt: Module):\n    b = trt.Builder(0)\n    n = b.create_network(0)\n    n.no",
            "n.no is not in 10.13, 10.16, 10.3, 11.4, 8.5, 8.6, rtx1.7",
        ),
        (
            "def f(n: INetworkDefinition):\n    for i in range(3): n.get_layer(i).precision",
            "n.get_layer(i).precision is not in 11.4, rtx1.7",
        ),
        (
            "def g(trt: Module) -> tuple[Builder, ILayer]: ...\n"
            "def f(trt: Module):\n    _, x = g(trt)\n    x.precision",
            "x.precision is not in 11.4, rtx1.7",
        ),
        (
            "class A:\n    def f(self, c: IExecutionContext): self.c = c\n"
            "    def g(self): self.c.execute_async_v2()",
            "self.c.execute_async_v2 is not in 10.13",
        ),
        (
            "class A:\n    def __init__(self, layer: ILayer): self.layer = layer\n"
            "def f(a: A): a.layer.precision",
            "a.layer.precision is not in 11.4, rtx1.7",
        ),
        (
            "def f(layer: ILayer, a: A):\n    a.layer = layer\n    a.layer.precision",
            "a.layer.precision is not in 11.4, rtx1.7",
        ),
        (
            "def f(thing: Any): thing.precision",
            "thing.precision is on an object whose class is unk",
        ),
        ("def f(thing): thing.precision", "thing.precision is on an object whose class is unknown"),
        ("thing.precision", "thing.precision is on an object whose class is unknown"),
        ("f = lambda thing: thing.precision", "is on an object whose class is unknown"),
        (
            "def f(e: ICudaEngine): e.serialize().context",
            "is on an object whose class is unknown",
        ),
        (
            "def f(n: INetworkDefinition):\n    x = [n.get_layer(0)]\n    x[0].precision",
            "is on an object whose class is unknown",
        ),
        (
            "def f(n: INetworkDefinition):\n    for x in list(n): x.precision",
            "is on an object whose class is unknown",
        ),
        (
            "def f(a: ILayer, b: Path, c: bool):\n    x = a if c else b\n    x.precision",
            "is on an object whose class is unknown",
        ),
        (
            "def f(trt: Module, layer: ILayer):\n"
            '    x = layer.precision if not hasattr(trt.BuilderFlag, "FP16") else 0',
            "layer.precision is not in 11.4, rtx1.7",
        ),
        (
            "def f(trt: Module, layer: ILayer, x: bool):\n"
            '    if hasattr(trt.BuilderFlag, "FP16") or x: layer.precision',
            "is not in 11.4, rtx1.7",
        ),
        (
            "def f(layer: ILayer): _g(layer)\ndef _g(layer: ILayer): layer.precision",
            "layer.precision is not in 11.4, rtx1.7",
        ),
        ("def _f(): ...", "_f is never called"),
    ],
)
def test_the_check_reports_what_it_must(code: str, message: str) -> None:
    assert message in " ".join(Checker({"code.py": ast.parse(code)}).wrong)


@pytest.mark.parametrize(
    "code",
    [
        "def f(trt: Module, layer: ILayer):\n"
        '    if hasattr(trt.BuilderFlag, "FP16"): layer.precision',
        "def f(trt: Module, layer: ILayer):\n"
        '    if not hasattr(trt.BuilderFlag, "FP16"):\n        raise ValueError\n'
        "    layer.precision",
        "def f(trt: Module, layer: ILayer, x: bool):\n"
        '    if x and hasattr(trt.BuilderFlag, "FP16"): _g(layer)\n'
        "def _g(layer: ILayer): layer.precision",
        "def f(trt: Module):\n"
        '    x = hasattr(trt, "IProgressMonitor") and trt.IProgressMonitor.phase_start',
        'def f(layer: ILayer):\n    if hasattr(layer, "precision"): layer.precision',
        "def f(path: Path, names: list[str]):\n    for name in names: path.with_name(name.upper())",
    ],
)
def test_the_check_accepts_guards_and_other_objects(code: str) -> None:
    assert not Checker({"code.py": ast.parse(code)}).wrong
