"""Engines: which can be used, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator

from flawline.runtime.doctor.finding import Finding, note, ok, problem, split_remedy
from flawline.runtime.doctor.gpu import has_gpu
from flawline.runtime.doctor.machine import Machine, Subject


def engine_names() -> list[str]:
    """Return the names of all engines."""
    from flawline.runtime.engines import ENGINES

    return list(ENGINES)


def check_engine(machine: Machine, subject: Subject, name: str) -> Iterator[Finding]:
    """Say whether an engine can be used, with its version and precisions, or what is missing."""
    from flawline.runtime.engines import engine_class, missing

    reason = missing(name)
    if reason is not None:
        yield note(f"{name} cannot be used", reason)
        return
    kind = engine_class(name)
    reasons = {precision: kind.unsuited(precision) for precision in kind.precisions}
    usable = [precision for precision, reason in reasons.items() if reason is None]
    text = f"{name} {kind.installed()}: {', '.join(usable)}"
    if kind.needs_server:
        text += f", on a server: {kind.usage}"
    if kind.untested is not None:
        text += f" (untested {kind.untested})"
    yield ok(text)
    for precision, reason in reasons.items():
        if reason is not None:
            why, remedy = split_remedy(reason)
            yield note(f"{name} does not run {precision}: {why}", remedy)


def check_gpu_use(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Require an engine that can be used, and one for the GPU if there is a GPU."""
    from flawline.runtime.engines import ENGINES, engine_class, unusable_here

    usable = [name for name in ENGINES if unusable_here(name) is None]
    on_gpu = [name for name in ENGINES if engine_class(name).has_device_memory]
    if not usable:
        yield problem(
            "no engine can be used, so that nothing can be judged", "install one of those above"
        )
    elif has_gpu(machine) or machine.jetson is not None:
        used = [name for name in on_gpu if name in usable]
        if used:
            yield ok(f"the GPU is used by {', '.join(used)}")
        else:
            yield problem(
                f"the GPU is not used, because {' and '.join(on_gpu)} cannot be used",
                "do what their lines say, or leave it at the CPU",
            )
    else:
        yield ok(f"without a GPU, {usable[0]} comes first, unless another one was measured")
