"""Compiled plans on disk: which one can run on this machine, and where a new one is stored.

    engines/tensorrt-fp16-orin-sm87/model.plan    what TensorRT compiled
    engines/tensorrt-fp16-orin-sm87/engine.json   how and for which machines, and the plan's SHA-256

engine.json is written last: a plan without a matching one comes from an interrupted write and is
built again. Nothing in this file needs TensorRT or a GPU.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.engines import EngineError
from flawline.runtime.files import make_writable, read_small, sha256_of, write_atomically
from flawline.runtime.strict_json import SchemaError, one_line, parse_json

SCHEMA = 1
PLAN = "model.plan"
RECORD = "engine.json"
LARGEST_RECORD = 1 << 20  # bytes

# Options of earlier versions, which a record may still have. A value other than None means that the
# plan was built differently from what can be requested now.
_REMOVED_OPTIONS = ("level", "workspace_mib")


class PlanUnusable(Exception):
    """A stored plan cannot be used; the message says why, as the continuation of a sentence."""


class PlanRefused(EngineError):
    """TensorRT refused a plan whose record matches this machine. Rebuilding it may help."""

    def __init__(self, engine: str, path: Path, reason: str) -> None:
        super().__init__(f"{engine} does not load {path} ({reason}); choose another engine")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is asked for.

    Batches from 1 to `max_batch` run, `opt_batch` fastest. `dla` is the number of a Jetson's DLA
    core. `capabilities` are the compute capabilities that a portable plan is for, such as 86 for
    8.6. Raises EngineError for values that contradict each other.
    """

    opt_batch: int = 1
    max_batch: int = 8
    dla: int | None = None
    capabilities: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= self.max_batch:
            raise EngineError(
                f"--opt-batch {self.opt_batch} is not between 1 and --max-batch {self.max_batch}; "
                f"choose a number between them"
            )
        if self.dla is not None and self.max_batch != 1:
            raise EngineError("a DLA runs batch 1 only; add --max-batch 1")


@dataclass(frozen=True)
class Identity:
    """What a plan was built with and for.

    `source` is the SHA-256 of the ONNX file, followed by everything else that decides the types of
    the layers. `device` is the GPU's name and None for portable plans, which may have several
    compute `capabilities`, such as 87 for 8.7; other plans have one.
    """

    engine: str
    version: str
    precision: str
    source: str
    device: str | None
    capabilities: tuple[int, ...]

    @property
    def description(self) -> str:
        """The machines that the plan is for: "Orin 8.7" or "compute capability 8.6, 8.9"."""
        numbers = [f"{number // 10}.{number % 10}" for number in self.capabilities]
        return f"{self.device or 'compute capability'} {', '.join(numbers)}"


@dataclass(frozen=True)
class Plan:
    """A plan on disk and the options that it was built with."""

    path: Path
    options: BuildOptions


def folder_name(
    engine: str, precision: str, device: str | None, capabilities: tuple[int, ...]
) -> str:
    """Name the folder of a plan, one per engine, precision and kind of machine.

    Everything else is in engine.json, so that a message can say what has changed.
    """
    name = f"{engine}-{precision}"
    if device:
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        name = f"{name}-{slug}"
    numbers = "-".join(map(str, capabilities))
    return f"{name}-sm{numbers}"


@dataclass(frozen=True)
class Record:
    """The content of engine.json: how a plan was built, and its SHA-256.

    `stated_options` may have options that this version no longer has.
    """

    identity: Identity
    options: BuildOptions
    stated_options: Mapping[str, Any]
    sha256: str


def read_record(path: Path) -> Record:
    """Read engine.json. Raises PlanUnusable with what is wrong with it, and OSError."""
    try:
        record = parse_json(read_small(path, LARGEST_RECORD))
        if record["schema"] != SCHEMA:
            schema = one_line(repr(record["schema"]))
            raise PlanUnusable(f"has schema {schema}, this version reads {SCHEMA}")
        identity = _identity_from_json(record["identity"])
        options = _options_from_json(record["options"])
        return Record(identity, options, record["options"], str(record["plan"]))
    except SchemaError as error:
        raise PlanUnusable(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, EngineError) as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise PlanUnusable(f"cannot be read ({reason})") from error


