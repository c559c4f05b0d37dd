"""The files of a bundle: their names, how the small ones are read, and how they are refused.

Every refusal is one line that ends with the remedy.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from flawline import FlawlineError
from flawline.commands import command_line, program_of
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.calibration import Calibration, calibration_from_json
from flawline.runtime.files import read_small
from flawline.runtime.manifest import (
    GOLDEN,
    MODEL,
    Manifest,
)
from flawline.runtime.strict_json import SchemaError, one_line
from flawline.runtime.threshold import calibration_fault
from flawline.uris import folder_of

MANIFEST = "manifest.json"
CALIBRATION = "calibration.json"
PREVIOUS_CALIBRATION = "calibration.previous.json"
SIGNATURE = "signature.json"
ENGINE_CACHE = "engines"
# A folder with one of these files is a bundle, which may be damaged.
FILES = (MANIFEST, CALIBRATION, PREVIOUS_CALIBRATION, GOLDEN, MODEL)
LARGEST_JSON = 1 << 24  # bytes
# The errors of a file that another one, a folder or a link that leads nowhere took the place of.
DAMAGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)

Content = TypeVar("Content")


class BundleError(FlawlineError):
    """The bundle cannot be used."""


def require_bundle_folder(path: Path, other: str | None = None) -> None:
    """Refuse a folder that is absent, or has none of the files of a bundle. Raises BundleError.

    `other` is the path or the camera that was given with it: if that is a bundle, the two may have
    been exchanged.
    """
    if not path.exists():
        refuse(path, "there is no such folder")
    if any((path / name).exists() for name in FILES):
        return
    remedy = f"pass the folder that {program_of('build')} wrote"
    folder = None if other is None else folder_of(other)
    if folder is not None and (folder / MANIFEST).is_file():
        remedy = f"{folder} is one: the two may have been exchanged"
    reason = f"{MANIFEST} is missing" if path.is_dir() else "it is a file and no folder"
    raise BundleError(f"{path} is not a bundle ({reason}); {remedy}")


def may_be_replaced(path: Path) -> bool:
    """Tell whether a new bundle may be written there: nothing is there, or a bundle."""
    return not path.exists() or (path / MANIFEST).is_file()


def read_json(path: Path, name: str, parse: Callable[[bytes], Content]) -> Content:
    """Read one of the JSON files of a bundle. Raises BundleError."""
    try:
        return parse_json_file(path, name, parse)
    except SchemaError as error:
        refuse(path, str(error))


def parse_json_file(path: Path, name: str, parse: Callable[[bytes], Content]) -> Content:
    """Read a JSON file. Raises SchemaError for a missing or damaged one, otherwise BundleError."""
    try:
        return parse(read_small(path / name, LARGEST_JSON))
    except FileNotFoundError as error:
        raise SchemaError(f"{name} is missing") from error
    except OSError as error:
        refuse_unreadable(path, name, error)
    except SchemaError as error:
        raise SchemaError(f"{name}: {error}") from error


def refuse_unreadable(path: Path, name: str, error: OSError) -> NoReturn:
    """Raise BundleError for a file that the operating system does not let be read."""
    reason = f"{name} cannot be read ({reason_of(error)})"
    if error.errno in DAMAGED:
        refuse(path, reason)
    raise BundleError(f"bundle {path}: {reason}; {remedy_of(error)}") from error


def refuse(path: Path, reason: str, remedy: str | None = None) -> NoReturn:
    """Raise BundleError with the remedy: copying the bundle again, or building it."""
    if remedy is None:
        # The command that builds a bundle never replaces a folder that is none.
        build = "build it" if may_be_replaced(path) else "move it away and build it"
        command = command_line("build", "--checkpoint", "CHECKPOINT", "--out", path)
        remedy = f"copy it again from where it was built, or {build}: {command}"
    raise BundleError(f"bundle {path}: {one_line(reason)}; {remedy}")


def unwritable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be written ({reason_of(error)}); {remedy_of(error)}")


def require_plausible(path: Path, calibration: Calibration, manifest: Manifest) -> None:
    """Refuse to write a threshold that no reader accepts. Raises BundleError."""
    fault = calibration_fault(calibration, manifest)
    if fault is not None:
        raise BundleError(
            f"bundle {path}: {fault}; check the images, or train a detector on such images"
        )


def plausible_calibration(data: bytes, manifest: Manifest) -> Calibration:
    """Read a calibration whose threshold fits the manifest. Raises SchemaError."""
    calibration = calibration_from_json(data)
    fault = calibration_fault(calibration, manifest)
    if fault is not None:
        raise SchemaError(fault)
    return calibration


def undo_command(path: Path, manifest: Manifest) -> str | None:
    """Return the remedy for a damaged calibration, if the previous one can take its place."""
    try:
        parse_json_file(
            path, PREVIOUS_CALIBRATION, partial(plausible_calibration, manifest=manifest)
        )
    except FlawlineError:
        return None
    command = command_line("calibrate", "--bundle", path, "--undo")
    return f"bring the previous threshold back: {command}"
