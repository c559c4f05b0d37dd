"""Every TensorRT member that the code names exists in seven versions, or stands below a hasattr that asks for it.

The code is followed for each version with the answers that its hasattr would have there: what is reached must exist.
"""

from __future__ import annotations

import ast
import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    ROOT / "runtime" / "engines" / "tensorrt" / name
    for name in ("engine.py", "build.py", "library.py")
]
API = json.loads((Path(__file__).parents[1] / "golden" / "tensorrt_api.json").read_text())
VERSIONS = frozenset(API["versions"])

# A variable that holds an object of TensorRT has one of these names, everywhere. "" is the module.
OBJECTS = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "timing_cache": "ITimingCache",
    "layer": "ILayer",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
# Every other variable that is followed by a dot.
OTHERS = {
    "bundle", "cls", "cuda", "error", "image", "island", "job", "kept", "log", "options", "path",
    "plan", "progress", "refused", "self", "sizes", "spec", "text", "time",
}  # fmt: skip


def versions_with(owner: str, member: str) -> frozenset[str]:
    patterns = API["classes"].get(owner, {})
    found = next((p for p, members in patterns.items() if member in members), "")
    return frozenset(v for v, bit in zip(API["versions"], found, strict=False) if bit == "1")


@dataclass
class Checker:
    """Follows the functions of `trees`; `entries` holds the versions in which each is called."""

    trees: list[ast.Module]
    entries: dict[str, frozenset[str]] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    named: set[tuple[str, str]] = field(default_factory=set)
    others: set[str] = field(default_factory=set)

    def run(self) -> Checker:
        imports = (n for t in self.trees for n in ast.walk(t) if isinstance(n, ast.Import))
        self.others = OTHERS | {
            alias.asname or alias.name for node in imports for alias in node.names
        }
        functions = {
            n.name: n for t in self.trees for n in ast.walk(t) if isinstance(n, ast.FunctionDef)
        }
        self.entries = {
            n: frozenset() if n.startswith("_") and n[:2] != "__" else VERSIONS for n in functions
        }
        before: dict[str, frozenset[str]] | None = None
        while before != self.entries:
            before, self.wrong = dict(self.entries), set()
            for tree in self.trees:
                self.block(tree.body, VERSIONS)
        self.wrong |= {
            f"{name} is never called" for name, versions in self.entries.items() if not versions
        }
        return self

    def block(self, statements: list[ast.stmt], versions: frozenset[str]) -> frozenset[str]:
        """The versions that come out at the end of these statements."""
        for statement in statements:
            versions = self.statement(statement, versions)
        return versions

    def statement(self, node: ast.stmt, versions: frozenset[str]) -> frozenset[str]:
        if isinstance(node, ast.FunctionDef):
            for child in (*node.decorator_list, node.args):
                self.expression(child, versions)
            self.block(node.body, self.entries[node.name] & versions)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                self.expression(base, versions)
            self.block(node.body, versions)
        elif isinstance(node, ast.If):
            yes, no = self.condition(node.test, versions)
            return self.block(node.body, yes) | self.block(node.orelse, no)
        elif isinstance(node, (ast.Return, ast.Raise)):
            self.expression(node, versions)
            return frozenset()
        else:
            bodies = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
            handlers = [handler.body for handler in getattr(node, "handlers", [])]
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.expr, ast.withitem)):
                    self.expression(child, versions)
            out = [self.block(body, versions) for body in (*bodies, *handlers)]
            return frozenset().union(*out) if isinstance(node, ast.Try) else versions
        return versions

    def condition(
        self, test: ast.expr, versions: frozenset[str]
    ) -> tuple[frozenset[str], frozenset[str]]:
        """The versions in which `test` may hold, and those in which it may not."""
        if (asked := asked_for(test)) is not None:
            has = versions_with(*asked)
            return versions & has, versions - has
        if isinstance(test, ast.Constant):
            return (versions, frozenset()) if test.value else (frozenset(), versions)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yes, no = self.condition(test.operand, versions)
            return no, yes
        if isinstance(test, ast.BoolOp):
            going, left = versions, frozenset[str]()
            for value in test.values:
                yes, no = self.condition(value, going)
                stays, leaves = (yes, no) if isinstance(test.op, ast.And) else (no, yes)
                going, left = stays, left | leaves
            return (going, left) if isinstance(test.op, ast.And) else (left, going)
        self.expression(test, versions)
        return versions, versions

    def expression(self, node: ast.AST, versions: frozenset[str]) -> None:
        if asked_for(node) is not None:
            return
        if isinstance(node, ast.IfExp):
            yes, no = self.condition(node.test, versions)
            self.expression(node.body, yes)
            self.expression(node.orelse, no)
            return
        if isinstance(node, ast.BoolOp):
            self.condition(node, versions)
            return
        if isinstance(node, ast.Attribute):
            self.access(node, versions)
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in self.entries:
                self.entries[name] |= versions
        for child in ast.iter_child_nodes(node):
            self.expression(child, versions)

    def access(self, node: ast.Attribute, versions: frozenset[str]) -> None:
        if node.attr.startswith("__"):
            return
        owner = owner_of(node.value)
        if owner is None:
            base = node.value
            if (
                isinstance(base, ast.Call)
                and isinstance(base.func, ast.Attribute)
                and owner_of(base.func.value)
            ):
                self.wrong.add(
                    f"line {node.lineno}: {ast.unparse(node)} is on an object without a name of OBJECTS"
                )
            if isinstance(base, ast.Name) and base.id not in self.others:
                self.wrong.add(f"line {node.lineno}: {base.id} is neither in OBJECTS nor in OTHERS")
            return
        self.named.add((owner, node.attr))
        if lacking := versions - versions_with(owner, node.attr):
            told = ", ".join(sorted(lacking))
            self.wrong.add(f"line {node.lineno}: {ast.unparse(node)} is not in {told}")


