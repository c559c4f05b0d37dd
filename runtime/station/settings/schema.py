"""The types of station.json. `station.schema.json` is the JSON Schema that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from flawline.runtime.outputs import DEFAULT_OUTPUT

SCHEMA_FILE = Path(__file__).with_name("station.schema.json")
# As of the flags of the same names.
LONGEST_BATCH_WAIT_MS = 60_000
LONGEST_PART_WAIT_S = 86_400
LONGEST_WINDOW = 10_000  # frames
LARGEST_THRESHOLD = 1e38

# In Python's expressions, unlike in those of JSON Schema, "$" also matches before a line break at
# the end.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,24}(?!\n)$")]
# No file name, address or command line holds such a character.
Text = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*(?!\n)$")]
Threshold = Annotated[float, Meta(ge=-LARGEST_THRESHOLD, le=LARGEST_THRESHOLD)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]
Count = Annotated[int, Meta(ge=1, le=10**6)]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON object without keys of other names."""


class CameraEntry(Struct, frozen=True):
    """A camera, as `--camera` takes it."""

    uri: Annotated[Text, Meta(description="a folder, an image, a video or a URI")]
    name: Annotated[Name | None, Meta(description="its name in results; default: its number")] = (
        None
    )


class EngineEntry(Struct, frozen=True):
    """The engine, as `--engine` and the flags beside it take it."""

    name: Annotated[Text, Meta(description="auto, or the name of an engine")] = "auto"
    precision: Annotated[Text, Meta(description="auto, or a precision of the engine")] = "auto"
    threads: Annotated[Count | None, Meta(description="threads of a CPU engine")] = None
    streams: Annotated[Count | None, Meta(description="images that are computed together")] = None
    cache: Annotated[Text | None, Meta(description="folder of compiled plans")] = None
    server: Annotated[
        Text | None, Meta(description="the server of an engine that computes on one")
    ] = None


class CameraThresholds(Struct, frozen=True):
    """The thresholds of one camera, in place of those of the recipe."""

    camera: Annotated[Text, Meta(description="name of the camera, or its number from 1 on")]
    threshold: Annotated[Threshold, Meta(description="a part with a higher score is rejected")]
    review_threshold: Annotated[
        Threshold | None, Meta(description="a part with a higher score is reviewed; default: none")
    ] = None


class MasterParts(Struct, frozen=True):
    """Parts that are known to be good or bad, which are checked before the first frame."""

    good: Annotated[Text, Meta(description="folder of good master parts, or a camera")]
    bad: Annotated[Text, Meta(description="folder of bad master parts, or a camera")]
    max_frames: Annotated[
        Count | None, Meta(description="parts of each kind; for a camera that does not end")
    ] = None
    max_age_h: Annotated[
        Positive | None,
        Meta(description="end the stream when the last check is older than so many hours"),
    ] = None


class Recipe(Struct, frozen=True):
    """What parts of one kind are judged with."""

    name: Annotated[Name, Meta(description="its name")]
    bundle: Annotated[Text, Meta(description="the folder that flawline build wrote")]
    threshold: Annotated[
        Threshold | None, Meta(description="default: that of the bundle, with its review level")
    ] = None
    review_threshold: Annotated[
        Threshold | None, Meta(description="a part with a higher score is reviewed")
    ] = None
    thresholds: Annotated[
        tuple[CameraThresholds, ...], Meta(description="other thresholds of single cameras")
    ] = ()
    min_region_area: Annotated[
        Positive | None, Meta(description="smallest region that is given, in pixels of the image")
    ] = None
    mm_per_pixel: Annotated[
        Positive | None, Meta(description="size of a pixel of the image on the part")
    ] = None
    server: Annotated[
        Text | None, Meta(description="the server of this bundle, in place of that of the engine")
    ] = None
    masters: MasterParts | None = None


class RejectAfter(Struct, frozen=True):
    """For a continuous stream, not for parts: reject while so many of the last frames are bad."""

    frames: Annotated[Count, Meta(description="frames with a score above the threshold")]
    of: Annotated[
        int, Meta(ge=1, le=LONGEST_WINDOW, description="among so many frames of the camera")
    ]


class StationFile(Struct, frozen=True):
    """A station of Flawline."""

    recipe: Annotated[Name, Meta(description="name of the recipe that is in use")]
    recipes: Annotated[tuple[Recipe, ...], Meta(min_length=1)]
    cameras: Annotated[tuple[CameraEntry, ...], Meta(min_length=1)]
    engine: EngineEntry = EngineEntry()
    accept_size: Annotated[bool, Meta(description="judge images of any size")] = False
    batch: Annotated[
        Count | None, Meta(description="the most frames in one call of the engine")
    ] = None
    batch_wait_ms: Annotated[
        Annotated[float, Meta(ge=0, le=LONGEST_BATCH_WAIT_MS)] | None,
        Meta(description="milliseconds that a frame may wait for those of other cameras"),
    ] = None
    same_part: Annotated[bool, Meta(description="all cameras see the same parts")] = False
    part_wait_s: Annotated[
        Annotated[float, Meta(gt=0, le=LONGEST_PART_WAIT_S)] | None,
        Meta(description="reject a part if a view is missing so many seconds after the first"),
    ] = None
    reject_after: RejectAfter | None = None
    outputs: Annotated[
        tuple[Text, ...], Meta(min_length=1, description="as --output takes them")
    ] = (DEFAULT_OUTPUT,)
    schema: Annotated[str | None, Meta(description="the JSON Schema, for editors")] = msgspec.field(
        name="$schema", default=None
    )
    trusted_keys: Annotated[
        tuple[Text, ...], Meta(description="public keys; a bundle must be signed by one of them")
    ] = ()
    keep_bundle: Annotated[
        bool, Meta(description="do not take another bundle or threshold at the path of a bundle")
    ] = False
    audit: Annotated[Text, Meta(description="the audit log of the station")] = "audit.jsonl"


def json_schema() -> bytes:
    """Return the content of SCHEMA_FILE, which `make docs` writes."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= msgspec.json.schema(StationFile)
    return f"{json.dumps(schema, indent=2)}\n".encode()
