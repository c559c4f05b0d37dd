"""The process in which the checks are made, one after the other, as `examine` asks for them.

Each line of stdin is a request, and each line of stdout the answer, in JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from typing import Any

from flawline import FlawlineError
from flawline.runtime.console import describe_failure, first_line
from flawline.runtime.doctor import CHECKS
from flawline.runtime.doctor.finding import Finding, problem, split_remedy
from flawline.runtime.doctor.machine import Machine
from flawline.runtime.doctor.subject import completed, subject_from_json

FAILED = "the check itself failed"


def main() -> None:
    """Answer the requests of stdin until it ends."""
    # Libraries that print must not be taken for answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    machine = Machine()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(request, machine)), file=answers, flush=True)


def answer(request: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Answer a request: for the members of a check, or for what it finds.

    The request has the name of the `check`, the `member` or None, and the values of the `subject`.
    """
    check = CHECKS[request["check"]]
    member = request["member"]
    try:
        if member is None and check.members is not None:
            return {"members": list(resolve_function(check.members)())}
        subject = subject_from_json(request["subject"])
        # What is wrong with a station file is said by a check of its own.
        with suppress(Exception):
            subject = completed(subject)
        function = resolve_function(check.target)
        members = () if member is None else (member,)
        findings = collect(lambda: function(machine, subject, *members))
    except Exception as error:
        # Any library may be missing or broken.
        findings = [failed(error)]
    return {"findings": [asdict(finding) for finding in findings]}


def resolve_function(target: str) -> Any:
    """Import "module:function". Raises what the import raises."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def collect(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds. What it has found before it fails is kept."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:
        findings.append(failed(error))
    return findings


def failed(error: Exception) -> Finding:
    """Return the finding for an exception; those of Flawline have their remedy."""
    text = describe_failure(error)
    if text is None:
        reason = f"{type(error).__name__}: {first_line(error)}"
        return problem(f"{FAILED} ({reason})", "report it with this line")
    reason, remedy = split_remedy(text)
    if isinstance(error, FlawlineError) or remedy is not None:
        return problem(reason, remedy or "see above")
    return problem(f"{FAILED} ({reason})", "report it with this line")
