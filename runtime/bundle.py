"""A bundle: the folder that the training machine hands over to the inspecting machines.

    manifest.json     model, input, hashes, statistics, tolerances and provenance
    calibration.json  the threshold and what supports it: may be edited, never hashed
    calibration.previous.json  the one before it, for `flawline.runtime.undo`; readers ignore it
    model.onnx        the graph: float32, opset 17, IR 8
    model.fp16.onnx   the same in FP16, except in the manifest's FP32 islands (optional)
    model.int8.onnx   the same with Q/DQ nodes from calibration on good images (optional)
    golden.npz        input images with reference scores and maps, for the self-test
    signature.json    by which keys it was signed (optional): see `runtime/signing/`
    engines/          compiled plans of the machine that runs the bundle: never hashed
    audit.jsonl       who changed the bundle, when, and from what to what: see `runtime/audit/`

The reader is strict, because a wrong bundle that runs is worse than one that does not run. A bundle
of another schema, with an unknown or missing key or with a wrong hash is refused in one line that
ends with the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.bundle_log import (
    MANIFEST_KEY,
    calibration_state,
    logged_change,
    manifest_state,
    replaced_bundle,
)
from flawline.runtime.bundle_files import (
    CALIBRATION,
    ENGINE_CACHE,
    LARGEST_JSON,
    MANIFEST,
    PREVIOUS_CALIBRATION,
    BundleError,
    Content,
    may_be_replaced,
    parse_json_file,
    plausible_calibration,
    read_json,
    refuse,
    refuse_unreadable,
    require_bundle_folder,
    require_plausible,
    undo_command,
    unwritable,
)
from flawline.runtime.bundle_record import LARGEST_FILE, Bundle, model_file, sha256_of_bytes
from flawline.runtime.calibration import Calibration, calibration_to_json
from flawline.runtime.files import read_small, sha256_of, write_atomically
from flawline.runtime.golden import Golden, pack_golden
from flawline.runtime.graph_signature import check_signature, read_signature
from flawline.runtime.manifest import (
    GOLDEN,
    Manifest,
    manifest_from_json,
    manifest_to_json,
)
from flawline.runtime.precisions import FP32
from flawline.runtime.signing.keys import TrustedKeys
from flawline.runtime.signing.signature import require_signed_calibration, verify
from flawline.runtime.strict_json import SchemaError

__all__ = [
    "CALIBRATION",
    "ENGINE_CACHE",
    "MANIFEST",
    "PREVIOUS_CALIBRATION",
    "Bundle",
    "BundleError",
    "add_model",
    "read_bundle",
    "write_bundle",
    "write_calibration",
]


def read_bundle(path: str | Path, trusted: TrustedKeys | None = None) -> Bundle:
    """Read a bundle, and check its hashes, graphs and threshold.

    With `trusted`, one of these keys must have signed it, which is checked before anything but the
    manifest is read. Raises BundleError.
    """
    path = Path(path)
    require_bundle_folder(path)
    (manifest, files), manifest_sha256 = read_json(path, MANIFEST, _with_hash(manifest_from_json))
    verified = None if trusted is None else verify(path, manifest_sha256, trusted)
    # Check the hashes first: the error of an engine for a truncated file does not name the cause.
    for name, expected in files.items():
        try:
            digest = sha256_of(path / name, LARGEST_FILE)
        except OSError as error:
            refuse_unreadable(path, name, error)
        if digest != expected:
            refuse(
                path, f"{name} is not the file that was built (its sha256 differs from {MANIFEST})"
            )
    _check_graphs(path, files, manifest)
    parse = _with_hash(partial(plausible_calibration, manifest=manifest))
    try:
        calibration, calibration_sha256 = parse_json_file(path, CALIBRATION, parse)
        calibrated_at = (path / CALIBRATION).stat().st_mtime
    except SchemaError as error:
        refuse(path, str(error), undo_command(path, manifest))
    except OSError as error:
        refuse_unreadable(path, CALIBRATION, error)
    signed_by = None
    if verified is not None:
        require_signed_calibration(path, verified, calibration_sha256)
        signed_by = verified.key
    return Bundle(
        path,
        manifest,
        calibration,
        files,
        manifest_sha256,
        calibration_sha256,
        calibrated_at,
        signed_by,
    )


def _with_hash(parse: Callable[[bytes], Content]) -> Callable[[bytes], tuple[Content, str]]:
    """Let a function that reads the content of a file return its SHA-256, too."""
    return lambda data: (parse(data), sha256_of_bytes(data))


def _check_graphs(path: Path, files: Iterable[str], manifest: Manifest) -> None:
    """Refuse a graph whose inputs and outputs are not those of the manifest.

    A hash shows that it is the file that was built, not that this is the right one. Raises
    BundleError.
    """
    shape = manifest.graph_input.shape
    map_size = (manifest.geometry.height, manifest.geometry.width)
    for name in files:
        if name == GOLDEN:
            continue
        try:
            # Not mapped into memory: that would crash if another process cut the file off.
            signature = read_signature(read_small(path / name, LARGEST_FILE))
            check_signature(signature, shape, map_size, manifest.outputs)
        except OSError as error:
            refuse_unreadable(path, name, error)
        except SchemaError as error:
            refuse(path, f"{name} {error}")


def write_bundle(
    path: str | Path,
    manifest: Manifest,
    calibration: Calibration,
    models: Mapping[str, bytes],
    golden: Golden,
    what: str = "build",
    note: str | None = None,
    shown: Path | None = None,
) -> Bundle:
    """Write a whole bundle next to `path`, then move it there.

    No reader ever sees a part of a bundle. `models` maps precisions to serialised graphs, of which
    fp32 is required. An existing bundle is replaced; any other existing folder is refused. `what`
    is how the audit log calls it, and `note` what else it says. Messages name `shown` where `path`
    is one of this process alone. Raises BundleError.
    """
    path = Path(path)
    named = path if shown is None else shown
    # A mistyped --out must never delete a folder of the user.
    if not may_be_replaced(path):
        raise BundleError(f"{path} exists and is not a bundle; choose another --out")
    require_plausible(named, calibration, manifest)
    contents = {GOLDEN: pack_golden(golden)}
    for precision, model in models.items():
        contents[model_file(precision)] = model
    hashes = {name: sha256_of_bytes(data) for name, data in contents.items()}
    try:
        with replaced_bundle(path, what, note=note) as new:
            for name, data in contents.items():
                write_atomically(new / name, data)
            write_atomically(new / MANIFEST, manifest_to_json(manifest, hashes))
            write_atomically(new / CALIBRATION, calibration_to_json(calibration))
    except OSError as error:
        raise BundleError(
            f"{named} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}"
        ) from error
    return read_bundle(path)


def add_model(bundle: Bundle, precision: str, model: bytes) -> Bundle:
    """Add or replace the graph of another precision than fp32, and return the new bundle.

    A crash in the middle leaves a bundle whose manifest refuses the new file, never one that runs
    it unchecked. Raises BundleError.
    """
    name = model_file(precision)
    if name == FP32.file:
        raise ValueError(f"{precision} runs the fp32 graph, which is not replaced")
    files = {**bundle.sha256, name: sha256_of_bytes(model)}
    manifest = manifest_to_json(bundle.manifest, files)
    try:
        with logged_change(bundle.path, "build", manifest_state(manifest), _seen(bundle)):
            # The graph is written before the manifest that names it.
            write_atomically(bundle.path / name, model)
            write_atomically(bundle.path / MANIFEST, manifest)
    except OSError as error:
        raise unwritable(bundle.path, error) from error
    return read_bundle(bundle.path)


def _seen(bundle: Bundle) -> dict[str, object]:
    """Return what the audit log must state of a bundle that is still the one that was read."""
    return {MANIFEST_KEY: bundle.manifest_sha256}


def write_calibration(bundle: Bundle, calibration: Calibration, note: str | None = None) -> None:
    """Replace the threshold of a bundle in place; the model and its hashes stay.

    The file that is replaced is stored as PREVIOUS_CALIBRATION, unless it is the same. `note` is
    added to the line of the audit log. Raises BundleError and AuditError.
    """
    require_plausible(bundle.path, calibration, bundle.manifest)
    current = bundle.path / CALIBRATION
    content = calibration_to_json(calibration)
    try:
        replaced = read_small(current, LARGEST_JSON)
        if replaced == content:
            return
        seen = {**_seen(bundle), **calibration_state(replaced)}
        with logged_change(bundle.path, "calibrate", calibration_state(content), seen, note):
            # First, so that the old threshold is on disk at every moment.
            write_atomically(bundle.path / PREVIOUS_CALIBRATION, replaced)
            write_atomically(current, content)
    except OSError as error:
        raise unwritable(bundle.path, error) from error
