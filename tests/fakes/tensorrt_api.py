"""The public members of seven TensorRT versions, as tests/golden/tensorrt_api.json lists them.

A class is given by its name, and the module itself by the name "".
"""

from __future__ import annotations

import json
from pathlib import Path

_LISTING = json.loads((Path(__file__).parents[1] / "golden" / "tensorrt_api.json").read_text())
VERSIONS: tuple[str, ...] = tuple(_LISTING["versions"])
CLASSES = frozenset(_LISTING["classes"])
# The versions of TensorRT without those of TensorRT-RTX.
CLASSIC = tuple(version for version in VERSIONS if not version.startswith("rtx"))


def members(owner: str, version: str) -> set[str]:
    """The members that a class has in this version."""
    position = VERSIONS.index(version)
    result: set[str] = set()
    for pattern, names in _LISTING["classes"].get(owner, {}).items():
        if pattern[position] == "1":
            result.update(names)
    return result


def versions_with(owner: str, member: str) -> frozenset[str]:
    """The versions in which a class has this member."""
    for pattern, names in _LISTING["classes"].get(owner, {}).items():
        if member in names:
            pairs = zip(VERSIONS, pattern, strict=True)
            return frozenset(version for version, bit in pairs if bit == "1")
    return frozenset()
