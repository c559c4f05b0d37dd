"""The contract between the machine that trains and the machines that inspect: a folder called a bundle.

    manifest.json     what the model is, how its input is made, hashes, statistics, tolerances, provenance
    calibration.json  the threshold and what supports it: editable on the box, never hashed
    model.onnx        float32, opset 17, IR 8
    model.fp16.onnx   the same with FP16 written into it, except in the manifest's FP32 islands (where it was built)
    model.int8.onnx   the same with Q/DQ nodes from calibration on good images (where it was built)
    golden.npz        input images and the reference scores and maps: every engine's self-test
    engines/          cache of the machine that runs: compiled plans, none of them hashed here

The reader is strict, because a wrong bundle that runs is worse than one that does not: another schema, an unknown or
missing key, a wrong hash is refused in one line that ends with the command that mends it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from flawline import FlawlineError
from flawline.runtime.image import Geometry, Image, Map

SCHEMA = 1
GOLDEN, MANIFEST, CALIBRATION, ENGINE_CACHE = (
    "golden.npz",
    "manifest.json",
    "calibration.json",
    "engines",
)
# precision that is written into the graph -> its file
MODELS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}

OUTPUTS = ("score", "map")  # of the graph; a bundle built for the score alone has only the first


class BundleError(FlawlineError):
    """The bundle cannot be used; the message is one line and ends with the remedy."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation, smallest and largest of a quantity over the held-out good images."""

    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Spread:
        return cls(*(float(f(values)) for f in (np.mean, np.std, np.min, np.max)))


@dataclass(frozen=True)
class Manifest:
    """`score` and `map_peak` (the largest value of the map) are over good images; tolerances are absolute.

    `outputs` is OUTPUTS or its first alone. `fp32_islands` are prefixes of node names of the graph: what must be
    computed in FP32 whatever the precision.
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


@dataclass(frozen=True)
class Calibration:
    """A part is anomalous where its score is above `threshold`.

    `interval` holds the true false-alarm rate with `confidence`, given `good_images` held-out good images.
    """

    threshold: float
    false_alarm_rate: float
    interval: tuple[float, float]
    confidence: float
    good_images: int


@dataclass(frozen=True)
class Golden:
    """Model inputs uint8 [k, H, W, 3] with the reference scores float32 [k] and maps float32 [k, H, W] ([k, 0, 0]
    where the graph gives none)."""

    images: Image
    scores: Map
    maps: Map


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest, calibration and hashes were checked when it was read.

    `sha256` is of each file that the manifest names.
    """

    path: Path
    manifest: Manifest
    calibration: Calibration
    sha256: Mapping[str, str]

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the anomaly map; (0, 0) where the graph gives none."""
        geometry = self.manifest.geometry
        return (geometry.height, geometry.width) if self.manifest.outputs == OUTPUTS else (0, 0)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of MODELS that this bundle has a graph of."""
        return tuple(p for p, name in MODELS.items() if name in self.sha256)

    def model(self, precision: str = "fp32") -> Path:
        """The ONNX file of one of MODELS. Raises BundleError where this bundle has none."""
        if precision not in self.precisions:
            raise BundleError(
                f"bundle {self.path} holds no {precision} graph; add it where torch is: "
                f"python -m export.build --bundle {self.path} --precision {precision}"
            )
        return self.path / MODELS[precision]

    def model_sha256(self, precision: str = "fp32") -> str:
        return self.sha256[self.model(precision).name]

    def golden(self) -> Golden:
        try:
            with np.load(self.path / GOLDEN, allow_pickle=False) as data:
                golden = Golden(data["images"], data["scores"], data["maps"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            _refuse(self.path, f"{GOLDEN} cannot be read ({error})")
        size = (self.manifest.geometry.height, self.manifest.geometry.width)
        if (
            golden.images.shape[1:] != (*size, 3)
            or golden.maps.shape[1:] != self.map_size
            or not len(golden.images)
        ):
            _refuse(
                self.path, f"{GOLDEN} does not fit the manifest's input size {size[0]}x{size[1]}"
            )
        return golden


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle. Raises BundleError."""
    path = Path(path)
    if not path.is_dir():
        _refuse(path, "there is no such folder")
    manifest, files = _manifest_from_json(path, _read_json(path, MANIFEST))
    for name, expected in files.items():
        try:
            actual = hashlib.sha256((path / name).read_bytes()).hexdigest()
        except OSError as error:
            _refuse(path, f"{name} cannot be read ({error.strerror})")
        if actual != expected:
            _refuse(
                path, f"{name} is not the file that was built (its sha256 differs from {MANIFEST})"
            )
    calibration = _calibration_from_json(path, _read_json(path, CALIBRATION))
    return Bundle(path, manifest, calibration, files)


def write_bundle(
    path: str | Path,
    manifest: Manifest,
    calibration: Calibration,
    models: Mapping[str, bytes],
    golden: Golden,
) -> Bundle:
    """Write a whole bundle beside `path`, then move it there, so that no reader ever sees half a bundle.

    `models` maps a precision of MODELS to its serialised graph; fp32 must be there. An existing bundle is
    replaced; any other existing folder is refused with BundleError.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is not a bundle; choose another --out")
    packed = io.BytesIO()
    np.savez_compressed(packed, images=golden.images, scores=golden.scores, maps=golden.maps)
    shipped = {**{MODELS[p]: data for p, data in models.items()}, GOLDEN: packed.getvalue()}
    files = {name: hashlib.sha256(data).hexdigest() for name, data in shipped.items()}
    old: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written ({error.strerror}); choose another --out"
        ) from error
    staging = work / "new"
    try:
        staging.mkdir()
        for name, data in shipped.items():
            write_atomically(staging / name, data)
        write_atomically(staging / MANIFEST, _manifest_to_json(manifest, files))
        write_atomically(staging / CALIBRATION, _to_json({"schema": SCHEMA, **asdict(calibration)}))
        if path.exists():
            old = work / "old"
            os.replace(path, old)
        os.replace(staging, path)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written ({error.strerror}); free the disk or choose another --out"
        ) from error
    finally:
        if old is not None and not path.exists():
            os.replace(
                old, path
            )  # whatever stopped the exchange: the bundle that was there comes back
        shutil.rmtree(work, ignore_errors=True)
    return read_bundle(path)


