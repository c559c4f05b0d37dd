"""station.json: its types, its JSON Schema, and a line with the remedy for every mistake."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flawline.runtime.station.settings.places import line_of, span_of
from flawline.runtime.station.settings.schema import (
    SCHEMA_FILE,
    CameraEntry,
    CameraThresholds,
    EngineEntry,
    Recipe,
    RejectAfter,
    StationFile,
    json_schema,
)
from flawline.runtime.station.settings.station_file import StationError, read_station

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [{"name": "bottle", "bundle": "bundles/bottle"}]
LEAST = {"recipe": "bottle", "recipes": RECIPES, "cameras": [{"uri": "usb://0"}]}
TWO = [{"uri": "usb://0", "name": "left"}, {"uri": "usb://1"}]


def write(path: Path, **changes: Any) -> Path:
    """Write a station file with one value a line."""
    path.write_text(json.dumps({**LEAST, **changes}, indent=1))
    return path


def thresholds(**changes: Any) -> list[dict[str, Any]]:
    """Recipes with thresholds of camera 1."""
    return [{**RECIPES[0], "thresholds": [{"camera": "1", "threshold": 3, **changes}]}]


def test_the_least_station_has_a_recipe_and_a_camera(tmp_path: Path) -> None:
    station = read_station(write(tmp_path / "station.json"))
    assert station.recipe.name == "bottle"
    assert station.bundle_of(station.recipe) == tmp_path / "bundles" / "bottle"
    assert station.content.outputs == ("jsonl",)
    assert station.audit_log == tmp_path / "audit.jsonl"
    assert station.camera_names() == ["1"]


def test_cameras_are_called_by_their_names_or_numbers(tmp_path: Path) -> None:
    assert read_station(write(tmp_path / "s", cameras=TWO)).camera_names() == ["left", "2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camras": []}, "the station has no key 'camras' (did you mean cameras?); known: recipe"),
        ({"cameras": [{"uri": "x", "nam": 1}]}, "cameras[0] has no key 'nam' (did you mean name?)"),
        ({"cameras": [{"name": "left"}]}, "cameras[0] lacks the key 'uri'; add it"),
        ({"cameras": []}, "cameras: expected `array` of length >= 1; see "),
        ({"cameras": [{"uri": "x", "name": 3}]}, "cameras[0].name: expected `text | null`"),
        ({"cameras": [{"uri": "x", "name": "a b"}]}, "cameras[0].name: is not 1 to 24 letters"),
        ({"cameras": [TWO[0], TWO[0]]}, "two cameras have the name 'left'"),
        ({"cameras": [{"uri": "x"}, {"uri": "y", "name": "1"}]}, "two cameras have the name '1'"),
        ({"recipes": RECIPES + RECIPES}, "two recipes have the name 'bottle'"),
        ({"recipe": "botle"}, "no recipe 'botle' (did you mean bottle?); known: bottle"),
        ({"engine": {"nme": "auto"}}, "engine has no key 'nme' (did you mean name?)"),
        ({"engine": {"name": "openvno"}}, "'openvno' is unknown (did you mean openvino?)"),
        ({"engine": {"precision": "fp15"}}, "'fp15' is unknown (did you mean fp16?)"),
        ({"engine": {"threads": True}}, "engine.threads: expected `whole number | null`"),
        ({"engine": {"threads": 1.5}}, "engine.threads: expected `whole number | null`"),
        ({"engine": 3}, "engine: expected `object`, got `whole number`"),
        ({"batch": 10**400}, "batch: expected `whole number` <= 1000000"),
        ({"recipes": thresholds(threshold="3")}, "thresholds[0].threshold: expected `number`"),
        ({"recipes": thresholds(threshold=10**400)}, "thresholds[0].threshold: number out of"),
        ({"recipes": thresholds(x=1)}, "recipes[0].thresholds[0] has no key 'x'; known: camera"),
        ({"recipes": thresholds(camera="left")}, "there is no camera 'left'; known: 1"),
        ({"recipes": thresholds(review_threshold=4)}, "review threshold 4 is above"),
        ({"recipes": [{**RECIPES[0], "mm_per_pixel": 0}]}, "mm_per_pixel: expected `number` > 0"),
        ({"reject_after": {"frames": 3, "of": 2}}, "frames is 3, more than the 2"),
        ({"batch_wait_ms": 3}, "batch_wait_ms is for several cameras; leave it out"),
        ({"cameras": [{"uri": "x", "name": "left\n"}]}, "cameras[0].name: is not 1 to 24 letters"),
        ({"cameras": [{"uri": "a\0b"}]}, "cameras[0].uri: has a line break or control character"),
        ({"cameras": [{"uri": "a\n"}]}, "cameras[0].uri: has a line break or control character"),
        ({"audit": "a\0"}, "audit: has a line break or control character"),
        ({"same_part": True}, "same_part is for several cameras"),
        ({"cameras": TWO, "part_wait_s": 3}, "part_wait_s needs same_part"),
        ({"cameras": TWO, "engine": {"streams": 2}}, "streams is for one folder or video"),
        (
            {"cameras": TWO, "same_part": True, "reject_after": {"frames": 2, "of": 3}},
            "reject_after is for continuous streams",
        ),
        ({"outputs": "jsonl"}, "outputs: expected `array`, got `text`"),
        ({"a\nb": 1}, "the station has no key 'a\\nb'"),
    ],
)
def test_a_mistake_is_one_line_with_the_line_of_the_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "station.json", **changes)
    with pytest.raises(StationError) as raised:
        read_station(path)
    text = str(raised.value)
    assert message in text
    assert "\n" not in text
    place, _, _ = text.partition(": ")
    assert place.startswith(f"{path}, line ")
    line = path.read_text().splitlines()[int(place.split("line ")[1]) - 1]
    # The line is that of the value, or of the object that lacks one.
    assert any(f'"{key}"' in line for key in keys_of(changes)) or line.strip() == "{"


def keys_of(content: Any) -> set[str]:
    """All keys in a JSON value, and in the least station beside it."""
    keys = set(LEAST)
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            keys.update(json.dumps(key)[1:-1] for key in value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return keys


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"recipe": }', "is not valid JSON (line 1, column 12)"),
        (b'{"recipe": "a",\n"recipe": "b"}', "the key 'recipe' is there 2 times"),
        (b"[]", "is not a JSON object"),
        (b'{"recipe": "\\ud800"}', "has half of a surrogate pair"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8 text"),
        (b'{"batch": NaN}', "NaN is not a number"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "station.json"
    path.write_bytes(data)
    with pytest.raises(StationError) as raised:
        read_station(path)
    assert message in str(raised.value)
    assert str(raised.value).endswith("correct it, or compare it with a copy")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe"):
        with pytest.raises(StationError, match="cannot be read"):
            read_station(path)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = write(tmp_path / "station.json", recipe="cap")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(StationError, match="line 2: there is no recipe 'cap'"):
        read_station(path)


def test_the_json_schema_in_the_package_is_that_of_the_types() -> None:
    assert SCHEMA_FILE.read_bytes() == json_schema(), "run: make docs"
    schema = json.loads(json_schema())
    properties = schema["$defs"]["StationFile"]["properties"]
    assert set(properties) == {field.encode_name for field in msgspec.structs.fields(StationFile)}
    assert schema["$defs"]["StationFile"]["additionalProperties"] is False


def test_the_example_of_the_page_is_accepted_and_every_key_is_described(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "station.md").read_text(encoding="utf-8")
    example = page.split("```json\n")[1].split("```")[0]
    path = tmp_path / "station.json"
    path.write_text(example)
    assert read_station(path).recipe.name == "bottle"
    tables = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    for kind in (StationFile, CameraEntry, EngineEntry, Recipe, CameraThresholds):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.encode_name}`" in tables, field.encode_name
    for field in msgspec.structs.fields(RejectAfter):
        assert f'"{field.encode_name}"' in page


def test_places_in_a_text_are_found() -> None:
    text = ' {\n "a\\"b" : [ 1,\n {"c": "]}"},\n [ ] ], "c":\t{\n"d" : null }\n}\n'
    content = json.loads(text)
    assert line_of(text, ()) == 1
    assert line_of(text, ('a"b', 1, "c")) == 3
    assert line_of(text, ("c", "d")) == 5
    # What is not there has the place of what it would be in.
    assert line_of(text, ('a"b', 7)) == 2
    assert line_of(text, ("c", 0)) == 4
    for path, value in (
        ((), content),
        (('a"b', 1, "c"), "]}"),
        (('a"b', 2), []),
        (("c",), {"d": None}),
    ):
        start, end = span_of(text, path)
        assert json.loads(text[start:end]) == value


@pytest.mark.parametrize("target", ["audit.jsonl", "./audit.jsonl?x=1"])
def test_an_output_that_would_empty_the_audit_log_is_refused(tmp_path: Path, target: str) -> None:
    path = write(tmp_path / "station.json", outputs=["jsonl", f"csv:{target}"])
    with pytest.raises(StationError, match=r"line \d+: the file is the audit log"):
        read_station(path)
