"""The part of a picture's file name that says what it shows, valid on every file system."""

from __future__ import annotations

import re
from pathlib import Path

from flawline.runtime.outputs import Judgement

# Characters that a file system of Windows, macOS or Linux does not accept, among them the
# surrogates that stand for bytes that are not UTF-8.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]')
# Names of 143 bytes are accepted by every file system, also by those that encrypt names.
LONGEST_SOURCE = 80  # bytes, of the source or of source and part together
LONGEST_PART = 48


def picture_label(judgement: Judgement) -> str:
    """Return camera, source and part of a frame for a file name; they are cut before the part."""
    frame = judgement.frame
    source = Path(frame.source).stem
    if judgement.camera is not None:
        # Frames of two cameras may have the same index and source.
        source = f"{judgement.camera}-{source}"
    if frame.part is None:
        return portable_name(source)
    part = portable_name(frame.part, LONGEST_PART)
    return f"{portable_name(source, LONGEST_SOURCE - len(part.encode()) - 1)}-{part}"


def portable_name(name: str, longest: int = LONGEST_SOURCE) -> str:
    """Return a name as a piece of a file name that every file system accepts.

    Forbidden characters become underscores, and a name of more than `longest` bytes is cut.
    """
    valid = FORBIDDEN.sub("_", name).encode()[:longest]
    # A character that was cut through is left out.
    return valid.decode(errors="ignore") or "frame"