def add_model(bundle: Bundle, precision: str, model: bytes) -> Bundle:
    """Add or replace the graph of another precision than fp32; the fp32 graph and all else stay as they are.

    A crash amid it leaves a bundle whose manifest refuses the new file, never one that runs it unseen.
    """
    name = MODELS[precision]
    files = {**bundle.sha256, name: hashlib.sha256(model).hexdigest()}
    try:
        write_atomically(bundle.path / name, model)
        write_atomically(bundle.path / MANIFEST, _manifest_to_json(bundle.manifest, files))
    except OSError as error:
        raise BundleError(
            f"{bundle.path} cannot be written ({error.strerror}); free the disk, or work on a copy that is yours"
        ) from error
    return read_bundle(bundle.path)


def write_calibration(bundle: Bundle, calibration: Calibration) -> None:
    """Replace the threshold of a bundle in place; the model and its hashes stay as they are."""
    write_atomically(bundle.path / CALIBRATION, _to_json({"schema": SCHEMA, **asdict(calibration)}))


def write_atomically(path: Path, data: bytes) -> None:
    """Write so that a crash or a full disk leaves the old file or the new one, never a piece. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _manifest_to_json(manifest: Manifest, files: Mapping[str, str]) -> bytes:
    content = asdict(manifest)
    content.update(
        schema=SCHEMA,
        geometry=manifest.geometry.to_json(),
        provenance=dict(manifest.provenance),
        files=dict(files),
    )
    return _to_json(content)


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _read_json(path: Path, name: str) -> dict[str, Any]:
    def refuse_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not a number")

    try:
        content = json.loads((path / name).read_bytes(), parse_constant=refuse_constant)
    except FileNotFoundError:
        _refuse(path, f"{name} is missing")
    except (OSError, ValueError, RecursionError) as error:
        _refuse(path, f"{name} cannot be read ({error})")
    if not isinstance(content, dict):
        _refuse(path, f"{name} is not a JSON object")
    if content.get("schema") != SCHEMA or isinstance(content["schema"], bool):
        _refuse(
            path, f"{name} has schema {content.get('schema')!r}, this version reads schema {SCHEMA}"
        )
    return content


def _manifest_from_json(path: Path, content: dict[str, Any]) -> tuple[Manifest, dict[str, str]]:
    take = _Taker(path, MANIFEST, content)
    files = take("files", dict)
    for name in (MODELS["fp32"], GOLDEN, *files):
        if not isinstance(files.get(name), str):
            _refuse(path, f"{MANIFEST} names no sha256 for {name}")
    if unknown := sorted(set(files) - {*MODELS.values(), GOLDEN}):
        _refuse(
            path, f"{MANIFEST} names files that this version does not know: {', '.join(unknown)}"
        )
    fields = take("geometry", dict)
    try:
        if any(isinstance(v, float) for v in fields.values()):
            raise ValueError("sizes are whole numbers")
        geometry = Geometry(**fields)
    except (TypeError, ValueError) as error:
        _refuse(path, f"{MANIFEST}: geometry: {error}")
    manifest = Manifest(
        method=take("method", str),
        backbone=take("backbone", str),
        geometry=geometry,
        score=_spread_from_json(path, "score", take("score", dict)),
        map_peak=_spread_from_json(path, "map_peak", take("map_peak", dict)),
        score_tolerance=take("score_tolerance", float),
        map_tolerance=take("map_tolerance", float),
        fp32_islands=tuple(take("fp32_islands", list)),
        outputs=tuple(take("outputs", list)),
        provenance=take("provenance", dict),
    )
    if not all(isinstance(value, str) for value in manifest.provenance.values()):
        _refuse(path, f"{MANIFEST}: provenance holds values that are not text")
    if not all(isinstance(value, str) and value for value in manifest.fp32_islands):
        _refuse(path, f"{MANIFEST}: fp32_islands holds values that are not node names")
    if manifest.outputs not in (OUTPUTS, OUTPUTS[:1]):
        _refuse(
            path,
            f"{MANIFEST}: outputs is {list(manifest.outputs)}, not {list(OUTPUTS)} or {list(OUTPUTS[:1])}",
        )
    take.refuse_rest()
    if manifest.score_tolerance <= 0 or manifest.map_tolerance <= 0:
        _refuse(path, f"{MANIFEST}: a tolerance is not above 0")
    return manifest, files


def _spread_from_json(path: Path, name: str, content: dict[str, Any]) -> Spread:
    take = _Taker(path, f"{MANIFEST}: {name}", content)
    spread = Spread(**{key: take(key, float) for key in ("mean", "std", "min", "max")})
    take.refuse_rest()
    return spread


def _calibration_from_json(path: Path, content: dict[str, Any]) -> Calibration:
    take = _Taker(path, CALIBRATION, content)
    interval = take("interval", list)
    numbers = [
        float(x) for x in interval if isinstance(x, (int, float)) and not isinstance(x, bool)
    ]
    if len(interval) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        _refuse(path, f"{CALIBRATION}: interval is not a pair of rising numbers from 0 to 1")
    calibration = Calibration(
        threshold=take("threshold", float),
        false_alarm_rate=take("false_alarm_rate", float),
        interval=(numbers[0], numbers[1]),
        confidence=take("confidence", float),
        good_images=take("good_images", int),
    )
    take.refuse_rest()
    for name in ("false_alarm_rate", "confidence"):
        if not 0 < getattr(calibration, name) < 1:
            _refuse(path, f"{CALIBRATION}: {name} is not between 0 and 1")
    if calibration.good_images < 1:
        _refuse(path, f"{CALIBRATION}: good_images is below 1")
    return calibration


class _Taker:
    """Takes typed values out of a JSON object, then refuses what nobody took."""

    def __init__(self, path: Path, name: str, content: dict[str, Any]) -> None:
        self.path, self.name, self.content = (
            path,
            name,
            {k: v for k, v in content.items() if k != "schema"},
        )

    def __call__(self, key: str, kind: Callable[..., Any]) -> Any:
        if key not in self.content:
            _refuse(self.path, f"{self.name}: {key} is missing")
        value = self.content.pop(key)
        accepted = (int, float) if kind is float else kind
        if isinstance(value, bool) or not isinstance(value, accepted):  # type: ignore[arg-type]
            _refuse(
                self.path,
                f"{self.name}: {key} is {value!r}, not of type {getattr(kind, '__name__', kind)}",
            )
        if (
            kind is float and not abs(value) < 1e300
        ):  # also NaN; a larger integer would not fit a float
            _refuse(self.path, f"{self.name}: {key} is not finite")
        return float(value) if kind is float else value

    def refuse_rest(self) -> None:
        if self.content:
            _refuse(
                self.path,
                f"{self.name}: this version does not know {', '.join(sorted(self.content))}",
            )


def _refuse(path: Path, why: str) -> NoReturn:
    """Every refusal ends with what mends it: copying, or building anew from the checkpoint."""
    try:
        method = str(json.loads((path / MANIFEST).read_bytes())["method"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        method = "simplenet"
    raise BundleError(
        f"bundle {path}: {why}; copy it again from where it was built, or build it: "
        f"python -m export.build --method {method} --checkpoint CHECKPOINT --out {path}"
    )
