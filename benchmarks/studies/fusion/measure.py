"""Costs, errors and times of every form of a method in every engine, in one run."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flawline.benchmarks.measure.meter import count_parameters, measure_cost
from flawline.benchmarks.measure.nodes import Node, bytes_written
from flawline.benchmarks.measure.sessions import InferenceCall, foreign_session, plain_session
from flawline.benchmarks.measure.timing import alternate
from flawline.benchmarks.published.form import backbone_of
from flawline.benchmarks.studies.fusion.engines import other_engines
from flawline.benchmarks.studies.fusion.forms import (
    BACKBONE,
    FUSED,
    LITERAL,
    ExportedForm,
    build_forms,
    exportable_forms,
)
from flawline.runtime.image import Image
from flawline.train.method import Method

# Allowed difference, relative to the range of the literal map. Rounding gives a few 1e-6.
BOUND = 1e-4
EAGER = "torch eager"
ONNX_RUNTIME = "onnxruntime fp32"
AGAINST = "another's"
REPEATS = 5
SETTLE_S = 0.3


@dataclass
class Row:
    """One form in one engine. A value that was not measured is None.

    `macs`, `head_macs`, `head_bytes_written` and `ms` are of one image, `error` is the largest
    difference from the literal form in torch, relative to the range of its map.
    """

    form: str
    engine: str
    macs: int | None = None
    head_macs: int | None = None
    head_bytes_written: int | None = None
    parameters: int | None = None
    onnx_nodes: int | None = None
    error: float | None = None
    ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the values that were measured."""
        fields = asdict(self).items()
        return {name: value for name, value in fields if value is not None}


@dataclass(frozen=True)
class KindTotal:
    """How many nodes of one kind a head has, and their time together."""

    kind: str
    nodes: int
    ms: float


@dataclass
class FusionResult:
    """All rows; the heads of (b) and (c) by kind of node; the nodes of (c)'s head."""

    rows: list[Row] = field(default_factory=list)
    kinds: dict[str, list[KindTotal]] = field(default_factory=dict)
    fused_head: list[Node] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the result file."""
        kinds = {}
        for form, totals in self.kinds.items():
            kinds[form] = [asdict(total) for total in totals]
        left = []
        for node in self.fused_head:
            left.append(
                {
                    "node": node.name,
                    "kind": node.kind,
                    "ms": node.milliseconds,
                    "bytes_written": node.bytes_written,
                }
            )
        rows = [row.as_json() for row in self.rows]
        return {"rows": rows, "kinds": kinds, "left_in_the_head": left}


@dataclass(frozen=True)
class _Run:
    """A row and the call that is measured for it."""

    row: Row
    call: InferenceCall


def measure_forms(
    method: Method, images: Image, rounds: int, threads: int | None, against: Path | None = None
) -> FusionResult:
    """Measure every form of a method in every engine that is installed.

    `images` is uint8 [n, H, W, 3]: errors are measured on all of them, costs and times on the
    first. `against` is the ONNX model of another program, which is timed in turns with ours.
    Raises EngineError when it cannot be timed.
    """
    size = (method.geometry.height, method.geometry.width)
    foreign = []
    if against is not None:
        call = foreign_session(against, size, threads)
        foreign.append(_Run(Row(AGAINST, ONNX_RUNTIME), call))
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, ExitStack() as stack:
        forms = build_forms(method)
        eager = _eager_runs(method, forms, images[:1])
        runs = list(eager.values())
        result = FusionResult()
        backbones = [_Run(Row(BACKBONE, EAGER), _eager_call(_fused_backbone(forms[FUSED])))]
        for label, module in exportable_forms(method, forms).items():
            exported = ExportedForm.of_module(module, method.geometry, images[:1], threads)
            runs.append(_session_run(label, exported, threads))
            bundle = Path(folder) / str(len(runs))
            for name, call in other_engines(method, exported.model, images, bundle, threads, stack):
                runs.append(_Run(Row(label, name), call))
            if label in (LITERAL, FUSED):
                result.kinds[label] = _totals_by_kind(exported.head)
            if label == FUSED:
                result.fused_head = _slowest_first(exported.head)
                session = plain_session(exported.backbone, threads)
                backbones.append(_Run(Row(BACKBONE, ONNX_RUNTIME), session))
        _measure_errors(runs, eager[LITERAL], images)
        runs += [*backbones, *foreign]
        _measure_times(runs, images[:1], rounds)
    result.rows = [run.row for run in runs]
    return result


def inexact_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the FP32 rows whose error is above BOUND or not finite."""
    inexact = []
    for row in rows:
        fp32 = row.engine == EAGER or row.engine.endswith("fp32")
        if fp32 and row.error is not None and not row.error <= BOUND:
            inexact.append(row)
    return inexact


