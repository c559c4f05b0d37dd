"""Check that a compiled plan can be served for a bundle, by the record that was written with it."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.export import ExportError
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines.tensorrt.plan_cache import RECORD


@dataclass(frozen=True)
class PlanFacts:
    """What a plan was built from.

    `precision` is what it computes in, and `graph` the precision of the bundle's graph that it was
    built from; TensorRT 8 builds FP16 plans from the FP32 graph. `max_batch` is its largest batch.
    """

    precision: str
    graph: str
    max_batch: int


def check_plan(bundle: Bundle, plan: Path, engine: str) -> PlanFacts:
    """Check that a plan was built for this bundle by this engine, and is whole.

    Raises ExportError otherwise: Triton would not load the plan, or would serve another model.
    """
    if not plan.is_file():
        raise ExportError(
            f"plan {plan}: there is no such file; build it on the server's GPU, then pass --plan"
        )
    record = _read_record(plan)
    try:
        identity = record["identity"]
        built_by = identity["engine"]
        precision = str(identity["precision"])
        source = str(identity["source"]).split()[0]
        digest = record["plan"]
        max_batch = int(record["options"]["max_batch"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _refusal(plan, f"its {RECORD} is not a record of a plan", bundle, engine) from error
    if built_by != engine:
        raise _refusal(plan, f"was built by {built_by}, and Triton needs {engine}", bundle, engine)
    graph = _graph_with_hash(bundle, source)
    if graph is None:
        raise _refusal(plan, f"was not built from a graph of {bundle.path}", bundle, engine)
    try:
        content = plan.read_bytes()
    except OSError as error:
        raise _refusal(plan, f"cannot be read ({error.strerror})", bundle, engine) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _refusal(plan, f"is not the plan that its {RECORD} describes", bundle, engine)
    return PlanFacts(precision, graph, max_batch)


def _read_record(plan: Path) -> dict[str, Any]:
    path = plan.with_name(RECORD)
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ExportError(
            f"plan {plan}: there is no {RECORD} next to it, which says how it was built; "
            f"pass the plan in the folder that export.build wrote"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(
            f"plan {plan}: its {RECORD} cannot be read ({error}); build the plan again"
        ) from error
    return record if isinstance(record, dict) else {}


def _graph_with_hash(bundle: Bundle, digest: str) -> str | None:
    """Return the precision of the bundle's graph with this hash; None if it has no such graph."""
    for precision in bundle.precisions:
        if bundle.model_sha256(precision) == digest:
            return precision
    return None


def _refusal(plan: Path, reason: str, bundle: Bundle, engine: str) -> ExportError:
    return ExportError(
        f"plan {plan}: {reason}; build it on the server's GPU: {build_command(bundle, engine)}"
    )


def build_command(bundle: Bundle, engine: str) -> str:
    """Return the command that builds a plan into the engines/ folder of a bundle."""
    folder = shlex.quote(str(bundle.path))
    return f"python -m export.build --bundle {folder} --engine {engine}"
