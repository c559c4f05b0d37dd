"""Typed option records: one dataclass field gives an option its name, type, default and help text.

Cameras read their options from the query part of a URI, methods from command-line flags. Both
declare them as fields of a frozen dataclass:

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

BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class OptionError(FlawlineError):
    """An option is unknown or has a value of the wrong type."""


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Declare a dataclass field with a default value, a help text and further metadata."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


def parse_options(record: type[Record], values: Mapping[str, str]) -> Record:
    """Build a record from the text values of its fields.

    Raises OptionError for a name that the record does not have, with the list of its options, for a
    value that its annotation does not accept, with the meaning of the option, and for a value that
    the record itself refuses with ValueError, whose message says what is accepted.
    """
    known = set()
    for field in dataclasses.fields(typing.cast(Any, record)):
        known.add(field.name)
    parsed = {}
    for name, text in values.items():
        # Ignoring a misspelt option would run the camera with another setting than intended.
        if name not in known:
            raise OptionError(f"option {name!r} is unknown; {describe_options(record)}")
        try:
            parsed[name] = field_parser(record, name)(text)
        except ValueError as error:
            (meaning,) = _descriptions(record, name)
            raise OptionError(f"option {name}={text}: {error}; {meaning}") from error
    try:
        return record(**parsed)
    except ValueError as error:
        # The list of all options of a live camera would hide it.
        raise OptionError(str(error)) from error


def describe_options(record: type) -> str:
    """List the options of a record in one line, with type, default and help text.

    Its own options come before those that it shares with other records of the same base.
    """
    shared: set[str] = set()
    for base in record.__bases__:
        if dataclasses.is_dataclass(base):
            shared.update(field.name for field in dataclasses.fields(base))
    ordered = sorted(dataclasses.fields(record), key=lambda field: field.name in shared)
    if not ordered:
        return "there are no options"
    return "known options: " + "; ".join(_descriptions(record, *(field.name for field in ordered)))


def _descriptions(record: type, *names: str) -> list[str]:
    """Return name, type, default and help text of each of these options."""
    fields = {field.name: field for field in dataclasses.fields(record)}
    described = []
    for name in names:
        kind = _type_name(_annotation(record, name))
        meaning = fields[name].metadata["help"]
        described.append(f"{name} ({kind}, default {fields[name].default}): {meaning}")
    return described


def field_parser(record: type, name: str) -> Callable[[str], Any]:
    """Return the function that converts text to the annotated type of a field.

    It raises ValueError for text that the type does not accept. Supported annotations are bool,
    int, float, str, Literal of strings, and each of these or None.
    """
    annotation = _annotation(record, name)
    if typing.get_origin(annotation) is typing.Literal:
        return _choice_parser(typing.get_args(annotation))
    if annotation is bool:
        return _parse_bool
    if annotation is int:
        return _number_parser(int, "a whole number")
    if annotation is float:
        return _number_parser(float, "a number")
    if annotation is str:
        return str
    raise TypeError(f"{record.__name__}.{name} has the unsupported type {annotation}")


def _annotation(record: type, name: str) -> Any:
    """Return the annotation of a field without `| None`."""
    annotation = typing.get_type_hints(record)[name]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    # Text is never None, so the parser is that of the other type.
    members = list(typing.get_args(annotation))
    members.remove(type(None))
    (member,) = members
    return member


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(typing.get_args(annotation))
    return str(annotation.__name__)


def _number_parser(kind: Callable[[str], Any], description: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        # int() and float() have messages of their own, which name Python's types.
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"not {description}") from None

    return parse


def _parse_bool(text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise ValueError("not true or false")
    return BOOLEANS[text.lower()]


def _choice_parser(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"not one of {', '.join(choices)}")
        return text

    return parse
