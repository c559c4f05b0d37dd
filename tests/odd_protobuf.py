"""Damage to the fields of a protobuf message, such as an ONNX file, whose lengths fit again."""

from __future__ import annotations

import random
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Larger fields are weights, which have no inner structure.
LARGEST_MESSAGE = 1 << 12
HUGE = (0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1, 2**62)
ODD_BYTES = (b"", b"\x00", b"\n\x1b[31m", b"\xff" * 9, b"a" * 5000, b"/etc/passwd", b"\xc0\x80")


@dataclass
class Field:
    """A field of a message: its number, its wire type, and its value or the fields in it."""

    number: int
    kind: int
    value: int | bytes | list[Field]


def damage_protobuf(rng: random.Random, data: bytes, count: int = 1) -> bytes:
    """Change so many fields of a message, anywhere in it."""
    fields = parse(data)
    assert fields is not None
    for _ in range(count):
        _change(rng, _any_message(rng, fields))
    return encode(fields)


def _any_message(rng: random.Random, fields: list[Field]) -> list[Field]:
    while True:
        inner = [field.value for field in fields if isinstance(field.value, list) and field.value]
        if not inner or rng.random() < 0.2:
            return fields
        fields = rng.choice(inner)


def _change(rng: random.Random, fields: list[Field]) -> None:
    place = rng.randrange(len(fields))
    field = fields[place]
    choice = rng.randrange(6)
    if choice == 0 and len(fields) > 1:
        del fields[place]
    elif choice == 1:
        fields.insert(rng.randrange(len(fields)), field)
    elif choice == 2:
        other = rng.randrange(len(fields))
        fields[place], fields[other] = fields[other], field
    elif choice == 3:
        field.number = rng.choice([1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 14, 20, 999])
    elif isinstance(field.value, int):
        field.value = rng.choice(HUGE)
        if field.kind != VARINT:
            field.value %= 1 << (64 if field.kind == FIXED64 else 32)
    else:
        field.value = rng.choice(ODD_BYTES)


def parse(data: bytes) -> list[Field] | None:
    """Return the fields of a message; None for bytes that are none."""
    fields = []
    position = 0
    try:
        while position < len(data):
            key, position = _varint(data, position)
            number, kind = key >> 3, key & 7
            if number == 0:
                return None
            value: int | bytes | list[Field]
            if kind == VARINT:
                value, position = _varint(data, position)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
                value = int.from_bytes(data[position : position + size], "little")
                position += size
            elif kind == BYTES:
                size, position = _varint(data, position)
                value = data[position : position + size]
                position += size
                inner = parse(value) if 0 < size <= LARGEST_MESSAGE else None
                value = value if inner is None else inner
            else:
                return None
            if position > len(data):
                return None
            fields.append(Field(number, kind, value))
    except IndexError:
        return None
    return fields


def encode(fields: list[Field]) -> bytes:
    """Write a message."""
    parts = []
    for field in fields:
        parts.append(_to_varint(field.number << 3 | field.kind))
        value = field.value
        if isinstance(value, int):
            if field.kind == VARINT:
                parts.append(_to_varint(value))
            else:
                parts.append(value.to_bytes(8 if field.kind == FIXED64 else 4, "little"))
            continue
        if isinstance(value, list):
            value = encode(value)
        parts.append(_to_varint(len(value)) + value)
    return b"".join(parts)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError("an integer is too long")


def _to_varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
