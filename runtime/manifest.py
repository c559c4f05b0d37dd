"""manifest.json of a bundle: its record, and how it is read and written.

Reading refuses another schema, a missing or unknown key, and a value of another type or range.
Every refusal is a SchemaError, to which the caller adds the name of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.drift.reference import DRIFT, DriftReference, reference_from_json
from flawline.runtime.fixture import FIXTURE, Fixture, fixture_from_json
from flawline.runtime.graph_input import (
    SOURCE,
    GraphInput,
    geometry_from_json,
    source_from_json,
)
from flawline.runtime.image import Geometry
from flawline.runtime.inspected_area import INSPECTED_AREA, InspectedArea, area_from_json
from flawline.runtime.precisions import FP32, PRECISIONS
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.source_images import SourceSizes, sizes_from_json, sizes_to_json
from flawline.runtime.strict_json import (
    SchemaError,
    StrictReader,
    checksum,
    one_line,
    parse_json,
    to_json,
)
from flawline.runtime.tiles import TILES, Tiling, tiling_from_json
from flawline.runtime.trained_images import EXCLUDED_IMAGES, TRAINED_IMAGES, take_hashes
from flawline.runtime.training_length import TrainingLength, length_from_json, length_to_json

# Schema 2 added the bit depth to the manifest, and optionally `training`, `source_sizes`, `folds`,
# `trained_images`, `source`, `tiles`, `inspected_area`, `fixture`, `drift`,
# `excluded_images` and the `checksum`. calibration.json follows the same number.
SCHEMA = 2
READABLE = (1, 2)

GOLDEN = "golden.npz"
CHECKSUM = "checksum"
MODEL = str(FP32.file)
# Outputs of the graph. A bundle that was built for the score alone has only the first.
GRAPH_OUTPUTS = ("score", "map")


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation, minimum and maximum of a quantity over the held-out good images."""

    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Spread:
        """Compute the spread of an array of any shape."""
        return cls(
            mean=float(np.mean(values)),
            std=float(np.std(values)),
            min=float(np.min(values)),
            max=float(np.max(values)),
        )


@dataclass(frozen=True)
class Manifest:
    """What a bundle is: manifest.json without the hashes of the files.

    `score` and `map_peak`, the largest value of a map, are over the held-out good images; the
    latter is 0 throughout in a method without map. The tolerances are absolute. `fp32_islands` are
    prefixes of node names of the graph that must be computed in FP32 in every precision. `outputs`
    is GRAPH_OUTPUTS, or its first entry alone. `bit_depth` is the number of significant bits of the
    images that the detector was trained on, from 8 to 16. `training` is how long it was trained,
    and `source_sizes` the sizes of the good images; both are None where the bundle or its
    checkpoint does not state them. `folds` is 0 if good images were held out. Otherwise the
    detector was trained on all of them, and `score` and `map_peak` come from so many further
    detectors, each trained without a part of the images. `trained_images` are the sorted content
    hashes of the images that the detector was trained on; empty where they are not known. `source`
    are the camera's frames that the graphs take; with None they take prepared images, or with
    `tiles` parts of these. `inspected_area` is the part of the camera's frame that is inspected;
    None for all of it. `fixture` lays parts as in a reference picture first; None takes them as
    they lie. `drift` is what the frames of a stream are compared with, to notice that they are no
    longer like the good images; None where it is not known. `excluded_images` are the sorted
    content hashes of good images of the data set that were left out of the training, and are of no
    further use.
    """

    method: str
    backbone: str
    geometry: Geometry
    score: Spread
    map_peak: Spread
    score_tolerance: float
    map_tolerance: float
    fp32_islands: tuple[str, ...]
    outputs: tuple[str, ...]
    provenance: Mapping[str, str]
    bit_depth: int = 8
    training: TrainingLength | None = None
    source_sizes: SourceSizes | None = None
    folds: int = 0
    trained_images: tuple[str, ...] = ()
    source: SourceFrame | None = None
    tiles: Tiling | None = None
    inspected_area: InspectedArea | None = None
    fixture: Fixture | None = None
    drift: DriftReference | None = None
    excluded_images: tuple[str, ...] = ()

    @cached_property
    def graph_input(self) -> GraphInput:
        """What the graphs take, and how an image becomes it."""
        return GraphInput(self.geometry, self.source, self.tiles, self.inspected_area, self.fixture)

    @property
    def cut_short(self) -> str | None:
        """How far the training came that was cut short; None for a finished or unknown one."""
        if self.training is None or self.training.finished:
            return None
        return self.training.describe()

    @property
    def file_bit_depth(self) -> int | None:
        """The bit depth to read 16-bit image files with, for `read_image`.

        It is None if the detector was trained on 8-bit images, which say nothing about the scale of
        deeper ones: reading a 16-bit file is then an error.
        """
        if self.bit_depth > 8:
            return self.bit_depth
        return None


