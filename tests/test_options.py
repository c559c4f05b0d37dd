"""Option records: types, defaults and messages from one dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from flawline.options import (
    OptionError,
    describe_options,
    field_parser,
    option,
    parse_options,
)


@dataclass(frozen=True)
class Options:
    fps: float = option(25.0, "frames per second")
    width: int | None = option(None, "pixels per row")
    trigger: Literal["free", "line1"] = option("free", "what starts a frame")
    loop: bool = option(False, "start again at the end")
    name: str = option("", "label", flag=True)

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ValueError("fps must be above 0")


@dataclass(frozen=True)
class Empty:
    pass


def test_values_have_the_annotated_types() -> None:
    text = {"fps": "30", "width": "640", "trigger": "line1", "loop": "Yes", "name": "7"}
    assert parse_options(Options, text) == Options(30.0, 640, "line1", True, "7")
    assert parse_options(Options, {}) == Options()
    assert parse_options(Empty, {}) == Empty()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": "red"}, "option 'colour' is unknown; known options: fps"),
        (
            {"fps": "fast"},
            "option fps=fast: not a number; fps (float, default 25.0): frames per second",
        ),
        ({"width": "6.5"}, "option width=6.5: not a whole number"),
        ({"trigger": "line9"}, "option trigger=line9: not one of free, line1"),
        ({"loop": "maybe"}, "option loop=maybe: not true or false"),
        ({"fps": "-1"}, "fps must be above 0"),
    ],
)
def test_wrong_values_are_errors_that_say_what_is_accepted(
    values: dict[str, str], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(Options, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    # A list of all options would hide what is wrong with the value of one.
    assert ("known options: " in str(caught.value)) == ("is unknown" in message)


def test_options_are_described_with_type_default_and_meaning() -> None:
    description = describe_options(Options)
    assert "fps (float, default 25.0): frames per second" in description
    assert "width (int, default None): pixels per row" in description
    assert "trigger (free or line1, default free): what starts a frame" in description
    assert describe_options(Empty) == "there are no options"


def test_an_annotation_that_cannot_be_parsed_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Odd:
        sizes: list = option(None, "sizes")  # type: ignore[type-arg]  # noqa: RUF009

    with pytest.raises(TypeError, match="unsupported type"):
        field_parser(Odd, "sizes")
