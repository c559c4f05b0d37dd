"""Reports words and phrases that have a standard technical term. `make lint` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What to look for, and what to write instead.
REPLACEMENTS = {
    r"told\b": "message, reported, compared",
    r"amid\b": "during, in the middle of",
    r"anew\b": "again, newly",
    r"aloud\b": "in the log",
    r"alike\b": "equal, the same, similar",
    r"whoever\b": "the caller, the user",
    r"nobody\b": "no one, or name the component",
    r"somebody\b": "a user",
    r"lest\b": "so that ... not",
    r"shall\b": "must, should",
    r"no number\b": "NaN, not finite",
    r"the wish\b": "the request",
    r"a few words\b": "a short description",
    r"goes on\b": "continues",
    r"mends?\b": "repairs, fixes",
    r"heat\b": "anomaly map",
    r"trunk\b": "backbone",
}
IGNORED = {".ci/check_words.py", "LICENSE"}


def main() -> int:
    pattern = re.compile(r"(?i)\b(?:" + "|".join(REPLACEMENTS) + ")")
    tracked = subprocess.check_output(
        ["git", "ls-files", "*.py", "*.md", "*.toml"], cwd=ROOT, text=True
    )
    findings = 0
    for name in tracked.split():
        if name in IGNORED or name.startswith("benchmarks/results/"):
            continue
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            for match in pattern.finditer(line):
                print(f"{name}:{number}: {match.group()!r}; use {_advice(match.group())}")
                findings += 1
    return int(findings > 0)


def _advice(word: str) -> str:
    for expression, replacement in REPLACEMENTS.items():
        if re.fullmatch(expression.rstrip(r"\b"), word, re.IGNORECASE):
            return replacement
    return "a standard term"


if __name__ == "__main__":
    sys.exit(main())