def owner_of(node: ast.AST) -> str | None:
    """The TensorRT class of a variable or of `trt.Class`, "" for the module; None for everything else."""
    if isinstance(node, ast.Name):
        return OBJECTS.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == "trt" and not node.attr.startswith("__"):
            return node.attr
        if node.value.id == "self" and node.attr.lstrip("_") in OBJECTS:
            return OBJECTS[node.attr.lstrip("_")]
    return None


def asked_for(node: ast.AST) -> tuple[str, str] | None:
    """Class and member of `hasattr(trt.Class, "member")`; None for everything else."""
    if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "hasattr":
        return None
    owner, member = owner_of(node.args[0]), node.args[1]
    if owner is None or not isinstance(member, ast.Constant):
        return None
    return owner, str(member.value)


def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text()) for path in FILES]


def guards() -> list[tuple[int, int]]:
    """Where each is: number of the file, number among its nodes."""
    return [
        (i, j)
        for i, t in enumerate(trees())
        for j, node in enumerate(ast.walk(t))
        if asked_for(node) is not None
    ]


class Unguarded(ast.NodeTransformer):
    def __init__(self, guard: ast.AST) -> None:
        self.guard = guard

    def visit(self, node: ast.AST) -> ast.AST:
        return (
            ast.copy_location(ast.Constant(True), node)
            if node is self.guard
            else super().generic_visit(node)
        )


def test_every_member_that_is_named_exists_or_is_asked_for() -> None:
    checker = Checker(trees()).run()
    assert not checker.wrong
    assert len(checker.named) > 60, "the check reads the code it is meant for"


@pytest.mark.parametrize("where", guards(), ids=lambda where: f"{FILES[where[0]].stem}-{where[1]}")
def test_without_any_one_of_the_guards_the_check_fails(where: tuple[int, int]) -> None:
    changed = trees()
    guard = list(ast.walk(changed[where[0]]))[where[1]]
    owner, member = asked_for(guard) or ("", "")
    assert versions_with(owner, member), f"{member} is in no version"
    assert versions_with(owner, member) != VERSIONS, f"{member} is in every version: nothing to ask"
    changed[where[0]] = Unguarded(guard).visit(changed[where[0]])
    assert any(" is not in " in line for line in Checker(changed).run().wrong)


def test_what_is_asked_by_name_exists_somewhere() -> None:
    """`"MEMBER" in trt.Class.__members__` decides something; a misspelt one would decide wrongly without a word."""
    asked = []
    for node in (n for tree in trees() for n in ast.walk(tree) if isinstance(n, ast.Compare)):
        enumeration = node.comparators[0]
        if isinstance(enumeration, ast.Attribute) and enumeration.attr == "__members__":
            assert isinstance(node.left, ast.Constant)
            asked.append((owner_of(enumeration.value), str(node.left.value)))
    assert len(asked) == 2
    assert all(
        versions_with(owner or "", member) not in (frozenset(), VERSIONS) for owner, member in asked
    )


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("trt.BuilderFlag.FP16", "trt.BuilderFlag.FP16 is not in 11.4, rtx1.7"),
        ("config.progress_monitor = 1", "config.progress_monitor is not in 8.5, 8.6"),
        ("engine.get_binding_shape(0)", "not in 10.13, 10.16, 10.3, 11.4, rtx1.7"),
        ("network.get_layer(0).precision", "is on an object without a name"),
        ("thing.precision", "thing is neither in OBJECTS nor in OTHERS"),
        ("self._context.execute_async_v2()", "not in 10.13"),
        (
            'x = layer.precision if not hasattr(trt.BuilderFlag, "FP16") else 0',
            "layer.precision is not in 11.4, rtx1.7",
        ),
        (
            'if hasattr(trt.BuilderFlag, "FP16") or options.x: layer.precision',
            "is not in 11.4, rtx1.7",
        ),
    ],
)
def test_the_check_sees_what_it_must(code: str, told: str) -> None:
    assert told in " ".join(Checker([ast.parse(code)]).run().wrong)


@pytest.mark.parametrize(
    "code",
    [
        'if hasattr(trt.BuilderFlag, "FP16"): layer.precision',
        'if not hasattr(trt.BuilderFlag, "FP16"):\n    raise ValueError\nlayer.precision',
        'if options.x and hasattr(trt.BuilderFlag, "FP16"): _f()\ndef _f(): layer.precision',
        'x = hasattr(trt, "IProgressMonitor") and trt.IProgressMonitor.phase_start',
    ],
)
def test_the_check_follows_the_guards(code: str) -> None:
    assert not Checker([copy.deepcopy(ast.parse(code))]).run().wrong
