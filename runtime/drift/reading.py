"""What is read of a frame for the check of drift."""

from __future__ import annotations

from typing import NamedTuple

from flawline.runtime.image import Image


class Reading(NamedTuple):
    """The quantities of a frame by their names in QUANTITIES, and its small picture."""

    values: dict[str, float]
    picture: Image
