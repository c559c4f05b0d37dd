"""The types of JSON content."""

from __future__ import annotations

import pytest

from flawline.runtime.json_shapes import Shape, misfit

SHAPE: Shape = {
    "name": str,
    "sizes": [int],
    "rate?": (float, None),
    "ready?": bool,
    "more?": {str: str},
}
GOOD = {"name": "a", "sizes": [1, 2]}


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        {**GOOD, "rate": 1, "ready": False, "more": {"a": "b"}, "unknown": []},
        {**GOOD, "rate": 0.5, "sizes": [], "more": {}},
        {**GOOD, "rate": None},
    ],
)
def test_content_of_the_shape_has_no_misfit(content: object) -> None:
    assert misfit(content, SHAPE) is None
    assert misfit([content, content], [SHAPE]) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "the content is [], not an object"),
        ({"sizes": []}, "name is missing"),
        ({**GOOD, "name": None}, "name is None, not of type str"),
        ({**GOOD, "sizes": 3}, "sizes is 3, not a list"),
        ({**GOOD, "sizes": [1, 2.0]}, "sizes[1] is 2.0, not of type int"),
        ({**GOOD, "sizes": [True]}, "sizes[0] is True, not of type int"),
        ({**GOOD, "rate": "x"}, "rate is 'x', not of type float"),
        ({**GOOD, "ready": 1}, "ready is 1, not true or false"),
        ({**GOOD, "more": {"a": "b", "c\n": 1}}, "more.c\\n is 1, not of type str"),
    ],
)
def test_a_misfit_is_named_in_one_line(content: object, expected: str) -> None:
    assert misfit(content, SHAPE) == expected


def test_the_misfit_of_a_row_has_its_place() -> None:
    assert misfit([GOOD, {**GOOD, "sizes": ["x"]}], [SHAPE]) == (
        "[1].sizes[0] is 'x', not of type int"
    )
    assert misfit(3, (None, str)) == "the content is 3, not null"
