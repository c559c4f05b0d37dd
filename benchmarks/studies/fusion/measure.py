"""Costs, errors and times of every form of a method in every engine, in one run."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flawline.benchmarks.measure.external import external_calls
from flawline.benchmarks.measure.meter import count_parameters, measure_cost
from flawline.benchmarks.measure.nodes import Node, bytes_written
from flawline.benchmarks.measure.sessions import InferenceCall, inference_call
from flawline.benchmarks.measure.timing import alternate
from flawline.benchmarks.published import find_published
from flawline.benchmarks.studies.fusion.engines import other_engines
from flawline.benchmarks.studies.fusion.forms import (
    BACKBONE,
    FUSED,
    LITERAL,
    ExportedForm,
    build_forms,
    exportable_forms,
)
from flawline.benchmarks.studies.fusion.rows import (
    AGAINST,
    EAGER,
    ONNX_RUNTIME,
    FusionResult,
    KindTotal,
    Row,
)
from flawline.benchmarks.studies.network import value_range
from flawline.runtime.image import Image
from flawline.train.method import Method

# Calls per turn, and untimed seconds before each turn.
REPEATS = 5
SETTLE_S = 0.3


def measure_forms(
    method: Method, images: Image, rounds: int, threads: int | None, against: Path | None = None
) -> FusionResult:
    """Measure every form of a method in every engine that is installed.

    `images` is uint8 [n, H, W, 3]: errors are measured on all of them, costs and times on the
    first. `against` is the ONNX model of another program, which is timed in turns too.
    Raises EngineError when it cannot be timed.
    """
    measurement = _Measurement(method, images, threads)
    if against is not None:
        # First of all, so that a wrong file is refused before the work.
        measurement.add_external_model(against)
    forms = build_forms(method)
    for label, module in forms.items():
        measurement.add_eager(label, module)
    measurement.add_eager_backbone(forms[FUSED])
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, ExitStack() as stack:
        for label, module in exportable_forms(method, forms).items():
            measurement.add_exported(label, module, Path(folder), stack)
        measurement.measure_errors()
        measurement.measure_times(rounds)
    return measurement.result


@dataclass(frozen=True)
class _Run:
    """A row and the call that is measured for it."""

    row: Row
    call: InferenceCall


class _Measurement:
    """The rows of one method and their calls, which are measured together at the end."""

    def __init__(self, method: Method, images: Image, threads: int | None) -> None:
        self.method = method
        self.images = images
        self.image = images[:1]
        self.threads = threads
        self.result = FusionResult()
        # The runs of forms by form and engine; their errors are measured.
        self.forms: dict[tuple[str, str], _Run] = {}
        # Runs of parts and of other models: they compute something else and are timed only.
        self.others: list[_Run] = []

    def add_external_model(self, path: Path) -> None:
        """Add the ONNX model of another program, in every engine that can run it."""
        size = (self.method.geometry.height, self.method.geometry.width)
        for name, call in external_calls(path, size, self.threads).items():
            self.others.append(_Run(Row(AGAINST, name), call))

    def add_eager(self, label: str, module: nn.Module) -> None:
        """Add a form in torch, and count what it computes and writes."""
        row = _eager_row(label, module, self.method, self.image)
        self.forms[label, EAGER] = _Run(row, partial(_run_eager, module))

    def add_eager_backbone(self, fused: Any) -> None:
        """Add the folded input and backbone of the fused form in torch."""

        def levels_of(image: Tensor) -> Sequence[Tensor]:
            levels: Sequence[Tensor] = fused.backbone(fused.input(image))
            return levels

        self.others.append(_Run(Row(BACKBONE, EAGER), partial(_run_eager, levels_of)))

    def add_exported(self, label: str, module: nn.Module, folder: Path, stack: ExitStack) -> None:
        """Add a form in ONNX Runtime and in every other engine that is installed.

        Bundles are written into `folder`; `stack` closes the engines.
        """
        exported = ExportedForm.of_module(module, self.method, self.image, self.threads)
        session = inference_call(exported.model, self.threads)
        self.forms[label, ONNX_RUNTIME] = _Run(_exported_row(label, exported), session)
        bundle = folder / str(len(self.forms))
        engines = other_engines(
            self.method, exported.model, self.images, bundle, self.threads, stack
        )
        for name, call in engines:
            self.forms[label, name] = _Run(Row(label, name), call)
        if label in (LITERAL, FUSED):
            self.result.kinds[label] = _totals_by_kind(exported.head)
        if label == FUSED:
            self.result.fused_head = sorted(exported.head, key=_slowest_first)
            backbone = inference_call(exported.backbone, self.threads)
            self.others.append(_Run(Row(BACKBONE, ONNX_RUNTIME), backbone))

    def measure_errors(self) -> None:
        """Fill in the error of every form, which is that from the literal form in torch."""
        reference = self.forms[LITERAL, EAGER].call(self.images)
        span = value_range(*reference)
        # Engines give empty maps in place of those that a method lacks, graphs give none.
        outputs = len(self.method.outputs)
        for run in self.forms.values():
            largest = 0.0
            results = run.call(self.images)[:outputs]
            for got, expected in zip(results, reference[:outputs], strict=True):
                # The built-in max() would drop a NaN.
                largest = float(np.maximum(largest, np.abs(got - expected).max()))
            run.row.error = largest / span

    def measure_times(self, rounds: int) -> None:
        """Fill in the median milliseconds of every row, all of them timed in turns."""
        runs = [*self.forms.values(), *self.others]
        calls = {}
        for index, run in enumerate(runs):
            calls[index] = partial(run.call, self.image)
        medians = alternate(calls, rounds, REPEATS, settle_s=SETTLE_S)
        for index, run in enumerate(runs):
            run.row.ms = medians[index]
            self.result.rows.append(run.row)


@torch.inference_mode()
def _eager_row(label: str, module: nn.Module, method: Method, image: Image) -> Row:
    """Count what a form computes and writes in torch for one image [1, H, W, 3]."""
    tensor = torch.from_numpy(image)
    levels = find_published(method.name).levels(method, tensor)
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


def _exported_row(label: str, exported: ExportedForm) -> Row:
    # By the sums and not by names: ONNX Runtime names the nodes that it adds by a counter.
    head_bytes = bytes_written(exported.nodes) - bytes_written(exported.backbone_nodes)
    return Row(
        label,
        ONNX_RUNTIME,
        head_bytes_written=head_bytes,
        onnx_nodes=exported.node_count,
    )


@torch.inference_mode()
def _run_eager(
    module: Callable[[Tensor], Sequence[Tensor]], images: Image
) -> Sequence[NDArray[Any]]:
    return [output.numpy() for output in module(torch.from_numpy(images))]


def _totals_by_kind(head: Sequence[Node]) -> list[KindTotal]:
    """Sum up nodes by their kind, the slowest kind first."""
    times: dict[str, list[float]] = defaultdict(list)
    for node in head:
        times[node.kind].append(node.milliseconds)
    totals = []
    for kind, milliseconds in times.items():
        totals.append(KindTotal(kind, len(milliseconds), sum(milliseconds)))
    return sorted(totals, key=lambda total: -total.ms)


def _slowest_first(node: Node) -> float:
    return -node.milliseconds
