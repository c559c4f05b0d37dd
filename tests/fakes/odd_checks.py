"""Checks of the doctor that fail in every way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from flawline.runtime.doctor import Check, examine
from flawline.runtime.doctor.finding import Finding, ok
from flawline.runtime.doctor.machine import Machine, Subject

HERE = __name__
CHECKS = {
    "crash": Check(f"{HERE}:check_crash"),
    "hang": Check(f"{HERE}:check_hang", limit_s=1.0),
    "raise": Check(f"{HERE}:check_raise"),
    "absent": Check("no_such_module:check"),
    "members": Check(f"{HERE}:check_member", members=f"{HERE}:three_members"),
    "listing": Check(f"{HERE}:check_member", members=f"{HERE}:no_such_function"),
}


def make(name: str, member: str | None, subject: dict[str, Any]) -> list[dict[str, Any]]:
    """Make one of these checks, in the process for them."""
    with mock.patch.object(examine, "CHECKS", CHECKS):
        return examine.make(name, member, subject)


def check_crash(machine: Machine, subject: Subject) -> Iterator[Finding]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield ok("not reached")


def check_hang(machine: Machine, subject: Subject) -> Iterator[Finding]:
    time.sleep(60)
    yield ok("not reached")


def check_raise(machine: Machine, subject: Subject) -> Iterator[Finding]:
    yield ok("found before")
    raise RuntimeError("a broken library")


def check_member(machine: Machine, subject: Subject, name: str) -> Iterator[Finding]:
    if name == "second":
        os._exit(1)
    yield ok(f"member {name}")


def three_members() -> list[str]:
    return ["first", "second", "third"]
