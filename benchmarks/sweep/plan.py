"""What a sweep trains and measures: the plan, its cells, and the engines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawline.benchmarks.run import choose_engines
from flawline.benchmarks.sweep.flags import check_flags
from flawline.benchmarks.sweep.shapes import PLAN
from flawline.benchmarks.sweep.store import (
    DamagedFileError,
    Store,
    SweepError,
    read_json,
    write_json,
)
from flawline.export.local_engine import NO_ENGINE
from flawline.runtime.console import log
from flawline.runtime.engines import REFERENCE_ENGINE, engine_class
from flawline.runtime.files import sha256_of
from flawline.runtime.precisions import FP32, PRECISIONS
from flawline.train import METHODS, TrainError
from flawline.train.backbones import DEFAULT_BACKBONE
from flawline.train.backbones.facts import IMAGENET, RANDOM

if TYPE_CHECKING:
    from flawline.benchmarks.interleaved import EngineChoice

ALL = "all"
NO_BACKBONE = "none"


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    data: the folders of the data sets, absolute, no two of the same name.
    methods, backbones, seeds: every combination is a cell; a method without a backbone is trained
        once for each data set and seed.
    weights: as for `flawline train`; an absolute path if it is a file.
    flags: method -> further flags of `flawline build`, for that method only.
    engines: NAME, NAME:PRECISION or NAME:all, or "all".
    threads: of CPU engines; None for the cores that the process may use.
    """

    data: tuple[str, ...] = ()
    methods: tuple[str, ...] = (ALL,)
    backbones: tuple[str, ...] = (DEFAULT_BACKBONE,)
    weights: str = IMAGENET
    seeds: tuple[int, ...] = (0,)
    flags: Mapping[str, str] | None = None
    engines: tuple[str, ...] = (REFERENCE_ENGINE,)
    threads: int | None = None


