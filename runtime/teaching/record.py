"""What the metadata of a graph say to a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flawline.runtime.strict_json import SchemaError, StrictReader, parse_json

# The key of the metadata.
TEACHING = "flawline.teaching"


@dataclass(frozen=True)
class TeachingRecord:
    """Names of tensors of a graph, and the settings of its method.

    `features` [N, d, ...] are what the method compares with what it learned, and `distances`
    [N, ...] the result for each position.
    """

    features: str
    distances: str
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the metadata."""
        return {
            "features": self.features,
            "distances": self.distances,
            "settings": dict(self.settings),
        }


def record_from_json(data: bytes) -> TeachingRecord:
    """Read what `to_json` returned. Raises SchemaError."""
    reader = StrictReader(parse_json(data), TEACHING)
    record = TeachingRecord(
        features=reader.take("features", str),
        distances=reader.take("distances", str),
        settings=reader.take("settings", dict),
    )
    reader.finish()
    if not record.features or not record.distances:
        raise SchemaError(f"{TEACHING}: a name is empty")
    return record
