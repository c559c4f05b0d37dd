"""The record of a bundle that was read: manifest, thresholds, and the hashes of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flawline.commands import command_line
from flawline.runtime.bundle_files import BundleError, refuse, refuse_unreadable
from flawline.runtime.calibration import Calibration
from flawline.runtime.drift.reference import DriftReference
from flawline.runtime.files import read_small
from flawline.runtime.golden import Golden, read_golden
from flawline.runtime.manifest import GOLDEN, GRAPH_OUTPUTS, MODEL, Manifest
from flawline.runtime.precisions import FP32, PRECISIONS
from flawline.runtime.strict_json import SchemaError

ID_DIGITS = 12
# No ONNX file is larger, because protobuf is not.
LARGEST_FILE = 1 << 31  # bytes


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, whose manifest, calibration and hashes were checked when it was read.

    `sha256` maps each file that the manifest names to its hash. `manifest_sha256` and
    `calibration_sha256` are those of manifest.json and calibration.json, and `calibrated_at` is
    when the latter was written, in seconds since 1970. `signed_by` is the fingerprint of the
    trusted key that signed the manifest; None if no key was asked for.

    Other files may take the place of those on disk later: what is read then is compared with the
    hashes again.
    """

    path: Path
    manifest: Manifest
    calibration: Calibration
    sha256: Mapping[str, str]
    manifest_sha256: str
    calibration_sha256: str
    calibrated_at: float
    signed_by: str | None = None

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
    def drift(self) -> DriftReference | None:
        """What the frames of a stream are compared with; None if the bundle does not know it."""
        reference = self.manifest.drift
        return None if reference is None else reference.with_scores(self.calibration.scores)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of PRECISIONS that this bundle has a graph of its own for."""
        names = []
        for precision in PRECISIONS.values():
            if precision.file in self.sha256:
                names.append(precision.name)
        return tuple(names)

    def has_graph(self, precision: str) -> bool:
        """Tell whether this bundle holds the graph that is run for a precision."""
        return model_file(precision) in self.sha256

    def model(self, precision: str = "fp32") -> Path:
        """Return the ONNX file that is run for a precision.

        A precision without a file of its own, such as bf16, runs the FP32 graph. Raises BundleError
        if this bundle has no such graph.
        """
        name = model_file(precision)
        if not self.has_graph(precision):
            words = ("--bundle", self.path, "--precision", precision, "--data", "DATA")
            raise BundleError(
                f"bundle {self.path} holds no {precision} graph; add it where onnx is installed: "
                f"{command_line('build', *words)}, or use "
                f"--precision {' or '.join(self.precisions)}"
            )
        return self.path / name

    def model_sha256(self, precision: str = "fp32") -> str:
        """Return the hash of the ONNX file that is run for a precision."""
        return self.sha256[self.model(precision).name]

    def is_same(self, other: Bundle) -> bool:
        """Tell whether another bundle has the same files and thresholds, wherever it is."""
        same = self.manifest_sha256 == other.manifest_sha256
        return same and self.calibration == other.calibration

    def read_model(self, precision: str = "fp32") -> bytes:
        """Read the ONNX file that is run for a precision.

        Raises BundleError, also if it is not the file any more whose hash was checked.
        """
        return self._read(self.model(precision).name)

    def golden(self) -> Golden:
        """Read the golden data.

        Raises BundleError if they cannot be read or do not fit the manifest.
        """
        shape = self.manifest.graph_input.shape
        data = self._read(GOLDEN)
        try:
            return read_golden(data, shape, self.map_size)
        except SchemaError as error:
            refuse(self.path, f"{GOLDEN} {error}")

    def _read(self, name: str) -> bytes:
        try:
            data = read_small(self.path / name, LARGEST_FILE)
        except OSError as error:
            refuse_unreadable(self.path, name, error)
        if sha256_of_bytes(data) != self.sha256[name]:
            raise BundleError(
                f"bundle {self.path}: {name} was replaced while the bundle was opened; try again"
            )
        return data


def model_file(precision: str) -> str:
    """Return the file of the graph that is run for a precision."""
    return PRECISIONS[precision].file or str(FP32.file)


def sha256_of_bytes(data: bytes) -> str:
    """Return the SHA-256 of data as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
