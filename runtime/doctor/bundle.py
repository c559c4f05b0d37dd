"""A bundle: whether it can be read, and what each engine makes of it on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flawline import FlawlineError
from flawline.commands import command_line
from flawline.runtime.audit.bundle_log import outside_change
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.doctor.finding import Finding, note, ok, problem, split_remedy
from flawline.runtime.doctor.machine import Machine, Subject
from flawline.runtime.engines import (
    EngineError,
    EngineOptions,
    engine_class,
    engines_of_machine,
    missing,
    open_engine,
    unusable_here,
)
from flawline.runtime.engines.auto import options_of_machine, select_engine
from flawline.runtime.precisions import PRECISIONS

# The precision of the reference, in which parts of every other graph compute.
PLAIN = "fp32"


def check_bundle(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Read the bundle, compare it with its audit log, and say what `auto` stands for."""
    if subject.bundle is None:
        return
    # Raises with what is wrong with it.
    bundle = read_bundle(subject.bundle)
    graphs = ", ".join(bundle.precisions)
    yield ok(f"{bundle.path}: {bundle.manifest.method}, {bundle.short_id}, graphs: {graphs}")
    change = outside_change(bundle.path)
    if change is not None:
        text, remedy = split_remedy(change)
        yield note(text, remedy)
    options = _options(subject)
    selected = select_engine(bundle, options, engines_of_machine())
    yield ok(f"--engine auto stands for {selected.engine} {selected.precision}")


def check_self_test(machine: Machine, subject: Subject, name: str) -> Iterator[Finding]:
    """Open the bundle with an engine in each precision that it has a graph for."""
    if subject.bundle is None or not _may_be_opened(name, subject):
        return
    try:
        bundle = read_bundle(subject.bundle)
    except FlawlineError:
        # The check of the bundle has said why.
        return
    kind = engine_class(name)
    for precision in kind.precisions:
        if bundle.has_graph(precision):
            yield _test(bundle, name, _options(subject, precision, kind.needs_server))


def _may_be_opened(name: str, subject: Subject) -> bool:
    if engine_class(name).needs_server:
        return subject.server is not None and missing(name) is None
    return unusable_here(name) is None


def _options(subject: Subject, precision: str = "auto", on_server: bool = False) -> EngineOptions:
    server = subject.server if on_server else None
    return EngineOptions(precision=precision, cache=subject.cache, server=server)


def _test(bundle: Bundle, name: str, options: EngineOptions) -> Finding:
    """Open an engine, which runs its self-test, and look at what it computes in."""
    kind = engine_class(name)
    title = f"{name} {options.precision}"
    is_default = options.precision == kind.precisions[0]
    try:
        reason = kind.uncompiled(bundle, options)
        if reason is not None:
            words = ("--bundle", bundle.path, "--engine", name, "--precision", options.precision)
            more = options_of_machine(options)
            return note(
                f"{title} has no plan for this machine ({reason}); the first start compiles it",
                command_line("build", *words, *more),
            )
        engine = open_engine(bundle, name, options)
    except EngineError as error:
        text, remedy = split_remedy(str(error))
        # Another precision of the engine can still be used.
        make = problem if is_default else note
        return make(f"{title}: {text}", remedy or "choose another engine")
    try:
        return judge_types(title, options.precision, engine.layer_types())
    finally:
        engine.close()


def judge_types(title: str, precision: str, types: Mapping[str, int]) -> Finding:
    """Compare the precision that an engine was asked for with what it computes in.

    `types` are those of `Engine.layer_types`.
    """
    text = f"{title}: self-test passed"
    if not types:
        return ok(f"{text}; the library does not state what its layers compute in")
    total = sum(types.values())
    ordered = sorted(types, key=list(PRECISIONS).index)
    shares = ", ".join(f"{types[name]} in {name}" for name in ordered)
    text += f"; of {total} layers, {shares}"
    if precision in types or precision == PLAIN:
        return ok(text)
    return problem(
        text, f"no layer computes in {precision}: choose another precision, or update the library"
    )
