"""Making the checks, in a process of their own that is started again if one ends or blocks it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from typing import Any

from flawline.runtime.console import describe_failure, first_line
from flawline.runtime.doctor import CHECKS
from flawline.runtime.doctor.finding import Finding, problem, split_remedy
from flawline.runtime.doctor.machine import Machine, Subject
from flawline.runtime.doctor.subject import completed, subject_from_json, subject_to_json
from flawline.runtime.isolated import CallFailed, IsolatedProcess

HERE = "flawline.runtime.doctor.examine"


def examine(names: Iterable[str], subject: Subject) -> Iterator[tuple[str, Finding]]:
    """Make the checks with these names of CHECKS; yield each finding with the name of its check."""
    with IsolatedProcess() as process:
        for name in names:
            for finding in _examine(process, name, subject):
                yield name, finding


def _examine(process: IsolatedProcess, name: str, subject: Subject) -> Iterator[Finding]:
    check = CHECKS[name]
    members: list[str | None] = [None]
    try:
        if check.members is not None:
            members = process.call(check.members, limit_s=check.limit_s)
    except CallFailed as failure:
        yield _unknown(name, failure)
        return
    values = subject_to_json(subject)
    for member in members:
        title = name if member is None else member
        try:
            found = process.call(f"{HERE}:make", name, member, values, limit_s=check.limit_s)
        except CallFailed as failure:
            yield _unknown(title, failure)
            continue
        for finding in found:
            yield Finding(**finding)


def _unknown(title: str, failure: CallFailed) -> Finding:
    return problem(f"{title}: the check {failure}", "install again what it loads")


def make(name: str, member: str | None, subject: dict[str, Any]) -> list[dict[str, Any]]:
    """Make a check of CHECKS, for a member if it has members; return its findings as JSON.

    `subject` is as of `subject_to_json`. What was found before an exception is kept.
    """
    wanted = subject_from_json(subject)
    # What is wrong with a station file is said by a check of its own.
    with suppress(Exception):
        wanted = completed(wanted)
    members = () if member is None else (member,)
    findings: list[Finding] = []
    try:
        module, _, function = CHECKS[name].target.partition(":")
        check = getattr(import_module(module), function)
        findings.extend(check(Machine(), wanted, *members))
    except Exception as error:
        # Any library may be missing or broken.
        findings.append(failed(error))
    return [asdict(finding) for finding in findings]


def failed(error: Exception) -> Finding:
    """Return the finding for an exception; the messages of Flawline have their remedy."""
    text = describe_failure(error)
    if text is None:
        reason = f"{type(error).__name__}: {first_line(error)}"
        return problem(f"the check failed ({reason})", "report it with this line")
    reason, remedy = split_remedy(text)
    return problem(reason, remedy or "see the lines above")
