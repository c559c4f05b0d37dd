"""Which engines, cameras and outputs can be used on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flawline import cameras
from flawline.runtime import engines, outputs


def list_available() -> str:
    """List every engine, camera and output, one a line.

    A line says whether it is ready, with an example, what must be installed first, and what is
    untested.
    """
    return "\n".join(
        [
            "engines:",
            *_lines(engines.ENGINES, engines.engine_class, engines.missing),
            "cameras:",
            *_lines(cameras.CAMERAS, cameras.camera_class, cameras.missing),
            "outputs:",
            *_lines(outputs.OUTPUTS, outputs.output_class, outputs.missing),
        ]
    )


def _lines(
    names: Iterable[str],
    class_of: Callable[[str], type],
    missing: Callable[[str], str | None],
) -> list[str]:
    lines = []
    for name in names:
        reason = missing(name)
        state = "ready"
        if reason is not None:
            state = f"missing: {reason}"
        elif usage := getattr(class_of(name), "usage", ""):
            state = f"ready: {usage}"
        lines.append(f"  {name:<16}{state}{_note(name, class_of)}")
    return lines


def _note(name: str, class_of: Callable[[str], type]) -> str:
    """Return what is untested, in brackets, or nothing."""
    try:
        untested = getattr(class_of(name), "untested", None)
    except ImportError:
        # Its line already says what is missing.
        return ""
    if untested is None:
        return ""
    return f" (untested {untested})"
