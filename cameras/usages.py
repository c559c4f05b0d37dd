"""Examples of all cameras, for the help texts of commands."""

from __future__ import annotations

from flawline.cameras import CAMERAS, camera_class


def usages() -> str:
    """List an example of each camera of CAMERAS, for help texts."""
    examples = []
    for scheme in CAMERAS:
        try:
            usage = camera_class(scheme).usage
        except ImportError:
            # `--list` says what is missing.
            usage = ""
        examples.append(usage or f"{scheme}://")
    return ", ".join(examples)
