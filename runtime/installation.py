"""What a command of a checkout prints that was never installed.

This file imports nothing of Flawline, because it is imported by the name of its folder.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def require_installation() -> None:
    """End the process with one line if flawline is not installed in this Python."""
    try:
        import flawline  # noqa: F401
    except ModuleNotFoundError:
        checkout = str(Path(__file__).resolve().parents[1])
        command = shlex.join([sys.executable, "-m", "pip", "install", "-e", checkout])
        print(f"flawline is not installed in this Python; run: {command}", file=sys.stderr)
        raise SystemExit(2) from None
