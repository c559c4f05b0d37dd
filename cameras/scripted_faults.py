"""Faults that a camera without hardware has on request, to try out what a station does about them.

faults=10:damaged,20:old,30:lost,40:stall,50:missing,60:size,70:mono
"""

from __future__ import annotations

DAMAGED = "damaged"
OLD = "old"
LOST = "lost"
STALL = "stall"
MISSING = "missing"
SIZE = "size"
MONO = "mono"
KINDS = {
    DAMAGED: "the frame is damaged",
    OLD: "the frame comes too late",
    LOST: "the camera fails",
    STALL: "the camera gives nothing",
    MISSING: "the camera counts a frame that never comes",
    SIZE: "from here on, frames have half the size",
    MONO: "from here on, frames are grey",
}


def parse_faults(text: str) -> dict[int, str]:
    """Parse `INDEX:KIND,INDEX:KIND`. Raises ValueError, which lists the kinds."""
    faults: dict[int, str] = {}
    for entry in text.split(","):
        number, _, kind = entry.partition(":")
        if not number.isdecimal() or kind not in KINDS:
            raise ValueError(f"faults: {entry!r} is not INDEX:KIND with one of {', '.join(KINDS)}")
        if int(number) in faults:
            raise ValueError(f"faults: frame {int(number)} has two")
        faults[int(number)] = kind
    return faults
