"""A bundle: the folder that the training machine hands over to the inspecting machines.

    manifest.json     model, input, hashes, statistics, tolerances and provenance
    calibration.json  the threshold and what supports it: may be edited, never hashed
    calibration.previous.json  the one before it, for `undo_calibration`; readers ignore it
    model.onnx        the graph: float32, opset 17, IR 8
    model.fp16.onnx   the same in FP16, except in the manifest's FP32 islands (optional)
    model.int8.onnx   the same with Q/DQ nodes from calibration on good images (optional)
    golden.npz        input images with reference scores and maps, for the self-test
    engines/          compiled plans of the machine that runs the bundle: never hashed

The reader is strict, because a wrong bundle that runs is worse than one that does not run. A bundle
of another schema, with an unknown or missing key or with a wrong hash is refused in one line that
ends with the remedy.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np

from flawline import FlawlineError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.files import replace_folder, write_atomically
from flawline.runtime.image import Image, Map
from flawline.runtime.manifest import (
    GOLDEN,
    GRAPH_OUTPUTS,
    MODEL,
    Calibration,
    Manifest,
    calibration_from_json,
    calibration_to_json,
    manifest_from_json,
    manifest_to_json,
)
from flawline.runtime.precisions import FP32, PRECISIONS
from flawline.runtime.strict_json import SchemaError

MANIFEST = "manifest.json"
CALIBRATION = "calibration.json"
PREVIOUS_CALIBRATION = "calibration.previous.json"
ENGINE_CACHE = "engines"
ID_DIGITS = 12

Content = TypeVar("Content")


class BundleError(FlawlineError):
    """The bundle cannot be used."""


@dataclass(frozen=True)
class Golden:
    """Inputs of the model with the results that every engine must reproduce.

    `images` is uint8 [k, H, W, 3], `scores` float32 [k] and `maps` float32 [k, H, W], or [k, 0, 0]
    if the graph has no map.
    """

    images: Image
    scores: Map
    maps: Map


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, whose manifest, calibration and hashes were checked when it was read.

    `sha256` maps each file that the manifest names to its hash.
    """

    path: Path
    manifest: Manifest
    calibration: Calibration
    sha256: Mapping[str, str]

    @property
    def short_id(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of the FP32 graph.

        It identifies the trained detector: a new threshold or a further precision leaves it as it
        is, a new training changes it.
        """
        return self.sha256[MODEL][:ID_DIGITS]

    @property
    def has_map(self) -> bool:
        """True if the graph gives an anomaly map, and not the score alone."""
        return self.manifest.outputs == GRAPH_OUTPUTS

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the anomaly map; (0, 0) if the graph has none."""
        if not self.has_map:
            return 0, 0
        return self.manifest.geometry.height, self.manifest.geometry.width

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of PRECISIONS that this bundle has a graph of its own for."""
        names = []
        for precision in PRECISIONS.values():
            if precision.file in self.sha256:
                names.append(precision.name)
        return tuple(names)

    def model(self, precision: str = "fp32") -> Path:
        """Return the ONNX file that is run for a precision.

        A precision without a file of its own, such as bf16, runs the FP32 graph. Raises BundleError
        if this bundle has no such graph.
        """
        name = _model_file(precision)
        if name not in self.sha256:
            raise BundleError(
                f"bundle {self.path} holds no {precision} graph; add it where onnx is installed: "
                f"python -m export.build --bundle {self.path} --precision {precision} --data DATA"
            )
        return self.path / name

    def model_sha256(self, precision: str = "fp32") -> str:
        """Return the hash of the ONNX file that is run for a precision."""
        return self.sha256[self.model(precision).name]

    def golden(self) -> Golden:
        """Read the golden data.

        Raises BundleError if they cannot be read or do not fit the manifest.
        """
        # A truncated archive raises BadZipFile, an absent member KeyError, a wrong header
        # ValueError.
        try:
            with np.load(self.path / GOLDEN, allow_pickle=False) as data:
                golden = Golden(data["images"], data["scores"], data["maps"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            _refuse(self.path, f"{GOLDEN} cannot be read ({error})")
        height = self.manifest.geometry.height
        width = self.manifest.geometry.width
        images_fit = golden.images.shape[1:] == (height, width, 3)
        maps_fit = golden.maps.shape[1:] == self.map_size
        if not images_fit or not maps_fit or len(golden.images) == 0:
            _refuse(self.path, f"{GOLDEN} does not fit the manifest's input size {height}x{width}")
        return golden


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle. Raises BundleError."""
    path = Path(path)
    if not path.is_dir():
        _refuse(path, "there is no such folder")
    manifest, files = _read(path, MANIFEST, manifest_from_json)
    # Check the hashes first: the error of an engine for a truncated file does not name the cause.
    for name, expected in files.items():
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            _refuse_unreadable(path, name, error)
        if _sha256(data) != expected:
            _refuse(
                path, f"{name} is not the file that was built (its sha256 differs from {MANIFEST})"
            )
    calibration = _read(path, CALIBRATION, calibration_from_json)
    return Bundle(path, manifest, calibration, files)


def write_bundle(
    path: str | Path,
    manifest: Manifest,
    calibration: Calibration,
    models: Mapping[str, bytes],
    golden: Golden,
) -> Bundle:
    """Write a whole bundle next to `path`, then move it there.

    No reader ever sees a part of a bundle. `models` maps precisions to serialised graphs, of which
    fp32 is required. An existing bundle is replaced; any other existing folder is refused. Raises
    BundleError.
    """
    path = Path(path)
    # A mistyped --out must never delete a folder of the user.
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is not a bundle; choose another --out")
    # Packed in memory, because the hash is computed before the file is written.
    packed = io.BytesIO()
    np.savez_compressed(packed, images=golden.images, scores=golden.scores, maps=golden.maps)
    contents = {GOLDEN: packed.getvalue()}
    for precision, model in models.items():
        contents[_model_file(precision)] = model
    hashes = {name: _sha256(data) for name, data in contents.items()}
    try:
        with replace_folder(path) as new:
            for name, data in contents.items():
                write_atomically(new / name, data)
            write_atomically(new / MANIFEST, manifest_to_json(manifest, hashes))
            write_atomically(new / CALIBRATION, calibration_to_json(calibration))
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error
    return read_bundle(path)


def add_model(bundle: Bundle, precision: str, model: bytes) -> Bundle:
    """Add or replace the graph of another precision than fp32, and return the new bundle.

    A crash in the middle leaves a bundle whose manifest refuses the new file, never one that runs
    it unchecked. Raises BundleError.
    """
    name = _model_file(precision)
    if name == FP32.file:
        raise ValueError(f"{precision} runs the fp32 graph, which is not replaced")
    files = {**bundle.sha256, name: _sha256(model)}
    # The graph is written before the manifest that names it.
    try:
        write_atomically(bundle.path / name, model)
        write_atomically(bundle.path / MANIFEST, manifest_to_json(bundle.manifest, files))
    except OSError as error:
        raise _unwritable(bundle.path, error) from error
    return read_bundle(bundle.path)


def write_calibration(bundle: Bundle, calibration: Calibration) -> None:
    """Replace the threshold of a bundle in place; the model and its hashes stay.

    The file that is replaced is stored as PREVIOUS_CALIBRATION, unless it is the same. Raises
    BundleError.
    """
    current = bundle.path / CALIBRATION
    content = calibration_to_json(calibration)
    try:
        replaced = current.read_bytes()
        if replaced == content:
            return
        # First, so that the old threshold is on disk at every moment.
        write_atomically(bundle.path / PREVIOUS_CALIBRATION, replaced)
        write_atomically(current, content)
    except OSError as error:
        raise _unwritable(bundle.path, error) from error


def undo_calibration(path: Path) -> Calibration:
    """Exchange the threshold of a bundle with the previous one, and return the latter.

    Undoing again brings the newer one back. The current calibration.json may be damaged. Raises
    BundleError if there is no previous threshold, or if it cannot be read or written.
    """
    if not path.is_dir():
        _refuse(path, "there is no such folder")
    previous = path / PREVIOUS_CALIBRATION
    if not previous.is_file():
        raise BundleError(
            f"bundle {path} has no {PREVIOUS_CALIBRATION}: its threshold was never replaced; "
            f"leave --undo out"
        )
    calibration = _read(path, PREVIOUS_CALIBRATION, calibration_from_json)
    current = path / CALIBRATION
    try:
        replaced = current.read_bytes() if current.exists() else None
        write_atomically(current, previous.read_bytes())
        if replaced is not None:
            write_atomically(previous, replaced)
    except OSError as error:
        raise _unwritable(path, error) from error
    return calibration


def _unwritable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be written ({reason_of(error)}); {remedy_of(error)}")


def _model_file(precision: str) -> str:
    """Return the file of the graph that is run for a precision."""
    return PRECISIONS[precision].file or str(FP32.file)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, name: str, parse: Callable[[bytes], Content]) -> Content:
    """Read one of the JSON files of a bundle. Raises BundleError."""
    try:
        return parse((path / name).read_bytes())
    except FileNotFoundError:
        _refuse(path, f"{name} is missing")
    except OSError as error:
        _refuse_unreadable(path, name, error)
    except SchemaError as error:
        _refuse(path, f"{name}: {error}")


def _refuse_unreadable(path: Path, name: str, error: OSError) -> NoReturn:
    """Raise BundleError for a file that the operating system does not let be read."""
    reason = f"{name} cannot be read ({reason_of(error)})"
    if isinstance(error, FileNotFoundError):
        _refuse(path, reason)
    raise BundleError(f"bundle {path}: {reason}; {remedy_of(error)}") from error


def _refuse(path: Path, reason: str) -> NoReturn:
    """Raise BundleError with the remedy: copying the bundle again, or building it."""
    raise BundleError(
        f"bundle {path}: {reason}; copy it again from where it was built, or build it: "
        f"python -m export.build --checkpoint CHECKPOINT --out {path}"
    )