def find_plan(cache: Path, wanted: Identity, own: Path, options: BuildOptions | None) -> Plan:
    """Return a plan in `cache` that can run as `wanted`.

    `own`, the folder of this machine's plan, is tried first. With `options` None the options of a
    plan are accepted as they are, because they were chosen when it was built for this machine.
    Raises PlanUnusable with the reason why a plan must be built.
    """
    folders = [own]
    for record in sorted(cache.glob(f"{wanted.engine}-{wanted.precision}-*/{RECORD}")):
        if record.parent != own:
            folders.append(record.parent)
    # The first reason is that of the machine's own plan, if there is one.
    reasons = []
    for folder in folders:
        if not (folder / RECORD).is_file():
            continue
        try:
            return _read_plan(folder, wanted, options)
        except PlanUnusable as unusable:
            reasons.append(f"the plan in {folder} {unusable}")
    raise PlanUnusable(reasons[0] if reasons else "there is none yet")


def recorded_options(folder: Path) -> BuildOptions | None:
    """Read the options of the plan in a folder, so that an outdated plan is rebuilt with them."""
    try:
        return read_record(folder / RECORD).options
    except (OSError, PlanUnusable):
        return None


def store_plan(folder: Path, identity: Identity, options: BuildOptions, plan: bytes) -> Plan:
    """Write a plan and then its record, each of them completely or not at all.

    Raises EngineError if they cannot be written.
    """
    record = {
        "schema": SCHEMA,
        "identity": asdict(identity),
        "options": asdict(options),
        "plan": hashlib.sha256(plan).hexdigest(),
    }
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    try:
        # The record comes last, because it makes the plan valid.
        write_atomically(folder / PLAN, plan)
        write_atomically(folder / RECORD, text.encode())
    except OSError as error:
        raise _unwritable(folder, error) from error
    return Plan(folder / PLAN, options)


def create_folder(folder: Path) -> None:
    """Create the folder and try to write in it, before minutes of building. Raises EngineError."""
    try:
        make_writable(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _read_plan(folder: Path, wanted: Identity, options: BuildOptions | None) -> Plan:
    """Read the plan of a folder. Raises PlanUnusable with what is wrong with it."""
    try:
        record = read_record(folder / RECORD)
        digest = sha256_of(folder / PLAN)
    except OSError as error:
        raise PlanUnusable(f"cannot be read ({reason_of(error)})") from error
    _require_same_machine(record.identity, wanted)
    if options is not None:
        _require_same_options(record.stated_options, options)
    if digest != record.sha256:
        raise PlanUnusable(f"is damaged: its sha256 is not that of {RECORD}")
    return Plan(folder / PLAN, record.options)


def _require_same_machine(built: Identity, wanted: Identity) -> None:
    if built.version != wanted.version:
        raise PlanUnusable(
            f"was built by version {built.version}, the installed version is {wanted.version}"
        )
    # A portable plan may be for more machines than this one.
    fits = built.device == wanted.device and set(wanted.capabilities) <= set(built.capabilities)
    if not fits:
        raise PlanUnusable(f"is for {built.description}, this machine is {wanted.description}")
    if built.source != wanted.source:
        raise PlanUnusable("belongs to another model: the bundle was built again")


def _require_same_options(recorded: Mapping[str, Any], requested: BuildOptions) -> None:
    values = {**dict.fromkeys(_REMOVED_OPTIONS), **asdict(requested)}
    values["capabilities"] = list(requested.capabilities)
    differences = []
    for name, value in values.items():
        built = recorded.get(name)
        if built != value:
            differences.append(f"{name} {built}, requested {value}")
    if differences:
        raise PlanUnusable(f"was built with other options ({', '.join(differences)})")


def _identity_from_json(content: Mapping[str, Any]) -> Identity:
    fields = dict(content)
    fields["capabilities"] = tuple(fields["capabilities"])
    identity = Identity(**fields)
    for text in (identity.engine, identity.version, identity.precision, identity.source):
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is not a text")
    return identity


def _options_from_json(content: Mapping[str, Any]) -> BuildOptions:
    fields = dict(content)
    fields["capabilities"] = tuple(fields["capabilities"])
    for name in _REMOVED_OPTIONS:
        fields.pop(name, None)
    return BuildOptions(**fields)


def _unwritable(folder: Path, error: OSError) -> EngineError:
    return EngineError(
        f"plans cannot be written to {folder} ({reason_of(error)}); "
        f"{remedy_of(error, '--engine-cache')}"
    )
