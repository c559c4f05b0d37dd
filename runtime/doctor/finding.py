"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass

# Nothing to do; something that may be wanted; something that keeps the machine from inspecting.
OK = "ok"
NOTE = "note"
PROBLEM = "problem"
LEVELS = (OK, NOTE, PROBLEM)


@dataclass(frozen=True)
class Finding:
    """One line of the report, and what to do; `level` is one of LEVELS."""

    level: str
    text: str
    remedy: str | None = None


def ok(text: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(OK, text)


def note(text: str, remedy: str | None = None) -> Finding:
    """Say what may be wanted, such as a faster mode."""
    return Finding(NOTE, text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """Say what keeps the machine from inspecting, and what to do about it."""
    return Finding(PROBLEM, text, remedy)


def split_remedy(message: str) -> tuple[str, str | None]:
    """Split one of Flawline's messages, "what is wrong (why); what to do about it"."""
    # The reason in brackets may have semicolons of its own.
    text, separator, remedy = message.partition("); ")
    if separator:
        return f"{text})", remedy
    text, _, remedy = message.partition("; ")
    return text, remedy or None
