"""How a user draws the inspected area: polygons, files of polygons, and mask images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flawline import FlawlineError
from flawline.runtime.inspected_area import AreaError
from flawline.train.data.area import AreaDrawing, Shape, drawing_of, parse_shape
from flawline.train.frame_arguments import add_frame_arguments, area_of, tiles_of

HEIGHT, WIDTH = 40, 60


def write_json(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def write_mask(path: Path, rows: slice, columns: slice) -> str:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[rows, columns] = 255
    cv2.imwrite(str(path), mask)
    return str(path)


def pixels(shape: Shape) -> set[tuple[int, int]]:
    rows, columns = np.nonzero(shape.mask(HEIGHT, WIDTH))
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


def rectangle(rows: range, columns: range) -> set[tuple[int, int]]:
    return {(row, column) for row in rows for column in columns}


def test_a_polygon_has_the_pixels_between_its_corners_and_these() -> None:
    shape = parse_shape("10,5 19,5 19,8 10,8")
    assert pixels(shape) == rectangle(range(5, 9), range(10, 20))


def test_a_corner_may_be_on_the_edge_of_the_image() -> None:
    assert len(pixels(parse_shape(f"0,0 {WIDTH},0 {WIDTH},{HEIGHT} 0,{HEIGHT}"))) == HEIGHT * WIDTH


def test_a_file_has_several_polygons_which_may_overlap(tmp_path: Path) -> None:
    first = [[0, 0], [9, 0], [9, 9], [0, 9]]
    second = [[5, 5], [14, 5], [14, 14], [5, 14]]
    content = {"width": WIDTH, "height": HEIGHT, "polygons": [first, second]}
    shape = parse_shape(write_json(tmp_path / "a b.json", content))
    expected = rectangle(range(10), range(10)) | rectangle(range(5, 15), range(5, 15))
    assert pixels(shape) == expected


def test_a_mask_image_has_its_white_pixels(tmp_path: Path) -> None:
    shape = parse_shape(write_mask(tmp_path / "m.png", slice(3, 9), slice(10, 30)))
    assert pixels(shape) == rectangle(range(3, 9), range(10, 30))


def test_what_is_excluded_is_taken_out_of_what_is_included(tmp_path: Path) -> None:
    left = parse_shape(f"0,0 29,0 29,{HEIGHT} 0,{HEIGHT}")
    hole = parse_shape(write_mask(tmp_path / "m.png", slice(3, 9), slice(10, 35)))
    area = AreaDrawing((left,), (hole,)).area(HEIGHT, WIDTH)
    assert area.mask.sum() == 30 * HEIGHT - 6 * 20
    # Without a shape to include, all is inspected.
    area = AreaDrawing((), (hole,)).area(HEIGHT, WIDTH)
    assert area.mask.sum() == HEIGHT * WIDTH - 6 * 25
    assert drawing_of([], []) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10,5 19,5", r'a polygon has at least 3 corners; write "0,0 640,0 640,400"'),
        ("10,5 19,5 19", "'19' is no corner x,y; write"),
        ("10,5 19,5 -1,5", "'-1,5' is no corner"),
        ("10,5 19,5 1.5,5", "'1.5,5' is no corner"),
        ("absent.json", "absent.json: cannot be read .*; check the path"),
        ("absent.png", "absent.png"),
    ],
)
def test_what_is_no_shape_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(FlawlineError, match=message):
        parse_shape(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"polygons": []}, "there is no polygon; write"),
        ({"polygons": [[[0, 0], [1, 1]]]}, "a polygon is not a list of at least 3 corners; write"),
        ({"polygons": [[[0, 0], [1, 1], [2]]]}, "a corner is not a pair"),
        ({"polygons": [[[0, 0], [1, 1], [2, 2.5]]]}, "a coordinate is not a whole number"),
        ({"polygons": [[[0, 0], [1, 1], [2, -2]]]}, "a coordinate is not a whole number"),
        ({"polygons": [[[0, 0], [9, 0], [9, 9]]], "width": 60}, "height is missing"),
        ({"polygon": [[0, 0], [9, 0], [9, 9]]}, "polygons is missing"),
        ([[0, 0], [9, 0], [9, 9]], "is not a JSON object; write"),
    ],
)
def test_a_file_of_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(AreaError, match=message):
        parse_shape(write_json(tmp_path / "area.json", content))


def test_a_shape_of_another_frame_is_refused(tmp_path: Path) -> None:
    mask = parse_shape(write_mask(tmp_path / "m.png", slice(3, 9), slice(10, 30)))
    content = {"width": 60, "height": 40, "polygons": [[[0, 0], [9, 0], [9, 9]]]}
    file = parse_shape(write_json(tmp_path / "area.json", content))
    for shape in (mask, file):
        message = "is for frames of 60x40, and the images are 60x41; draw it on one of the images"
        with pytest.raises(AreaError, match=message):
            shape.mask(41, 60)
    with pytest.raises(AreaError, match="the corner 61,3 is outside of the images, which are 60x"):
        parse_shape("0,0 61,3 0,9").mask(HEIGHT, WIDTH)


def test_an_empty_area_is_refused(tmp_path: Path) -> None:
    whole = parse_shape(f"0,0 {WIDTH},0 {WIDTH},{HEIGHT} 0,{HEIGHT}")
    with pytest.raises(AreaError, match="leave no pixel to inspect"):
        AreaDrawing((), (whole,)).area(HEIGHT, WIDTH)
    with pytest.raises(AreaError, match="has no pixel above 0; paint the area white"):
        parse_shape(write_mask(tmp_path / "m.png", slice(0, 0), slice(0, 0)))


def test_the_flags_may_be_repeated_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    from flawline.runtime.command_parser import Parser

    parser = Parser(prog="flawline train")
    add_frame_arguments(parser)
    args = parser.parse_args([])
    assert (tiles_of(args), area_of(args)) == (None, None)
    words = ["--include", "0,0 9,0 9,9", "--include", "20,0 29,0 29,9", "--exclude", "1,1 3,1 3,3"]
    drawing = area_of(parser.parse_args(words))
    assert drawing is not None
    assert (len(drawing.include), len(drawing.exclude)) == (2, 1)
    with pytest.raises(SystemExit):
        parser.parse_args(["--include", "0,0 9,0"])
    assert "at least 3 corners" in capsys.readouterr().err
