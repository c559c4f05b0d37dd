"""Damage to the JSON files of a bundle: values that are impossible, and text that is not JSON."""

from __future__ import annotations

import json
import random
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
    LARGE = "large file"

    @property
    def is_random(self) -> bool:
        """True for damage that may leave another valid value."""
        return self in (OddJson.FLIPPED, OddJson.DIGIT, OddJson.REMOVED, OddJson.CUT)


# The same content in another encoding is read.
HARMLESS_JSON = (OddJson.CRLF, OddJson.BOM, OddJson.UTF16)


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
    changed: dict[OddJson, Any] = {
        OddJson.CUT: data[:start],
        OddJson.FLIPPED: data[:start] + flipped + data[start + 1 :],
        OddJson.DIGIT: text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :],
        OddJson.REMOVED: data[:start] + data[start + 1 :],
        OddJson.COMMA: text.rstrip()[:-1].rstrip() + ",\n}\n",
        OddJson.COMMENT: f"// threshold\n{text}",
        OddJson.QUOTES: text.replace('"', "'"),
        OddJson.TWICE: f'{text[:first]}"{key}": {value},{text[first:]}',
        OddJson.DEEP: f'{text[:first]}"x": {"[" * 100_000}{"]" * 100_000},{text[first:]}',
        OddJson.LIST: f"[{text}]",
        OddJson.NUMBER: "100",
        OddJson.EMPTY: "",
        OddJson.ZEROS: bytes(len(data)),
        OddJson.BYTES: rng.randbytes(len(data)),
        OddJson.CRLF: text.replace("\n", "\r\n"),
        OddJson.BOM: b"\xef\xbb\xbf" + data,
        OddJson.UTF16: text.encode("utf-16"),
        OddJson.LARGE: text + " " * (1 << 24),
    }
    result = changed[damage]
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