def manifest_to_json(manifest: Manifest, files: Mapping[str, str]) -> bytes:
    """Write manifest.json; `files` maps each file of the bundle to its sha256.

    CHECKSUM is over all other values, because a damaged digit would be another valid value.
    """
    content = asdict(manifest)
    content["schema"] = SCHEMA
    content["geometry"] = manifest.geometry.to_json()
    content["provenance"] = dict(manifest.provenance)
    content["training"] = length_to_json(manifest.training)
    content["source_sizes"] = sizes_to_json(manifest.source_sizes)
    content["files"] = dict(files)
    leave_out_no_folds(content)
    # Older versions refuse these keys.
    if not manifest.trained_images:
        del content[TRAINED_IMAGES]
    if not manifest.excluded_images:
        del content[EXCLUDED_IMAGES]
    if manifest.source is None:
        del content[SOURCE]
    if manifest.tiles is None:
        del content[TILES]
    if manifest.inspected_area is None:
        del content[INSPECTED_AREA]
    else:
        content[INSPECTED_AREA] = manifest.inspected_area.to_json()
    if manifest.fixture is None:
        del content[FIXTURE]
    else:
        content[FIXTURE] = manifest.fixture.to_json()
    if manifest.drift is None:
        del content[DRIFT]
    else:
        content[DRIFT] = manifest.drift.to_json()
    content[CHECKSUM] = checksum(content)
    return to_json(content)


def manifest_from_json(data: bytes) -> tuple[Manifest, dict[str, str]]:
    """Read manifest.json and the sha256 of each file. Raises SchemaError."""
    content = parse_json(data)
    stated = content.pop(CHECKSUM, None)
    actual = checksum(content)
    schema = take_schema(content)
    # Older manifests have none.
    if stated is not None and stated != actual:
        raise SchemaError("is not as it was written (its checksum differs)")
    reader = StrictReader(content)
    files = _files_from_json(reader)
    geometry = geometry_from_json(reader)
    provenance = _provenance_from_json(reader)
    bit_depth = _take_bit_depth(reader, schema, provenance)
    manifest = Manifest(
        method=reader.take("method", str),
        backbone=reader.take("backbone", str),
        geometry=geometry,
        score=_spread_from_json(reader, "score"),
        map_peak=_spread_from_json(reader, "map_peak"),
        score_tolerance=reader.take("score_tolerance", float),
        map_tolerance=reader.take("map_tolerance", float),
        fp32_islands=reader.take_texts("fp32_islands"),
        outputs=reader.take_texts("outputs"),
        provenance=provenance,
        bit_depth=bit_depth,
    )
    if schema >= 2:
        manifest = replace(
            manifest,
            training=length_from_json(reader.take_object("training")),
            source_sizes=sizes_from_json(reader.take_object("source_sizes")),
            folds=reader.take_count("folds"),
            trained_images=take_hashes(reader),
            source=source_from_json(reader.take_object(SOURCE)),
            tiles=tiling_from_json(reader.take_object(TILES)),
            inspected_area=area_from_json(reader.take_object(INSPECTED_AREA)),
            fixture=fixture_from_json(reader.take_object(FIXTURE)),
            excluded_images=take_hashes(reader, EXCLUDED_IMAGES),
            drift=reference_from_json(reader.take_object(DRIFT)),
        )
    reader.finish()
    _check_manifest(reader, manifest)
    return manifest, files


