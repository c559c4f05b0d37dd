"""Checks whether JSON content has the types that a program expects of it.

A shape is one of these:

    str, int, float   a value of this type; an integer is also a float, a boolean is neither
    bool, None        true or false; null
    (A, B)            a value of one of the shapes
    [A]               a list whose items have the shape
    {"key": A}        an object with at least these keys; one that ends in ? may be missing
    {str: A}          an object whose values have the shape, under any keys

The dataclasses and rows that are built of the content then need no checks of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flawline.runtime.strict_json import has_type, one_line

Shape = Any


def misfit(content: object, shape: Shape, name: str = "") -> str | None:
    """Say which part of a content does not have a shape, and why; None if all of it has.

    The text is one line, such as "seeds[1] is 'x', not of type int". `name` is that of the content,
    empty for the outermost object or list of a file.
    """
    if isinstance(shape, tuple):
        return _misfit_of_all(content, shape, name)
    if isinstance(shape, list):
        if not isinstance(content, list):
            return _wrong(name, content, "a list")
        parts = {f"{name}[{index}]": (value, shape[0]) for index, value in enumerate(content)}
        return _first_misfit(parts)
    if isinstance(shape, Mapping):
        return _misfit_of_object(content, shape, name)
    if shape is None:
        return None if content is None else _wrong(name, content, "null")
    if shape is bool:
        return None if isinstance(content, bool) else _wrong(name, content, "true or false")
    return None if has_type(content, shape) else _wrong(name, content, f"of type {shape.__name__}")


def _misfit_of_all(content: object, shapes: tuple[Shape, ...], name: str) -> str | None:
    """Return the misfit of the first shape if none of them fits."""
    misfits = [misfit(content, shape, name) for shape in shapes]
    return None if None in misfits else misfits[0]


def _misfit_of_object(content: object, shape: Mapping[Any, Shape], name: str) -> str | None:
    if not isinstance(content, dict):
        return _wrong(name, content, "an object")
    prefix = f"{name}." if name else ""
    parts: dict[str, tuple[object, Shape]] = {}
    for key, inner in shape.items():
        if key is str:
            parts |= {f"{prefix}{each}": (value, inner) for each, value in content.items()}
            continue
        plain = key.removesuffix("?")
        if plain in content:
            parts[f"{prefix}{plain}"] = (content[plain], inner)
        elif plain == key:
            return f"{prefix}{key} is missing"
    return _first_misfit(parts)


def _first_misfit(parts: Mapping[str, tuple[object, Shape]]) -> str | None:
    for name, (value, shape) in parts.items():
        reason = misfit(value, shape, name)
        if reason is not None:
            return reason
    return None


def _wrong(name: str, content: object, wanted: str) -> str:
    return f"{one_line(name or 'the content')} is {one_line(repr(content))}, not {wanted}"
