"""Checks that `make lint` makes and ruff does not: sizes of files and functions, and plain English.

Prints one line per finding and exits with status 1 when there is any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "export", "runtime", "cameras", "benchmarks", "src")
MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 45

# Words and phrases that a newcomer cannot search for -> the standard term.
REPLACEMENTS = {
    "told": "message, reported or compared",
    "amid": "during",
    "anew": "again",
    "aloud": "in the log",
    "alike": "the same or similar",
    "whoever": "the caller or the user",
    "nobody": "no one, or the component",
    "somebody": "the user",
    "lest": "so that ... not",
    "shall": "must",
    "no number": "NaN or not finite",
    "the wish": "the request",
    "goes on": "continues",
    "mend": "repair",
    "mends": "repairs",
    "heat": "anomaly map",
    "trunk": "backbone",
}
WORDS = re.compile(r"\b(" + "|".join(REPLACEMENTS) + r")\b", re.IGNORECASE)
# A line with this comment may contain such a word, for example as a name in an old file format.
EXEMPTION = "# style: old name"
CHECKED = (*PACKAGES, "tests", "docs", "README.md", "pyproject.toml", "Makefile")
SUFFIXES = (".py", ".md", ".toml", ".html", "")
# Records of past runs.
NOT_CHECKED = ("benchmarks/results/",)


def main() -> int:
    findings = 0
    for name in _checked_files():
        for finding in _findings(name):
            print(f"{name}:{finding}")
            findings += 1
    return int(findings > 0)


def _checked_files() -> list[str]:
    names = []
    for entry in CHECKED:
        path = ROOT / entry
        candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
        for candidate in candidates:
            name = candidate.relative_to(ROOT).as_posix()
            if candidate.is_symlink() or not candidate.is_file():
                continue
            if "__pycache__" in name or ".egg-info" in name:
                continue
            if candidate.suffix in SUFFIXES and not name.startswith(NOT_CHECKED):
                names.append(name)
    return names


def _findings(name: str) -> Iterator[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    yield from _words(text)
    if name.endswith(".py") and name.split("/")[0] in PACKAGES:
        yield from _sizes(text)


def _words(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.endswith(EXEMPTION):
            continue
        for match in WORDS.finditer(line):
            word = match.group().lower()
            yield f"{number}: {word!r} has a standard term: {REPLACEMENTS[word]}"


def _sizes(text: str) -> Iterator[str]:
    lines = len(text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"1: the file has {lines} lines; the limit is {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                limit = f"the limit is {MAX_FUNCTION_LINES}"
                yield f"{node.lineno}: function {node.name} has {length} lines; {limit}"


if __name__ == "__main__":
    sys.exit(main())