def _provenance_from_json(reader: StrictReader) -> dict[str, str]:
    provenance = reader.take("provenance", dict)
    for value in provenance.values():
        if not isinstance(value, str):
            reader.refuse("provenance holds values that are not text")
    return provenance


def _check_manifest(reader: StrictReader, manifest: Manifest) -> None:
    if manifest.outputs not in (GRAPH_OUTPUTS, GRAPH_OUTPUTS[:1]):
        known = f"{list(GRAPH_OUTPUTS)} or {list(GRAPH_OUTPUTS[:1])}"
        reader.refuse(f"outputs is {list(manifest.outputs)}, not {known}")
    for name, spread in (("score", manifest.score), ("map_peak", manifest.map_peak)):
        # A mean is rounded, so that it may exceed equal values by a little.
        slack = 1e-5 * max(abs(spread.min), abs(spread.max))
        if spread.std < 0 or not spread.min - slack <= spread.mean <= spread.max + slack:
            reader.refuse(f"{name}: the standard deviation is below 0, or the mean out of range")
    if manifest.score_tolerance <= 0 or manifest.map_tolerance <= 0:
        reader.refuse("a tolerance is not above 0")
    if not 8 <= manifest.bit_depth <= 16:
        reader.refuse(f"bit_depth is {manifest.bit_depth}, not from 8 to 16")
    try:
        # Also finds an area that is too small for its grid.
        _ = manifest.graph_input.inspected_cells
    except ValueError as error:
        reader.refuse(str(error))


def take_schema(content: dict[str, Any]) -> int:
    """Take the schema number out of the content of a file. Raises SchemaError for another one."""
    # Checked first: the other messages would mislead for a file of another schema.
    schema = content.pop("schema", None)
    if type(schema) is not int or schema not in READABLE:
        known = " and ".join(str(number) for number in READABLE)
        raise SchemaError(f"has schema {one_line(repr(schema))}, this version reads schema {known}")
    return schema


def _files_from_json(reader: StrictReader) -> dict[str, str]:
    files = reader.take("files", dict)
    known = {GOLDEN}
    for precision in PRECISIONS.values():
        if precision.file is not None:
            known.add(precision.file)
    for name in (MODEL, GOLDEN, *files):
        if not isinstance(files.get(name), str):
            reader.refuse(f"there is no sha256 for {name}")
    unknown = sorted(set(files) - known)
    if unknown:
        reader.refuse(f"files that this version does not know: {', '.join(unknown)}")
    return files


def _spread_from_json(reader: StrictReader, key: str) -> Spread:
    fields = StrictReader(reader.take(key, dict), key)
    spread = Spread(
        mean=fields.take("mean", float),
        std=fields.take("std", float),
        min=fields.take("min", float),
        max=fields.take("max", float),
    )
    fields.finish()
    return spread


def _take_bit_depth(reader: StrictReader, schema: int, provenance: Mapping[str, str]) -> int:
    if schema >= 2:
        return reader.take("bit_depth", int)
    # Schema 1 recorded the bit depth of the training images as a text of the provenance, if at all.
    text = provenance.get("train_bits", "")
    # Python converts no text of thousands of digits.
    if text.isdecimal() and len(text) <= 4:
        return int(text)
    return 8


def leave_out_no_folds(content: dict[str, Any]) -> None:
    """Remove `folds` where it is 0, so that older versions read bundles with a hold-out."""
    if content["folds"] == 0:
        del content["folds"]
