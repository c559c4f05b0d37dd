"""The result of the fusion study: rows, and the nodes of the heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from flawline.benchmarks.measure.nodes import Node
from flawline.runtime.engines import REFERENCE_ENGINE
from flawline.runtime.precisions import FP32

# Allowed error of FP32, relative to the range of the literal map, or of scores without one.
# Rounding gives a few 1e-6.
BOUND = 1e-4
EAGER = "torch eager"
ONNX_RUNTIME = f"{REFERENCE_ENGINE} {FP32.name}"
AGAINST = "external model"


@dataclass
class Row:
    """One form in one engine. A value that was not measured is None.

    `macs`, `head_macs`, `head_bytes_written` and `ms` are of one image, `error` is the largest
    difference from the literal form in torch, relative to the range of its map, or of its scores
    where there is no map.
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
    """The number of nodes of one kind in a head, and their time together."""

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


def inexact_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the FP32 rows whose error is above BOUND or not finite."""
    inexact = []
    for row in rows:
        fp32 = row.engine == EAGER or row.engine.endswith(FP32.name)
        if fp32 and row.error is not None and not row.error <= BOUND:
            inexact.append(row)
    return inexact
