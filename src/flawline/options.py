"""Typed option records: one dataclass field gives an option its name, type, default and help text.

Cameras read their options from the query part of a URI, methods from command-line flags. Both declare
them as fields of a frozen dataclass:

    @dataclass(frozen=True)
    class Options:
        fps: float = option(25.0, "frames per second")
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flawline import FlawlineError

Record = TypeVar("Record")


class OptionError(FlawlineError):
    """An option is unknown or has a value of the wrong type."""


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Declare a dataclass field with a default value, a help text and further metadata."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


def parse_options(record: type[Record], values: Mapping[str, str]) -> Record:
    """Build a record from the text values of its fields.

    Raises OptionError for a name that the record does not have, for a value that its annotation does
    not accept, and for a value that the record itself refuses with ValueError.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, record))}
    parsed = {}
    for name, text in values.items():
        if name not in fields:
            raise OptionError(f"option {name!r} is unknown; {describe_options(record)}")
        try:
            parsed[name] = field_parser(record, name)(text)
        except ValueError as error:
            raise OptionError(
                f"option {name}={text}: {error}; {describe_options(record)}"
            ) from error
    try:
        return record(**parsed)
    except ValueError as error:
        raise OptionError(f"{error}; {describe_options(record)}") from error


def describe_options(record: type) -> str:
    """List the options of a record in one line, with type, default and help text."""
    lines = []
    for field in dataclasses.fields(record):
        type_name = _type_name(_annotation(record, field.name))
        lines.append(
            f"{field.name} ({type_name}, default {field.default}): {field.metadata['help']}"
        )
    if not lines:
        return "there are no options"
    return "known options: " + "; ".join(lines)


def field_parser(record: type, name: str) -> Callable[[str], Any]:
    """Return the function that converts text to the annotated type of a field.

    It raises ValueError for text that the type does not accept. Supported annotations are bool, int,
    float, str, Literal of strings, and each of these or None.
    """
    annotation = _annotation(record, name)
    if typing.get_origin(annotation) is typing.Literal:
        return _choice_parser(typing.get_args(annotation))
    if annotation is bool:
        return _parse_bool
    if annotation in (int, float, str):
        return _number_parser(annotation)
    raise TypeError(f"{record.__name__}.{name} has the unsupported type {annotation}")


def _annotation(record: type, name: str) -> Any:
    """Return the annotation of a field without `| None`."""
    annotation = typing.get_type_hints(record)[name]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        (annotation,) = members
    return annotation


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(str(value) for value in typing.get_args(annotation))
    return str(annotation.__name__)


def _number_parser(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    names = {int: "a whole number", float: "a number"}

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"not {names.get(kind, 'valid')}") from None  # type: ignore[call-overload]

    return parse


def _parse_bool(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in values:
        raise ValueError("not true or false")
    return values[text.lower()]


def _choice_parser(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"not one of {', '.join(choices)}")
        return text

    return parse
