"""Which engines, cameras and outputs can be used here."""

from __future__ import annotations

from flawline import cameras
from flawline.runtime import engines, outputs


def list_available() -> str:
    """List every engine, camera and output, one a line.

    A line says whether it is ready, what must be installed first, and what is untested.
    """
    lines = ["engines:"]
    for name in engines.ENGINES:
        lines.append(_line(name, engines.missing(name), engines.engine_class(name).untested))
    lines.append("cameras:")
    for name in cameras.CAMERAS:
        lines.append(_line(name, cameras.missing(name), cameras.camera_class(name).untested))
    lines.append("outputs:")
    for name in outputs.OUTPUTS:
        lines.append(_line(name, outputs.missing(name), outputs.output_class(name).untested))
    return "\n".join(lines)


def _line(name: str, missing: str | None, untested: str | None) -> str:
    state = "ready"
    if missing is not None:
        state = f"missing: {missing}"
    note = ""
    if untested is not None:
        note = f" (untested {untested})"
    return f"  {name:<16}{state}{note}"
