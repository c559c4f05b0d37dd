"""Infers which expressions of a program are objects of TensorRT, and of which class.

The inference starts from annotations with the names of `runtime/engines/tensorrt/api.py`, and
follows assignments, constructors and the results of TensorRT's own methods. It does not depend on
the names of variables. An object that comes from TensorRT and whose class is not known is UNKNOWN.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from typing import TypeAlias

from flawline.runtime.engines.tensorrt import api


@dataclass(frozen=True)
class Instance:
    """An object of a class of TensorRT; the module itself has the name ""."""

    name: str


@dataclass(frozen=True)
class ClassObject:
    """A class of TensorRT itself, for example an enumeration."""

    name: str


@dataclass(frozen=True)
class Tuple:
    items: tuple[Kind, ...]


@dataclass(frozen=True)
class Other:
    """Everything else. The name is for debugging and comparison only."""

    name: str


Kind: TypeAlias = Instance | ClassObject | Tuple | Other
PLAIN = Other("plain")  # not an object of TensorRT
CONTAINER = Other("container")  # not an object of TensorRT, but its elements may be
UNKNOWN = Other("unknown")  # may be an object of TensorRT
NONE = Other("none")

MODULE = Instance("")
ALIASES = {name for name, value in vars(api).items() if value is api.Any and name != "Any"}

# What the methods of TensorRT return. A method that is missing here returns an UNKNOWN object.
RETURNS: dict[tuple[str, str], Kind] = {
    ("Builder", "create_builder_config"): Instance("IBuilderConfig"),
    ("Builder", "create_network"): Instance("INetworkDefinition"),
    ("Builder", "create_optimization_profile"): Instance("IOptimizationProfile"),
    ("EngineInspector", "get_engine_information"): PLAIN,
    ("IBuilderConfig", "create_timing_cache"): Instance("ITimingCache"),
    ("IBuilderConfig", "get_timing_cache"): Instance("ITimingCache"),
    ("ICudaEngine", "create_engine_inspector"): Instance("EngineInspector"),
    ("ICudaEngine", "create_execution_context"): Instance("IExecutionContext"),
    ("ICudaEngine", "create_runtime_config"): Instance("IRuntimeConfig"),
    ("ICudaEngine", "get_tensor_name"): PLAIN,
    ("ILayer", "get_output"): Instance("ITensor"),
    ("INetworkDefinition", "get_input"): Instance("ITensor"),
    ("INetworkDefinition", "get_layer"): Instance("ILayer"),
    ("IRuntimeConfig", "create_runtime_cache"): Instance("IRuntimeCache"),
    ("OnnxParser", "get_error"): Instance("ParserError"),
    ("ParserError", "desc"): PLAIN,
    ("Runtime", "deserialize_cuda_engine"): Instance("ICudaEngine"),
}
# Builtin functions whose result is never an object of TensorRT.
CONVERSIONS = {"bool", "bytes", "hasattr", "int", "isinstance", "len", "range", "str"}


def merge(kinds: list[Kind]) -> Kind:
    """The kind of a value that has one of these kinds."""
    different = {kind for kind in kinds if kind != NONE}
    if not different:
        return NONE
    if len(different) == 1:
        return different.pop()
    return UNKNOWN


class Program:
    """The scopes of all functions in `trees`, and what they return."""

    def __init__(self, trees: list[ast.Module]) -> None:
        self.returns: dict[str, Kind] = {}
        self.attributes: dict[tuple[str, str], Kind] = {}
        self.scopes: dict[ast.AST, Scope] = {}
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    kinds = [annotated(node.returns)]
                    if node.name in self.returns:
                        kinds.append(self.returns[node.name])
                    self.returns[node.name] = merge(kinds)
        # A method may use attributes that a later one assigns: repeat until nothing changes.
        before: dict[tuple[str, str], Kind] | None = None
        while before != self.attributes:
            before = dict(self.attributes)
            for tree in trees:
                Scope(self, None, "", tree)

    def attribute_of_any_class(self, name: str) -> Kind:
        """The kind of an attribute of an object of our own, whose class is not followed."""
        kinds = [kind for (_, attribute), kind in self.attributes.items() if attribute == name]
        return merge(kinds) if kinds else PLAIN


class Scope:
    """The names of a module, class or function and their kinds."""

    def __init__(self, program: Program, parent: Scope | None, owner: str, node: ast.AST) -> None:
        self.program = program
        self.parent = parent
        self.owner = owner  # the class that `self` is of
        self.names: dict[str, Kind] = {}
        program.scopes[node] = self
        if isinstance(node, ast.FunctionDef):
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                is_self = argument.arg in ("self", "cls") and argument.annotation is None
                kind = PLAIN if is_self else annotated(argument.annotation)
                self.assign(ast.Name(argument.arg), kind)
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    def visit(self, node: ast.AST) -> None:
        """Note what a node and its children assign."""
        if isinstance(node, ast.FunctionDef):
            self.assign(ast.Name(node.name), PLAIN)
            Scope(self.program, self, self.owner, node)
            return
        if isinstance(node, ast.ClassDef):
            self.assign(ast.Name(node.name), PLAIN)
            Scope(self.program, self, node.name, node)
            return
        if isinstance(node, ast.Lambda):
            for argument in node.args.args:
                self.assign(ast.Name(argument.arg), UNKNOWN)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                self.assign(ast.Name(alias.asname or alias.name.split(".")[0]), PLAIN)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            self.assign(ast.Name(node.name), PLAIN)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self.assign(target, self.kind(node.value))
        elif isinstance(node, ast.AugAssign):
            self.assign(node.target, PLAIN)
        elif isinstance(node, ast.AnnAssign):
            self.assign(node.target, annotated(node.annotation), declared=True)
        elif isinstance(node, ast.NamedExpr):
            self.assign(node.target, self.kind(node.value))
        elif isinstance(node, ast.For | ast.comprehension):
            self.assign(node.target, element(self.kind(node.iter)))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self.assign(node.optional_vars, self.kind(node.context_expr))
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    def assign(self, target: ast.expr, kind: Kind, declared: bool = False) -> None:
        """Give a target this kind; other assignments of it must have the same, or none counts."""
        if isinstance(target, ast.Tuple | ast.List):
            kinds = list(kind.items) if isinstance(kind, Tuple) else []
            for i, item in enumerate(target.elts):
                self.assign(item, kinds[i] if len(kinds) == len(target.elts) else element(kind))
        elif isinstance(target, ast.Starred):
            self.assign(target.value, element(kind))
        elif isinstance(target, ast.Name):
            kinds = [kind] if target.id not in self.names else [kind, self.names[target.id]]
            self.names[target.id] = merge(kinds)
        elif isinstance(target, ast.Attribute):
            is_self = getattr(target.value, "id", "") == "self"
            key = (self.owner if is_self else "", target.attr)
            known = self.program.attributes.get(key)
            if declared or known is None:
                self.program.attributes[key] = kind
            else:
                self.program.attributes[key] = merge([kind, known])

    def lookup(self, name: str) -> Kind:
        if name in self.names:
            return self.names[name]
        if self.parent is not None:
            return self.parent.lookup(name)
        return PLAIN if hasattr(builtins, name) else UNKNOWN

    def kind(self, node: ast.AST) -> Kind:
        """The kind of an expression."""
        if isinstance(node, ast.Name):
            return self.lookup(node.id)
        if isinstance(node, ast.Constant):
            return NONE if node.value is None else PLAIN
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Tuple):
            return Tuple(tuple(self.kind(item) for item in node.elts))
        if isinstance(node, ast.IfExp):
            return merge([self.kind(node.body), self.kind(node.orelse)])
        if isinstance(node, ast.BoolOp):
            return merge([self.kind(value) for value in node.values])
        if isinstance(node, ast.Subscript):
            return element(self.kind(node.value))
        if isinstance(node, ast.NamedExpr | ast.Starred):
            return self.kind(node.value)
        if isinstance(node, ast.Compare | ast.BinOp | ast.UnaryOp | ast.JoinedStr | ast.Lambda):
            return PLAIN
        # A collection is plain if everything in it is.
        children = [self.kind(c) for c in ast.iter_child_nodes(node) if isinstance(c, ast.expr)]
        return PLAIN if all(kind in (PLAIN, NONE) for kind in children) else CONTAINER

    def _attribute(self, node: ast.Attribute) -> Kind:
        if getattr(node.value, "id", "") == "self":
            return self.program.attributes.get((self.owner, node.attr), PLAIN)
        kind = self.kind(node.value)
        if node.attr.startswith("__"):
            return PLAIN
        if kind == MODULE:
            return ClassObject(node.attr)
        if isinstance(kind, Instance | ClassObject):
            return UNKNOWN
        if kind == PLAIN:
            return self.program.attribute_of_any_class(node.attr)
        return kind

    def _call(self, node: ast.Call) -> Kind:
        function = node.func
        if isinstance(function, ast.Name):
            if function.id in self.program.returns:
                return self.program.returns[function.id]
            if function.id in CONVERSIONS:
                return PLAIN
            kinds = [self.kind(argument) for argument in node.args]
            return PLAIN if all(kind in (PLAIN, NONE) for kind in kinds) else CONTAINER
        if not isinstance(function, ast.Attribute):
            return UNKNOWN
        owner = self.kind(function.value)
        if owner == MODULE:
            return Instance(function.attr)
        if isinstance(owner, Instance | ClassObject):
            return RETURNS.get((owner.name, function.attr), UNKNOWN)
        if owner == PLAIN:
            return self.program.returns.get(function.attr, PLAIN)
        return UNKNOWN


def annotated(annotation: ast.expr | None) -> Kind:
    """The kind that an annotation declares. `Any` or none at all can be anything."""
    if annotation is None:
        return UNKNOWN
    if isinstance(annotation, ast.Constant):
        return NONE if annotation.value is None else PLAIN
    if isinstance(annotation, ast.Name):
        if annotation.id == "Any":
            return UNKNOWN
        if annotation.id not in ALIASES:
            return PLAIN
        return MODULE if annotation.id == "Module" else Instance(annotation.id)
    if isinstance(annotation, ast.BinOp):
        return merge([annotated(annotation.left), annotated(annotation.right)])
    if isinstance(annotation, ast.Subscript):
        return _annotated_generic(annotation)
    return PLAIN


def _annotated_generic(annotation: ast.Subscript) -> Kind:
    items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    kinds = [annotated(item) for item in items]
    name = getattr(annotation.value, "id", "")
    if name == "ClassVar":
        return kinds[0]
    if name == "tuple" and ast.unparse(items[-1]) != "...":
        return Tuple(tuple(kinds))
    return PLAIN if all(kind in (PLAIN, NONE) for kind in kinds) else CONTAINER


def element(kind: Kind) -> Kind:
    """The kind of the elements of a collection."""
    if isinstance(kind, Tuple):
        return merge(list(kind.items))
    return kind if kind in (PLAIN, NONE) else UNKNOWN
