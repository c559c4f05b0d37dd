"""The inputs and outputs of an ONNX file, and whether it needs other files, without onnx.

An ONNX file is a protobuf message. Only the few fields are read that these questions need; weights
are passed over, so that a file of any size takes milliseconds.
https://protobuf.dev/programming-guides/encoding/, onnx.proto3 of ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flawline.runtime.strict_json import SchemaError, one_line

UINT8 = 2  # TensorProto.DataType
FLOAT = 1
DATA_LOCATION = 14  # field of TensorProto; 1 is EXTERNAL

# The wire types of protobuf.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# For each message: the fields that hold messages, among which tensors are found.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}

Field = tuple[int, int, int, int]


@dataclass(frozen=True)
class Value:
    """An input or output of a graph. A side of its `shape` is None if the graph leaves it open."""

    name: str
    element_type: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a graph, without its weights."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    has_external_data: bool


def read_signature(data: bytes) -> Signature:
    """Read the content of an ONNX file. Raises SchemaError for another content."""
    try:
        return _signature(data)
    except (ValueError, IndexError, RecursionError) as error:
        raise SchemaError(f"is not an ONNX file ({one_line(error)})") from error


def check_signature(
    signature: Signature,
    input_shape: tuple[int, ...],
    map_size: tuple[int, int],
    outputs: tuple[str, ...],
) -> None:
    """Compare a graph with the signature of a bundle. Raises SchemaError.

    `input_shape` is that of one image, and `map_size` the height and width of the map if `outputs`
    has one.
    """
    if signature.has_external_data:
        raise SchemaError("keeps weights in other files, which have no hash")
    shapes: dict[str, tuple[int | None, ...]] = {
        "image": (None, *input_shape),
        "score": (None,),
        "map": (None, *map_size),
    }
    expected = []
    for name in ("image", *outputs):
        expected.append((name, UINT8 if name == "image" else FLOAT))
    found = []
    for value in (*signature.inputs, *signature.outputs):
        found.append((value.name, value.element_type))
    if found != expected or len(signature.inputs) != 1:
        raise SchemaError(f"has the inputs and outputs {_names(signature)}, not those of a bundle")
    for value in (*signature.inputs, *signature.outputs):
        if not _fits(value.shape, shapes[value.name]):
            raise SchemaError(f"{value.name} has the shape {value.shape}, not that of the manifest")


def _names(signature: Signature) -> str:
    texts = []
    for value in (*signature.inputs, *signature.outputs):
        texts.append(f"{value.name} (type {value.element_type})")
    return one_line(", ".join(texts))


def _fits(shape: tuple[int | None, ...] | None, expected: tuple[int | None, ...]) -> bool:
    """Tell whether a shape may be the expected one; a side that is None may have any size."""
    if shape is None:
        return True
    if len(shape) != len(expected):
        return False
    for side, wanted in zip(shape, expected, strict=True):
        if side is not None and wanted is not None and side != wanted:
            return False
    return True


def _signature(data: bytes) -> Signature:
    for number, kind, start, end in _fields(data, 0, len(data)):
        if number == 7 and kind == _BYTES:
            initializers: set[str] = set()
            inputs: list[Value] = []
            outputs: list[Value] = []
            for field, field_kind, first, last in _fields(data, start, end):
                if field_kind != _BYTES:
                    continue
                if field == 5:
                    initializers.add(_text(data, first, last, 8))
                elif field == 11:
                    inputs.append(_value(data, first, last))
                elif field == 12:
                    outputs.append(_value(data, first, last))
            # Before IR 4, the weights of a graph were among its inputs.
            real = tuple(value for value in inputs if value.name not in initializers)
            return Signature(real, tuple(outputs), _has_external(data, 0, len(data), "model"))
    raise ValueError("there is no graph in it")


def _text(data: bytes, start: int, end: int, wanted: int) -> str:
    """Return a field of text of a message; empty if it has none."""
    for number, kind, first, last in _fields(data, start, end):
        if number == wanted and kind == _BYTES:
            return data[first:last].decode("utf-8", "replace")
    return ""


def _value(data: bytes, start: int, end: int) -> Value:
    """Read a ValueInfoProto, whose type is that of a tensor."""
    element_type = 0
    shape = None
    for tensor_type in _messages(data, start, end, 2, 1):
        for number, kind, first, last in _fields(data, *tensor_type):
            if number == 1 and kind == _VARINT:
                element_type = first
            if number == 2 and kind == _BYTES:
                shape = _shape(data, first, last)
    return Value(_text(data, start, end, 1), element_type, shape)


def _shape(data: bytes, start: int, end: int) -> tuple[int | None, ...]:
    sides: list[int | None] = []
    for dimension in _messages(data, start, end, 1):
        side = None
        for number, kind, value, _end in _fields(data, *dimension):
            if number == 1 and kind == _VARINT:
                side = value
        sides.append(side)
    return tuple(sides)


def _messages(data: bytes, start: int, end: int, *path: int) -> Iterator[tuple[int, int]]:
    """Give the start and end of each message that these field numbers lead to."""
    number, *rest = path
    for found, kind, first, last in _fields(data, start, end):
        if found != number or kind != _BYTES:
            continue
        if rest:
            yield from _messages(data, first, last, *rest)
        else:
            yield first, last


def _has_external(data: bytes, start: int, end: int, message: str) -> bool:
    """Tell whether a tensor anywhere in a message is stored in another file."""
    children = _CHILDREN[message]
    for number, kind, first, last in _fields(data, start, end):
        if message == "tensor" and number == DATA_LOCATION and kind == _VARINT and first == 1:
            return True
        inner = children.get(number)
        if inner and kind == _BYTES and _has_external(data, first, last, inner):
            return True
    return False


def _fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """Give the fields of a message: number, wire type, and the start and end of its content.

    The start of a varint is its value. Raises ValueError and IndexError for what is no message.
    """
    position = start
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, kind, value, position
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field has the wire type {kind}")
        if position + size > end:
            raise ValueError("a field is longer than its message")
        yield key >> 3, kind, position, position + size
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return an integer of 7 bits a byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer is too long")
