"""The engine and precision whose scores set a threshold, recorded where the precision is lossy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.strict_json import StrictReader


@dataclass(frozen=True)
class ScoredBy:
    """An engine, by its name in ENGINES, and the lossy precision that it computed in."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


def scored_by(engine: str, precision: str) -> ScoredBy | None:
    """Return what is recorded about a threshold from the scores of this engine and precision.

    It is None for a precision that is not lossy: every engine then gives the same scores within the
    tolerance, and the threshold is for all of them.
    """
    if PRECISIONS[precision].lossy:
        return ScoredBy(engine, precision)
    return None


def scored_by_from_json(content: Mapping[str, Any] | None) -> ScoredBy | None:
    """Read the record. Raises SchemaError for an unknown precision or one that is not lossy."""
    if content is None:
        return None
    reader = StrictReader(content, "scored_by")
    scored = ScoredBy(reader.take("engine", str), reader.take("precision", str))
    reader.finish()
    if scored.precision not in PRECISIONS or not PRECISIONS[scored.precision].lossy:
        reader.refuse(f"precision is {scored.precision!r}, which needs no threshold of its own")
    return scored
