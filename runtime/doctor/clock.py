"""The clock, whose time is in results, file names and the audit log."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flawline.runtime.doctor.finding import Finding, note, ok, problem
from flawline.runtime.doctor.machine import Machine, Subject

# A machine without a battery begins in 1970, or with the date of its system.
EARLIEST = time.mktime((2025, 1, 1, 0, 0, 0, 0, 0, 0))
SYNCHRONISED = ("timedatectl", "show", "--property=NTPSynchronized", "--value")


def check_clock(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Say whether the clock is set and synchronised."""
    yield from judge_clock(machine, time.time())


def judge_clock(machine: Machine, now: float) -> Iterator[Finding]:
    """Judge the clock at a time in Unix seconds."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < EARLIEST:
        yield problem(
            f"the clock says {shown}, so that results and the audit log have wrong times",
            "set it: sudo timedatectl set-ntp true, or sudo date -s",
        )
        return
    answer = machine.run(SYNCHRONISED)
    if answer is None:
        # A container has the clock of its host.
        yield ok(f"the clock says {shown}; whether it is synchronised is not known")
    elif answer.strip() == "yes":
        yield ok(f"the clock says {shown}, and is synchronised")
    else:
        yield note(
            f"the clock says {shown}, and is not synchronised",
            "sudo timedatectl set-ntp true, with a time server in the plant's network",
        )
