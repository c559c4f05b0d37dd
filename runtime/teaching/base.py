"""What a teacher is: it computes from features what a method learns, as constants of its graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from flawline.runtime.teaching import OTHER_GRAPH, TeachError

if TYPE_CHECKING:
    from flawline.runtime.teaching.graph import Constants, TaughtGraph

Floats = npt.NDArray[np.float32]
# Called with a line about the work that begins.
Report = Callable[[str], None]


@dataclass(frozen=True)
class Learned:
    """What was learned from features.

    constants: of the graph, by their names.
    shift: what the graph with these constants adds to the features before it compares them, of a
        shape [d]; None where it adds nothing.
    distances: returns the distance of each position, float64 [P], to raw features [P, d], evaluated
        as the method is published and not as the graph is written.
    note: a line about it, such as its size.
    directions: by which raw features [P, d] are multiplied before the shift, [d, any]; None where
        the graph compares all of their dimensions.
    facts: what the provenance says about it.
    """

    constants: Constants
    shift: Floats | None
    distances: Callable[[Floats], npt.NDArray[np.float64]]
    note: str
    directions: Floats | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


class Teacher(ABC):
    """Learns from the features of good images, with the algorithm and the seed of the training.

    `graph` is that of a bundle of the method, and `settings` what its record says of the method.
    Features are float32 [n, P, d]: for each input of the graph, P positions with d values. Raises
    TeachError for a graph that is not as expected.
    """

    # Whether `append` adds to what a graph has learned.
    appends: ClassVar[bool] = False

    def __init__(self, graph: TaughtGraph, settings: dict[str, Any], seed: int) -> None:
        self.graph = graph
        self.settings = settings
        self.seed = seed

    def setting(self, name: str) -> Any:
        """Return a setting of the record. Raises TeachError if it is not there."""
        if name not in self.settings:
            raise TeachError(OTHER_GRAPH)
        return self.settings[name]

    @abstractmethod
    def raw(self) -> Constants:
        """Return the constants with which the graph gives raw features, without any shift."""

    @abstractmethod
    def study(self, features: Floats) -> None:
        """Take the features of all images, of which `learn` may choose some."""

    @abstractmethod
    def learn(self, chosen: Sequence[int]) -> Learned:
        """Learn from the inputs with these indices."""

    def known(self) -> Learned:
        """Return what the graph has learned already, with no constants to replace.

        Only called where `appends` is true.
        """
        raise NotImplementedError

    def append(self, limit: int | None) -> Learned:
        """Add what the features show to what the graph has learned.

        `limit` is the largest size of what is learned; None is a default of the teacher. Only
        called where `appends` is true. Raises TeachError.
        """
        raise NotImplementedError
