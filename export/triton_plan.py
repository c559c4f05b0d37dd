"""Check that a compiled plan can be served for a bundle, by the record that was written with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flawline.commands import program_of
from flawline.export import ExportError
from flawline.export.local_engine import build_command
from flawline.os_errors import reason_of
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines.tensorrt.plan_cache import RECORD, PlanUnusable, read_record
from flawline.runtime.files import sha256_of
from flawline.runtime.precisions import PRECISIONS


@dataclass(frozen=True)
class PlanFacts:
    """What a plan was built from.

    `precision` is what it computes in, and `graph` the precision of the bundle's graph that it was
    built from; TensorRT 8 builds FP16 plans from the FP32 graph. `max_batch` is its largest batch.
    `built_for` names the version of the library and the GPU, outside which TensorRT refuses it.
    """

    precision: str
    graph: str
    max_batch: int
    built_for: str


def check_plan(bundle: Bundle, plan: Path, engine: str) -> PlanFacts:
    """Check that a plan was built for this bundle by this engine, and is whole.

    Raises ExportError otherwise: Triton would not load the plan, or would serve another model.
    """
    if not plan.is_file():
        raise ExportError(
            f"plan {plan}: there is no such file; build it on the server's GPU: "
            f"{build_command(bundle, engine)}"
        )
    try:
        record = read_record(plan.with_name(RECORD))
    except FileNotFoundError as error:
        raise ExportError(
            f"plan {plan}: there is no {RECORD} next to it, which says how it was built; "
            f"pass the plan in the folder that {program_of('build')} wrote"
        ) from error
    except OSError as error:
        reason = f"its {RECORD} cannot be read ({reason_of(error)})"
        raise _refusal(plan, reason, bundle, engine) from error
    except PlanUnusable as unusable:
        raise _refusal(plan, f"its {RECORD} {unusable}", bundle, engine) from unusable
    identity = record.identity
    if identity.engine != engine:
        reason = f"was built by {identity.engine}, and Triton needs {engine}"
        raise _refusal(plan, reason, bundle, engine)
    if record.options.dla is not None:
        reason = "was built for a DLA, which this configuration does not select"
        raise _refusal(plan, reason, bundle, engine)
    graph = _graph_of(bundle, identity.source)
    if graph is None or identity.precision not in PRECISIONS:
        raise _refusal(plan, f"was not built from a graph of {bundle.path}", bundle, engine)
    try:
        digest = sha256_of(plan)
    except OSError as error:
        raise _refusal(plan, f"cannot be read ({reason_of(error)})", bundle, engine) from error
    if digest != record.sha256:
        raise _refusal(plan, f"is not the plan that its {RECORD} describes", bundle, engine)
    built_for = f"{engine} {identity.version}, {identity.description}"
    return PlanFacts(identity.precision, graph, record.options.max_batch, built_for)


def _graph_of(bundle: Bundle, source: str) -> str | None:
    """Return the precision of the bundle's graph that a plan was built from; None if it has none.

    `source` is the hash of the graph, then the FP32 islands that the builder was asked to observe.
    """
    digest, *islands = source.split(" ")
    if islands and tuple(islands) != bundle.manifest.fp32_islands:
        return None
    for precision in bundle.precisions:
        if bundle.model_sha256(precision) == digest:
            return precision
    return None


def _refusal(plan: Path, reason: str, bundle: Bundle, engine: str) -> ExportError:
    return ExportError(
        f"plan {plan}: {reason}; build it on the server's GPU: {build_command(bundle, engine)}"
    )
