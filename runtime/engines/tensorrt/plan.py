"""Compiled plans on disk: which one may run here, and where a new one is kept.

    engines/tensorrt-fp16-orin-sm87/model.plan    what TensorRT compiled
    engines/tensorrt-fp16-orin-sm87/engine.json   what it was compiled by, from and for, and the plan's sha256

engine.json is written last, so that a plan without a fitting one is a torn write and is built again. Nothing in here
needs TensorRT or a GPU.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flawline.runtime.bundle import ENGINE_CACHE, Bundle
from flawline.runtime.engines import EngineError
from flawline.runtime.files import write_atomically

SCHEMA = 1
PLAN, RECORD = "model.plan", "engine.json"


class PlanRefused(EngineError):
    """The engine does not load a plan that fits on paper; one that is built anew may."""

    def __init__(self, engine: str, path: Path, why: str) -> None:
        super().__init__(f"{engine} does not load {path} ({why}); choose another --engine")
        self.path, self.why = path, why


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is asked for. Batches from 1 to `max_batch` run, `opt_batch` fastest.

    `level` is TensorRT's optimisation level 0 to 5, `workspace_mib` a limit on scratch memory, `dla` a DLA core
    (batch 1 only), `capabilities` the compute capabilities that a portable plan is for, such as 86 for 8.6.
    """

    opt_batch: int = 1
    max_batch: int = 8
    level: int | None = None
    workspace_mib: int | None = None
    dla: int | None = None
    capabilities: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= self.max_batch:
            raise EngineError(
                f"--opt-batch {self.opt_batch} is not between 1 and --max-batch {self.max_batch}"
            )
        if self.level is not None and not 0 <= self.level <= 5:
            raise EngineError(f"--builder-level {self.level} is not between 0 and 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise EngineError(
                f"--workspace-mib {self.workspace_mib} is not at least 1; leave it out for no limit"
            )
        if self.dla is not None and self.max_batch != 1:
            raise EngineError("a DLA runs batch 1 only; add --max-batch 1")


@dataclass(frozen=True)
class Identity:
    """What a plan was built by, from and for. `source` is the ONNX file's sha256 and what else decides the types.

    `device` is None where plans are portable, and `capabilities` may then be several; else they are one GPU's.
    """

    engine: str
    version: str
    precision: str
    source: str
    device: str | None
    capabilities: tuple[int, ...]

    @property
    def told(self) -> str:
        return f"{self.device or 'compute capability'} {', '.join(f'{c // 10}.{c % 10}' for c in self.capabilities)}"


@dataclass(frozen=True)
class Plan:
    """A plan on disk and what it was built with."""

    path: Path
    options: BuildOptions


def folder_name(
    engine: str, precision: str, device: str | None, capabilities: tuple[int, ...]
) -> str:
    """One per engine, precision and machine. All else is in the record, so that a change can be told."""
    machine = "-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") if device else ""
    return f"{engine}-{precision}{machine}-sm{'-'.join(map(str, capabilities))}"


def cache_folder(bundle: Bundle, cache: Path | None) -> Path:
    """Where this bundle's plans are kept: in the bundle, or in its own folder of a cache that serves several."""
    if cache is None:
        return bundle.path / ENGINE_CACHE
    path = bundle.path.resolve()
    return cache / f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def find_plan(
    cache: Path, wanted: Identity, own: Path, options: BuildOptions | None
) -> tuple[Plan | None, str]:
    """A plan in `cache` that may run as `wanted`, or None and why what is there may not.

    `own` is where this machine keeps its plan. `options` None takes a plan whatever it was asked for: whoever built
    it for this machine chose.
    """
    reasons = []
    others = sorted(
        p.parent
        for p in cache.glob(f"{wanted.engine}-{wanted.precision}-*/{RECORD}")
        if p.parent != own
    )
    for folder in (own, *others):
        if (folder / RECORD).is_file():
            plan, why = _read(folder, wanted, options)
            if plan is not None:
                return plan, ""
            reasons.append(f"that in {folder} {why}")
    return None, reasons[0] if reasons else "there is none yet"


def recorded_options(folder: Path) -> BuildOptions | None:
    """What the plan in this folder was asked for: a newer TensorRT or model does not undo it."""
    try:
        return _options(json.loads((folder / RECORD).read_bytes())["options"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, EngineError):
        return None


def _read(folder: Path, wanted: Identity, options: BuildOptions | None) -> tuple[Plan | None, str]:
    """The plan of this folder, or None and what is wrong with it."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if record["schema"] != SCHEMA:
            return None, f"has schema {record['schema']!r}, this version reads {SCHEMA}"
        identity = record["identity"]
        found = Identity(**{**identity, "capabilities": tuple(identity["capabilities"])})
        built = _options(record["options"])
        if found.version != wanted.version:
            return None, f"was built by version {found.version}, here is {wanted.version}"
        if found.device != wanted.device or not set(wanted.capabilities) <= set(found.capabilities):
            return None, f"is for {found.told}, here is {wanted.told}"
        if found.source != wanted.source:
            return None, "belongs to another model: the bundle was built again"
        if options is not None and built != options:
            return (
                None,
                f"was built with other options ({_difference(asdict(built), asdict(options))})",
            )
        if hashlib.sha256((folder / PLAN).read_bytes()).hexdigest() != record["plan"]:
            return None, f"is damaged: its sha256 is not that of {RECORD}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError, EngineError) as error:
        return None, f"cannot be read ({type(error).__name__}: {error})"
    return Plan(folder / PLAN, built), ""


def _options(content: Mapping[str, Any]) -> BuildOptions:
    return BuildOptions(**{**content, "capabilities": tuple(content["capabilities"])})


def _difference(built: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {built[n]}, asked for {asked[n]}" for n in asked if built[n] != asked[n])


def keep_plan(folder: Path, identity: Identity, options: BuildOptions, plan: bytes) -> Plan:
    """Write the plan, then its record, each whole or not at all. Raises EngineError where they cannot be written."""
    record = {
        "schema": SCHEMA,
        "identity": asdict(identity),
        "options": asdict(options),
        "plan": hashlib.sha256(plan).hexdigest(),
    }
    try:
        write_atomically(folder / PLAN, plan)
        write_atomically(
            folder / RECORD, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
        )
    except OSError as error:
        raise _unwritable(folder, error) from error
    return Plan(folder / PLAN, options)


def make_writable(folder: Path) -> None:
    """Make the folder and try it: asked before minutes of building. Raises EngineError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> EngineError:
    why = error.strerror or str(error)
    return EngineError(
        f"plans cannot be kept in {folder} ({why}); choose --engine-cache DIR, or free the disk"
    )
