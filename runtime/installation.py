"""What a command of a checkout prints that was never installed.

This file imports nothing of Flawline, because it is imported by the name of its folder.
"""

from __future__ import annotations

import sys


def require_installation() -> None:
    """End the process with one line if flawline is not installed in this Python."""
    try:
        import flawline  # noqa: F401
    except ModuleNotFoundError:
        print("flawline is not installed in this Python; run: pip install -e .", file=sys.stderr)
        raise SystemExit(2) from None
