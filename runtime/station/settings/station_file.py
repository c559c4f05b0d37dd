"""Reading station.json: every mistake is one line with the file, the line and the remedy."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec.inspect import Field

from flawline import FlawlineError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.engines import ENGINES
from flawline.runtime.files import read_small
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.station.settings.places import line_of
from flawline.runtime.station.settings.schema import (
    SCHEMA_FILE,
    CameraThresholds,
    Recipe,
    StationFile,
)
from flawline.runtime.strict_json import SchemaError, one_line, parse_json
from flawline.suggestions import did_you_mean

LARGEST_FILE = 1 << 22  # bytes
AUTO = "auto"
NAME_RULE = "1 to 24 letters, digits, dots, hyphens and underscores"
# A message of msgspec, such as "Expected `int` >= 1 - at `$.cameras[0].threads`".
MESSAGE = re.compile(r"(?P<reason>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
STEP = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+)\]")
UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
# Types of msgspec's messages as JSON calls them.
TYPES = {"`str": "`text", "`int": "`whole number", "`float": "`number", "`bool": "`true or false"}

# Keys and indices.
Place = Sequence["str | int"]


class StationError(FlawlineError):
    """A station file cannot be used, or what it asks for does not fit together."""


@dataclass(frozen=True)
class Station:
    """A station file that was read: its path, its text, and its content.

    Its relative paths begin in its folder.
    """

    path: Path
    text: str
    content: StationFile

    @property
    def folder(self) -> Path:
        """Where relative paths begin."""
        return self.path.parent

    @property
    def audit_log(self) -> Path:
        """The audit log of the station."""
        return self.folder / self.content.audit

    @property
    def trusted_keys(self) -> list[Path]:
        """The files of the public keys that are trusted."""
        return [self.folder / name for name in self.content.trusted_keys]

    @property
    def recipe(self) -> Recipe:
        """The recipe that is in use."""
        return self.recipe_named(self.content.recipe)

    def recipe_named(self, name: str) -> Recipe:
        """Return a recipe by its name. Raises StationError."""
        for recipe in self.content.recipes:
            if recipe.name == name:
                return recipe
        known = [recipe.name for recipe in self.content.recipes]
        raise StationError(
            f"{self.path}: there is no recipe {name!r}{did_you_mean(name, known)}; "
            f"known: {', '.join(known)}"
        )

    def bundle_of(self, recipe: Recipe) -> Path:
        """Return the folder of a recipe's bundle."""
        return self.folder / recipe.bundle

    def camera_names(self) -> list[str]:
        """Return what results call the cameras: their names, or their numbers from 1 on."""
        cameras = enumerate(self.content.cameras, 1)
        return [camera.name or str(number) for number, camera in cameras]

    def refuse(self, reason: str, *path: str | int) -> NoReturn:
        """Raise StationError with the line of the value at a path of keys and indices."""
        _refuse(self.path, line_of(self.text, path), reason)