def _eager_runs(method: Method, forms: dict[str, nn.Module], image: Image) -> dict[str, _Run]:
    runs = {}
    for label, module in forms.items():
        row = _measure_costs(label, module, method, image)
        runs[label] = _Run(row, _eager_call(module))
    return runs


@torch.inference_mode()
def _measure_costs(label: str, module: nn.Module, method: Method, image: Image) -> Row:
    """Count what a form computes and writes in torch for one image [1, H, W, 3]."""
    tensor = torch.from_numpy(image)
    levels = backbone_of(method).extract(tensor)
    head: Callable[..., object] = module.head  # type: ignore[assignment]
    head_cost = measure_cost(partial(head, *levels))
    return Row(
        label,
        EAGER,
        macs=measure_cost(partial(module, tensor)).macs,
        head_macs=head_cost.macs,
        head_bytes_written=head_cost.bytes_written,
        parameters=count_parameters(module),
    )


def _session_run(label: str, exported: ExportedForm, threads: int | None) -> _Run:
    head_bytes = bytes_written(exported.nodes) - bytes_written(exported.backbone_nodes)
    row = Row(label, ONNX_RUNTIME, head_bytes_written=head_bytes, onnx_nodes=exported.node_count)
    return _Run(row, plain_session(exported.model, threads))


def _eager_call(module: Callable[[torch.Tensor], Sequence[torch.Tensor]]) -> InferenceCall:
    @torch.inference_mode()
    def call(image: Image) -> Sequence[NDArray[Any]]:
        outputs = module(torch.from_numpy(image))
        return [output.numpy() for output in outputs]

    return call


def _fused_backbone(fused: nn.Module) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """The folded input and backbone of a fused form."""
    folded: Any = fused

    def call(image: torch.Tensor) -> Sequence[torch.Tensor]:
        levels: Sequence[torch.Tensor] = folded.backbone(folded.input(image))
        return levels

    return call


def _measure_errors(runs: Sequence[_Run], literal: _Run, images: Image) -> None:
    """Fill in the error of every row, which is that from the literal form in torch."""
    reference = literal.call(images)
    span = float(np.ptp(reference[1]))
    for run in runs:
        largest = 0.0
        for got, expected in zip(run.call(images), reference, strict=True):
            # Not max(): it would drop a NaN.
            largest = float(np.maximum(largest, np.abs(got - expected).max()))
        run.row.error = largest / span


def _measure_times(runs: Sequence[_Run], image: Image, rounds: int) -> None:
    """Fill in the median milliseconds of every row, all of them timed in turns."""
    calls = {}
    for index, run in enumerate(runs):
        calls[index] = partial(run.call, image)
    medians = alternate(calls, rounds, REPEATS, settle_s=SETTLE_S)
    for index, milliseconds in medians.items():
        runs[index].row.ms = milliseconds


def _totals_by_kind(head: Sequence[Node]) -> list[KindTotal]:
    """Sum up nodes by their kind, the slowest kind first."""
    times: dict[str, list[float]] = defaultdict(list)
    for node in head:
        times[node.kind].append(node.milliseconds)
    totals = []
    for kind, milliseconds in times.items():
        totals.append(KindTotal(kind, len(milliseconds), sum(milliseconds)))
    return sorted(totals, key=lambda total: -total.ms)


def _slowest_first(nodes: Sequence[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: -node.milliseconds)
