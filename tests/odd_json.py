"""Damage to the JSON files of a bundle: values that are impossible, and text that is not JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from flawline.runtime.strict_json import checksum

ABSENT = object()
NOT_NUMBERS: tuple[Any, ...] = (None, True, "100", [], {}, ABSENT)
# JSON has no such numbers, but Python writes them; 10**400 and 1e299 are valid JSON.
TOO_LARGE = (1e299, -1e299, 10**400, float("inf"), float("nan"), "RAW:1e400")
NAMES_WITH_LINES = ("two\nlines", "a\x1b[31m", "x" * 100_000)


def _values(*entries: tuple[str, tuple[Any, ...]]) -> list[tuple[str, Any]]:
    pairs = []
    for key, values in entries:
        for value in values:
            pairs.append((key, value))
    return pairs


# A key with dots leads into an object.
CALIBRATION_VALUES = _values(
    ("schema", (0, 3, 99, -1, "2", 2.0, *NOT_NUMBERS)),
    ("threshold", (*NOT_NUMBERS, *TOO_LARGE, 1e30, -1e30, 1e6, "RAW:100,5", "RAW:0x64")),
    ("false_alarm_rate", (*NOT_NUMBERS, *TOO_LARGE, 0, 1, -0.01, 1.5, 100)),
    ("interval", (*NOT_NUMBERS, 0.5, [0.1], [0.2, 0.1], [-0.1, 0.1], [0.5, 1.5], [0, 1, 1])),
    ("interval", (["0", "1"], [None, 1], [False, True], [0, 1e299])),
    ("confidence", (*NOT_NUMBERS, *TOO_LARGE, 0, 1, -1, 95)),
    ("good_images", (*NOT_NUMBERS, *TOO_LARGE, 0, -200, 200.5, 10**30)),
    *((name, (1,)) for name in ("colour", *NAMES_WITH_LINES)),
)
_SPREAD = (*NOT_NUMBERS, *TOO_LARGE)
MANIFEST_VALUES = _values(
    ("schema", (0, 3, 99, -1, "2", 2.0, *NOT_NUMBERS)),
    ("method", (None, 1, True, [], {}, ABSENT)),
    ("backbone", (None, 1, True, [], {}, ABSENT)),
    ("score", (*NOT_NUMBERS, 1)),
    ("score.mean", (*_SPREAD, 1e30)),
    ("score.std", (*_SPREAD, -1)),
    ("score.min", (*_SPREAD, 91)),
    ("score.max", (*_SPREAD, 29)),
    ("map_peak.mean", (*_SPREAD, 1e30)),
    ("map_peak.skew", (1,)),
    ("score_tolerance", (*NOT_NUMBERS, *TOO_LARGE, 0, -1)),
    ("map_tolerance", (*NOT_NUMBERS, *TOO_LARGE, 0, -1)),
    ("fp32_islands", (None, True, "x", {}, [1], [""], [None], ABSENT)),
    ("outputs", (None, "map", [], {}, ["map"], ["map", "score"], ["score"] * 2, ABSENT)),
    ("provenance", (None, True, "x", [], {"data": 1}, {"data": None}, {"data": {}}, ABSENT)),
    ("geometry", (None, True, "x", [], {}, {"kind": "stretch"}, ABSENT)),
    ("geometry.kind", (None, 1, "zoom", "shorter-crop", [], ABSENT)),
    ("geometry.height", (None, True, "64", 0, -64, 63, 96, 64.0, 10**9, 10**400, ABSENT)),
    ("geometry.width", (None, True, "64", 0, -64, 65, 96, 64.5, 10**9, ABSENT)),
    ("geometry.shorter", (1, "64", 10**9, True)),
    ("trained_images", (None, True, "x", {}, [], [1], ["x"], ["0" * 15], ["b" * 16, "a" * 16])),
    ("trained_images", (["0" * 16] * 2, ["A" * 16], ["0" * 16, None])),
    ("excluded_images", (None, [], [1], ["x"], ["b" * 16, "a" * 16])),
    ("files", (None, True, "x", [], {}, ABSENT)),
    ("files.model.onnx", (None, 1, "", "0" * 64, "F" * 64, [], ABSENT)),
    ("files.golden.npz", (None, 1, "", "0" * 64, [], ABSENT)),
    ("files", ("FILE:../../etc/passwd", "FILE:/etc/passwd", "FILE:model.fp64.onnx")),
    ("files", ("FILE:model.fp16.onnx", "FILE:calibration.json", "FILE:two\nlines", "FILE:")),
    *((name, (1,)) for name in ("colour", *NAMES_WITH_LINES)),
)


class OddJson(Enum):
    """How the text of a JSON file is damaged."""

    CUT = "cut"
    FLIPPED = "flipped bit"
    DIGIT = "other digit"
    REMOVED = "removed"
    COMMA = "trailing comma"
    COMMENT = "a comment"
    QUOTES = "single quotes"
    TWICE = "repeated key"
    DEEP = "deep nesting"
    LIST = "a list"
    NUMBER = "a number"
    EMPTY = "emptied"
    ZEROS = "zeros"
    BYTES = "not text"
    CRLF = "CRLF"
    BOM = "BOM"
    UTF16 = "UTF-16"
    UTF32 = "UTF-32"
    LATIN1 = "Latin-1"
    NUL = "a zero byte"
    LARGE = "large file"

    @property
    def is_random(self) -> bool:
        """True for damage that may leave another valid value."""
        return self in (OddJson.FLIPPED, OddJson.DIGIT, OddJson.REMOVED, OddJson.CUT)


def damage_json(rng: random.Random, data: bytes, damage: OddJson) -> bytes:
    """Return a damaged JSON file."""
    start = rng.randrange(1, len(data) - 2)
    text = data.decode()
    digits = [i for i, character in enumerate(text) if character.isdigit()]
    digit = rng.choice(digits)
    key = rng.choice(list(json.loads(data)))
    value = json.dumps(json.loads(data)[key])
    first = text.index("{") + 1
    flipped = bytes([data[start] ^ 1 << rng.randrange(8)])
    changed: dict[OddJson, Callable[[], str | bytes]] = {
        OddJson.CUT: lambda: data[:start],
        OddJson.FLIPPED: lambda: data[:start] + flipped + data[start + 1 :],
        OddJson.DIGIT: lambda: text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :],
        OddJson.REMOVED: lambda: data[:start] + data[start + 1 :],
        OddJson.COMMA: lambda: text.rstrip()[:-1].rstrip() + ",\n}\n",
        OddJson.COMMENT: lambda: f"// threshold\n{text}",
        OddJson.QUOTES: lambda: text.replace('"', "'"),
        OddJson.TWICE: lambda: f'{text[:first]}"{key}": {value},{text[first:]}',
        OddJson.DEEP: lambda: f'{text[:first]}"x": {"[" * 100_000}{"]" * 100_000},{text[first:]}',
        OddJson.LIST: lambda: f"[{text}]",
        OddJson.NUMBER: lambda: "100",
        OddJson.EMPTY: lambda: "",
        OddJson.ZEROS: lambda: bytes(len(data)),
        OddJson.BYTES: lambda: rng.randbytes(len(data)),
        OddJson.CRLF: lambda: text.replace("\n", "\r\n"),
        OddJson.BOM: lambda: b"\xef\xbb\xbf" + data,
        OddJson.UTF16: lambda: text.encode("utf-16"),
        OddJson.UTF32: lambda: text.encode("utf-32"),
        OddJson.LATIN1: lambda: data.replace(b'"', b'"\xe9', 1),
        OddJson.NUL: lambda: data[:start] + b"\x00" + data[start:],
        OddJson.LARGE: lambda: text + " " * (1 << 24),
    }
    result = changed[damage]()
    return result.encode() if isinstance(result, str) else result


def set_value(path: Path, key: str, value: Any) -> bool:
    """Set a value of a JSON file, and its checksum if it has one; return whether it has."""
    content = json.loads(path.read_bytes())
    has_checksum = content.pop("checksum", None) is not None
    target = content
    parts = [key]
    if key.split(".")[0] in content and key not in content:
        parts = key.split(".", 1)
        target = content[parts[0]]
    raw = None
    if isinstance(value, str) and value.startswith("FILE:"):
        content["files"][value[5:]] = "0" * 64
    elif value is ABSENT:
        target.pop(parts[-1], None)
    elif isinstance(value, str) and value.startswith("RAW:"):
        raw = value[4:]
        target[parts[-1]] = "RAW"
    else:
        target[parts[-1]] = value
    if has_checksum:
        content["checksum"] = checksum(content)
    text = json.dumps(content, indent=2)
    if raw is not None:
        text = text.replace('"RAW"', raw)
    path.write_text(text)
    return has_checksum


# Values of every type, of which each is impossible or odd somewhere.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "100", "a\nb", "\ud800", "x" * 10_000, [], {}, [[[[]]]]),
    *(0, -1, 1, 2, 10**3, 2**31, 2**63, 10**400, -0.0, 0.5, 1e-320, 1e308, -1e308),
    *(float("nan"), float("inf"), [0] * 1000, {"a": {"b": {}}}, ["a", 1, None]),
)


def rewrite_json(rng: random.Random, path: Path) -> str:
    """Change one value anywhere in a JSON file as a program would, with its checksum; name it."""
    content = json.loads(path.read_bytes())
    has_checksum = content.pop("checksum", None) is not None
    target: Any = content
    names = []
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = rng.choice(keys)
        names.append(str(key))
        inner = target[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            break
        target = inner
    choice = rng.randrange(8)
    if choice == 0:
        del target[key]
    elif choice == 1 and isinstance(target, dict):
        target[rng.choice(["more", "__class__", "", "a\nb"])] = inner
    elif choice == 2 and isinstance(target, list):
        target.insert(key, inner)
    elif choice == 3 and isinstance(inner, (int, float)):
        target[key] = inner * rng.choice([-1, 0, 2, 1000, 1e-6, 10**30])
    else:
        target[key] = rng.choice(ODD_VALUES)
    if has_checksum:
        content["checksum"] = checksum(content)
    path.write_text(json.dumps(content, indent=2))
    return ".".join(names)