def read_station(path: Path) -> Station:
    """Read a station file, and check what can be checked without its cameras and bundles.

    Raises StationError.
    """
    try:
        data = read_small(path, LARGEST_FILE)
    except OSError as error:
        raise StationError(
            f"station file {path}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    try:
        # Some editors write a byte order mark.
        text = data.decode("utf-8-sig")
        content = parse_json(text.encode())
        # Half of a surrogate pair, such as \\ud800, is valid in JSON, and in no name of a file.
        json.dumps(content, ensure_ascii=False).encode()
    except (UnicodeError, SchemaError) as error:
        reason = str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = "is not UTF-8 text"
        elif isinstance(error, UnicodeEncodeError):
            reason = "has half of a surrogate pair, which is no character"
        raise StationError(f"{path}: {reason}; correct it, or compare it with a copy") from error
    try:
        station = Station(path, text, msgspec.convert(content, StationFile))
    except msgspec.ValidationError as error:
        _refuse_type(path, text, str(error))
    _check(station)
    return station


def _refuse(path: Path, line: int, reason: str) -> NoReturn:
    raise StationError(f"{path}, line {line}: {one_line(reason)}")


def _refuse_type(path: Path, text: str, message: str) -> NoReturn:
    """Raise StationError for a message of msgspec, which names the place by keys and indices."""
    match = MESSAGE.fullmatch(message)
    assert match is not None
    reason = match["reason"]
    place: list[str | int] = []
    for step in STEP.finditer(match["path"] or ""):
        place.append(step["key"] if step["index"] is None else int(step["index"]))
    name = _name_of(place)
    keys = _keys_at(place)
    unknown = UNKNOWN.fullmatch(reason)
    missing = MISSING.fullmatch(reason)
    if unknown is not None:
        key = unknown["key"]
        place.append(key)
        reason = f"{name} has no key {key!r}{did_you_mean(key, keys)}; known: {', '.join(keys)}"
    elif missing is not None:
        reason = f"{name} lacks the key {missing['key']!r}; add it"
    else:
        for theirs, ours in TYPES.items():
            reason = reason.replace(theirs, ours)
        if "matching regex" in reason:
            is_name = "A-Z" in reason
            reason = f"is not {NAME_RULE}" if is_name else "has a line break or control character"
        reason = f"{name}: {reason[0].lower()}{reason[1:]}; see {SCHEMA_FILE}"
    _refuse(path, line_of(text, place), reason)


def _name_of(place: Place) -> str:
    """Return a place as a message calls it, such as cameras[0].uri."""
    name = ""
    for step in place:
        name += f"[{step}]" if isinstance(step, int) else f".{step}"
    return name.removeprefix(".") or "the station"


def _keys_at(place: Place) -> list[str]:
    """Return the keys that the object at a place may have; none for another value."""
    kind: msgspec.inspect.Type = msgspec.inspect.type_info(StationFile)
    for step in place:
        kind = _inner(kind)
        if isinstance(step, int):
            continue
        kind = next(field.type for field in _fields(kind) if field.encode_name == step)
    return [field.encode_name for field in _fields(_inner(kind))]


def _inner(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """Return the type of the object that a value is, or has as an item."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return _inner(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return _inner(kind.types[0])
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return _inner(kind.item_type)
    return kind


def _fields(kind: msgspec.inspect.Type) -> Iterable[Field]:
    return kind.fields if isinstance(kind, msgspec.inspect.StructType) else ()


def _check(station: Station) -> None:
    """Refuse values that have their types, but do not fit together."""
    content = station.content
    names = [recipe.name for recipe in content.recipes]
    _refuse_repeated(station, names, "recipes")
    _refuse_repeated(station, station.camera_names(), "cameras")
    if content.recipe not in names:
        station.refuse(
            f"there is no recipe {content.recipe!r}{did_you_mean(content.recipe, names)}; "
            f"known: {', '.join(names)}",
            "recipe",
        )
    for index, recipe in enumerate(content.recipes):
        _check_thresholds(station, recipe, index)
    _check_engine(station)
    _check_cameras(station)
    _check_audit_log(station)


def _refuse_repeated(station: Station, names: Sequence[str], key: str) -> None:
    counts = Counter(names)
    for index, name in enumerate(names):
        counts[name] -= 1
        if name in names[:index]:
            station.refuse(f"two {key} have the name {name!r}; give each its own", key, index)


def _check_thresholds(station: Station, recipe: Recipe, index: int) -> None:
    known = station.camera_names()
    place: tuple[str | int, ...] = ("recipes", index)
    levels: list[tuple[Recipe | CameraThresholds, tuple[str | int, ...]]] = [(recipe, place)]
    seen = []
    for number, level in enumerate(recipe.thresholds):
        inner = (*place, "thresholds", number)
        if level.camera not in known:
            reason = f"there is no camera {level.camera!r}{did_you_mean(level.camera, known)}"
            station.refuse(f"{reason}; known: {', '.join(known)}", *inner, "camera")
        if level.camera in seen:
            station.refuse(f"camera {level.camera!r} has thresholds already", *inner, "camera")
        seen.append(level.camera)
        levels.append((level, inner))
    for limits, inner in levels:
        threshold = limits.threshold
        review = limits.review_threshold
        if threshold is not None and review is not None and review > threshold:
            station.refuse(
                f"the review threshold {review:g} is above the one that rejects, {threshold:g}; "
                f"lower it",
                *inner,
                "review_threshold",
            )


def _check_engine(station: Station) -> None:
    engine = station.content.engine
    for key, value, known in (
        ("name", engine.name, [AUTO, *ENGINES]),
        ("precision", engine.precision, [AUTO, *PRECISIONS]),
    ):
        if value not in known:
            reason = f"{value!r} is unknown{did_you_mean(value, known)}; known: {', '.join(known)}"
            station.refuse(reason, "engine", key)


def _check_cameras(station: Station) -> None:
    """Refuse settings of several cameras, or of one, that do not fit the number of cameras."""
    content = station.content
    several = len(content.cameras) > 1
    if not several and content.batch_wait_ms is not None:
        station.refuse("batch_wait_ms is for several cameras; leave it out", "batch_wait_ms")
    if not several and content.same_part:
        station.refuse("same_part is for several cameras; leave it out", "same_part")
    if several and content.engine.streams is not None:
        station.refuse("streams is for one folder or video; leave it out", "engine", "streams")
    if content.part_wait_s is not None and not content.same_part:
        station.refuse("part_wait_s needs same_part; set it to true", "part_wait_s")
    after = content.reject_after
    if after is None:
        return
    if after.frames > after.of:
        reason = f"frames is {after.frames}, more than the {after.of} of which it is counted"
        station.refuse(f"{reason}; lower it", "reject_after", "frames")
    if content.same_part:
        station.refuse(
            "reject_after is for continuous streams, and same_part for parts; leave one out",
            "reject_after",
        )


def _check_audit_log(station: Station) -> None:
    """Refuse an output that would empty the audit log."""
    log = station.audit_log.absolute()
    for index, output in enumerate(station.content.outputs):
        target = output.partition(":")[2].partition("?")[0]
        if target and (station.folder / target).absolute() == log:
            station.refuse(
                "the file is the audit log; choose another one, or another audit", "outputs", index
            )