@dataclass(frozen=True)
class Cell:
    """One training of the plan. `backbone` and `weights` are "" for a method without a backbone."""

    method: str
    backbone: str
    weights: str
    data: str
    seed: int
    flags: str = ""

    @property
    def data_name(self) -> str:
        return Path(self.data).name

    @property
    def name(self) -> str:
        backbone = self.backbone or NO_BACKBONE
        return f"{self.method}-{backbone}-{self.data_name}-{self.seed}"

    def build_flags(self) -> list[str]:
        """Return the flags of `flawline build` that say what is trained."""
        # Which engine is fastest is measured in the sweep, which adds the graphs that it needs.
        words = ["--method", self.method, "--engine", NO_ENGINE, "--precision", FP32.name]
        if self.backbone:
            words += ["--backbone", self.backbone, "--weights", self.weights]
        return words + shlex.split(self.flags)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a bundle to be that of this cell.

        The data set is known by the names and sizes of its good images, and weights by their
        content, because both may be in another folder on another machine.
        """
        return {
            "method": self.method,
            "backbone": self.backbone,
            "weights": weights_identity(self.weights),
            "data": self.data_name,
            "data_sha256": _data_hash(self.data),
            "seed": self.seed,
            "flags": self.flags,
        }

    def test_identity(self) -> dict[str, str]:
        """Return what must be equal for a measurement to be on the test images of this cell.

        They are known by the names and sizes of the images and of their masks. Raises DataError.
        """
        return {"test_sha256": _test_hash(self.data)}


def read_plan(store: Store) -> Plan:
    """Return the plan of an earlier run in the same folder, or the default one.

    Raises SweepError for a damaged file.
    """
    record = read_plan_record(store)
    values: dict[str, Any] = {}
    for name in asdict(Plan()):
        if name in record:
            value = record[name]
            values[name] = tuple(value) if isinstance(value, list) else value
    return Plan(**values)


def read_plan_record(store: Store) -> dict[str, Any]:
    """Return the content of the plan's file, with the key `cells`; empty without a file.

    Raises SweepError for a damaged file.
    """
    try:
        record: dict[str, Any] = read_json(store.plan, PLAN) or {}
    except DamagedFileError as error:
        # A plan without the flags of the runs before would be another one.
        raise SweepError(f"{error}; correct it, or delete it and give all flags again") from error
    return record


def write_plan(store: Store, plan: Plan, cells: Sequence[Cell]) -> None:
    """Write the plan with its cells, which the processes of the trainings read. Raises OSError."""
    write_json(store.plan, {**asdict(plan), "cells": {cell.name: asdict(cell) for cell in cells}})


def read_cell(store: Store, name: str) -> Cell:
    """Return a cell of the plan in a folder. Raises SweepError if there is none of this name."""
    cells = read_plan_record(store).get("cells", {})
    if name not in cells:
        raise SweepError(f"{store.plan} has no cell {name}; its cells are: {', '.join(cells)}")
    values = {}
    for field in fields(Cell):
        if field.name in cells[name]:
            values[field.name] = cells[name][field.name]
    return Cell(**values)


def complete(plan: Plan) -> Plan:
    """Return the plan with absolute paths. Raises SweepError and EngineError for what is wrong."""
    folders: dict[str, str] = {}
    for folder in plan.data:
        path = Path(folder).resolve()
        if folders.setdefault(path.name, str(path)) != str(path):
            raise SweepError(
                f"--data {folder}: another data set has the name {path.name}, too; rename one"
            )
    if not folders:
        raise SweepError("no data set; give --data DATA or --demo")
    weights = plan.weights
    if Path(weights).is_file():
        weights = str(Path(weights).resolve())
    for method, flags in (plan.flags or {}).items():
        check_flags(method, flags)
    choices_of(plan)
    return replace(plan, data=tuple(folders.values()), weights=weights)


def cells_of(plan: Plan) -> list[Cell]:
    """Return the cells of a plan: all methods on a data set, then those on the next one.

    Methods of "all" that cannot be trained with these backbones and weights are left out, which is
    logged. Raises TrainError for an unknown method or backbone, and SweepError for no cell.
    """
    networks = _networks(plan)
    if not networks:
        raise SweepError("no method can be trained with these weights; see the notes above")
    cells = []
    for data in plan.data:
        for seed in plan.seeds:
            for method, backbone in networks:
                weights = plan.weights if backbone else ""
                flags = (plan.flags or {}).get(method, "")
                cells.append(Cell(method, backbone, weights, data, seed, flags))
    return cells


def _networks(plan: Plan) -> list[tuple[str, str]]:
    """Return each method with each backbone that it is trained with, "" for none."""
    from flawline.train.method import resolve_method

    # Named twice, a method is trained once; of "all", those that cannot be are left out.
    asked: dict[str, bool] = {}
    for name in plan.methods:
        if name == ALL:
            asked |= {method: True for method in METHODS if method not in asked}
        else:
            asked[name] = False
    networks: dict[tuple[str, str], None] = {}
    for method, may_be_left_out in asked.items():
        kind = resolve_method(method)
        for wanted in plan.backbones:
            backbone = wanted if kind.settings_for(wanted).backbone else ""
            if (method, backbone) in networks:
                continue
            reason = None
            if may_be_left_out:
                reason = _why_not(method, backbone, plan.weights)
            if reason is None:
                networks[method, backbone] = None
            else:
                log(f"note: left out {method} {backbone}: {reason}")
    return list(networks)


def _why_not(method: str, backbone: str, weights: str) -> str | None:
    """Say why a method cannot be trained with this backbone and its weights; None if it can."""
    from flawline.train.method import resolve_method

    kind = resolve_method(method)
    try:
        model = kind(kind.settings_for(backbone or kind.default_backbone))
        # Random weights need images, and are there for every backbone.
        if backbone and weights != RANDOM:
            model.load_weights(weights, 0, ())
    except TrainError as error:
        return str(error)
    return None


def choices_of(plan: Plan) -> list[EngineChoice]:
    """Return the engines with their precisions, each once. Raises EngineError, SweepError."""
    from flawline.benchmarks.interleaved import EngineChoice

    found: dict[tuple[str, str], EngineChoice] = {}
    for text in plan.engines:
        name, _, precision = text.partition(":")
        known = tuple(PRECISIONS)
        if name != ALL:
            known = engine_class(name).precisions
        if precision not in ("", ALL, *known):
            raise SweepError(f"--engines {text}: the precisions of {name} are {', '.join(known)}")
        for choice in choose_engines([name], precision or "auto", plan.threads):
            if choice.options.precision == "auto":
                default = engine_class(choice.name).precisions[0]
                choice = EngineChoice(choice.name, replace(choice.options, precision=default))
            found.setdefault((choice.name, choice.options.precision), choice)
    return list(found.values())


def precisions_of(plan: Plan) -> list[str]:
    """Return the precisions of the engines, each once."""
    return list(dict.fromkeys(choice.options.precision for choice in choices_of(plan)))


def data_names(cells: Iterable[Cell]) -> list[str]:
    """Return the names of the data sets, each once."""
    return list(dict.fromkeys(cell.data_name for cell in cells))


@cache
def weights_identity(weights: str) -> str:
    """Return the kind of the weights, or the name of their file with a part of its SHA-256."""
    path = Path(weights)
    if not weights or not path.is_file():
        return weights
    return f"{path.name} sha256:{sha256_of(path)[:16]}"


@cache
def _data_hash(folder: str) -> str:
    """Return a hash of the names and sizes of the good images of a data set. Raises DataError."""
    from flawline.train.data import open_data
    from flawline.train.data.split import list_hash

    return list_hash(open_data(folder).train_good)


@cache
def _test_hash(folder: str) -> str:
    """Return a hash of the names and sizes of the test images and masks. Raises DataError."""
    from flawline.train.data import open_data
    from flawline.train.data.split import samples_hash

    return samples_hash(open_data(folder))
