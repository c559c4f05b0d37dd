"""How long a detector was trained, and whether that is as long as planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flawline.runtime.strict_json import StrictReader


@dataclass(frozen=True)
class TrainingLength:
    """The optimiser steps done and planned; 1 of 1 for a method that is fitted in one pass."""

    steps_done: int
    steps_planned: int

    @property
    def finished(self) -> bool:
        """False if the training was cut short, for example by --max-minutes."""
        return self.steps_done >= self.steps_planned

    def describe(self) -> str:
        """Return the length as text, such as "17 of 100 steps"."""
        return f"{self.steps_done} of {self.steps_planned} steps"


def length_to_json(length: TrainingLength | None) -> dict[str, Any] | None:
    """Return the content of `training` in a manifest, or of `length` in a checkpoint."""
    if length is None:
        return None
    return {
        "steps_done": length.steps_done,
        "steps_planned": length.steps_planned,
        "finished": length.finished,
    }


def length_from_json(content: Mapping[str, Any] | None) -> TrainingLength | None:
    """Read what `length_to_json` returned. Raises SchemaError."""
    if content is None:
        return None
    reader = StrictReader(content, "training")
    length = TrainingLength(
        steps_done=reader.take("steps_done", int),
        steps_planned=reader.take("steps_planned", int),
    )
    stated = reader.take_flag("finished")
    reader.finish()
    if not 0 <= length.steps_done <= length.steps_planned:
        reader.refuse("steps_done is not from 0 to steps_planned")
    if stated != length.finished:
        reader.refuse("finished contradicts the numbers of steps")
    return length
