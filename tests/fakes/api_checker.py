"""Checks that every member of TensorRT that a program uses exists in the version it is used in.

The program is followed for all versions at once: behind `hasattr(Class, "member")` are only those
that have the member. What is reached in a version must exist there.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from fakes.api_kinds import UNKNOWN, ClassObject, Instance, Program, Scope
from fakes.tensorrt_api import VERSIONS, versions_with

Versions = frozenset[str]
ALL = Versions(VERSIONS)
NONE = Versions()


class Checker:
    """`wrong` lists what is wrong with `trees`; `used` are the members, each with its class.

    A private function is called in the versions of its call sites, another one in all.
    """

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self.wrong: set[str] = set()
        self.used: set[tuple[str, str]] = set()
        self._program = Program(list(trees.values()))
        self._file = ""
        self._scope: Scope
        self._called: dict[str, Versions] = {}
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    private = node.name.startswith("_") and not node.name.startswith("__")
                    self._called[node.name] = NONE if private else ALL
        before: dict[str, Versions] | None = None
        while before != self._called:
            before = dict(self._called)
            self.wrong = set()
            for self._file, tree in trees.items():
                self._scope = self._program.scopes[tree]
                self._block(tree.body, ALL)
        for name, versions in self._called.items():
            if not versions:
                self.wrong.add(f"{name} is never called")

    def guard(self, node: ast.AST) -> tuple[str, str] | None:
        """Class and member of `hasattr(Class, "member")`; None for everything else."""
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "hasattr":
            return None
        owner, member = node.args
        kind = self._scope.kind(owner)
        if not isinstance(kind, Instance | ClassObject) or not isinstance(member, ast.Constant):
            return None
        return kind.name, str(member.value)

    def _block(self, statements: list[ast.stmt], versions: Versions) -> Versions:
        """Check statements; the versions in which the code after them is reached."""
        for statement in statements:
            versions = self._statement(statement, versions)
        return versions

    def _statement(self, node: ast.stmt, versions: Versions) -> Versions:
        if isinstance(node, ast.FunctionDef):
            for child in (*node.decorator_list, node.args):
                self._expression(child, versions)
            self._inner_block(node, self._called[node.name] & versions)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                self._expression(base, versions)
            self._inner_block(node, versions)
        elif isinstance(node, ast.If):
            holds, fails = self._condition(node.test, versions)
            return self._block(node.body, holds) | self._block(node.orelse, fails)
        elif isinstance(node, ast.Return | ast.Raise):
            self._expression(node, versions)
            return NONE
        else:
            return self._other_statement(node, versions)
        return versions

    def _inner_block(self, node: ast.FunctionDef | ast.ClassDef, versions: Versions) -> None:
        outer = self._scope
        self._scope = self._program.scopes[node]
        self._block(node.body, versions)
        self._scope = outer

    def _other_statement(self, node: ast.stmt, versions: Versions) -> Versions:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr | ast.withitem):
                self._expression(child, versions)
        blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
        blocks += [handler.body for handler in getattr(node, "handlers", [])]
        reached = NONE
        for block in blocks:
            reached |= self._block(block, versions)
        return reached if isinstance(node, ast.Try) else versions

    def _condition(self, test: ast.expr, versions: Versions) -> tuple[Versions, Versions]:
        """The versions in which `test` may hold, and those in which it may fail."""
        guard = self.guard(test)
        if guard is not None:
            having = versions_with(*guard)
            return versions & having, versions - having
        if isinstance(test, ast.Constant):
            return (versions, NONE) if test.value else (NONE, versions)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            holds, fails = self._condition(test.operand, versions)
            return fails, holds
        if isinstance(test, ast.BoolOp):
            return self._bool_condition(test, versions)
        self._expression(test, versions)
        return versions, versions

    def _bool_condition(self, test: ast.BoolOp, versions: Versions) -> tuple[Versions, Versions]:
        is_and = isinstance(test.op, ast.And)
        # The versions in which an earlier operand decides, so that the later ones are not reached.
        decided = NONE
        for value in test.values:
            holds, fails = self._condition(value, versions)
            versions = holds if is_and else fails
            decided |= fails if is_and else holds
        return (versions, decided) if is_and else (decided, versions)

    def _expression(self, node: ast.AST, versions: Versions) -> None:
        if self.guard(node) is not None:
            return
        if isinstance(node, ast.IfExp):
            holds, fails = self._condition(node.test, versions)
            self._expression(node.body, holds)
            self._expression(node.orelse, fails)
            return
        if isinstance(node, ast.BoolOp):
            self._condition(node, versions)
            return
        # A function may also be passed on to be called: every mention counts.
        name = getattr(node, "id", getattr(node, "attr", ""))
        if name in self._called:
            self._called[name] |= versions
        if isinstance(node, ast.Attribute):
            self._member(node, versions)
        for child in ast.iter_child_nodes(node):
            self._expression(child, versions)

    def _member(self, node: ast.Attribute, versions: Versions) -> None:
        if node.attr.startswith("__"):
            return
        where = f"{self._file}:{node.lineno}: {ast.unparse(node)}"
        kind = self._scope.kind(node.value)
        if kind == UNKNOWN:
            self.wrong.add(f"{where} is on an object whose class is unknown; annotate it")
        if isinstance(kind, Instance | ClassObject):
            self.used.add((kind.name, node.attr))
            lacking = sorted(versions - versions_with(kind.name, node.attr))
            if lacking:
                self.wrong.add(f"{where} is not in {', '.join(lacking)}")
