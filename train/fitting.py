"""The argument of `Method.fit`: images, how long to train, and the phases that resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flawline.runtime.image import Image
from flawline.train.progress import Progress, Remark, no_progress, no_remark


@dataclass
class Fit:
    """The argument of `Method.fit`: images, how long to train, and where progress and state go.

    images: prepared good images, uint8 [H, W, 3] each; an access may decode a file.
    steps: optimiser steps in all; 1 in a method with a closed form.
    seed: of all random choices, from 0 to 2^31 - 1; `fit` is a function of it.
    deadline: when to stop, as `time.monotonic()` counts; a later run resumes from there.
    progress: is called with the kind of work, and how many of how many parts of it are done.
    save: writes a checkpoint of the method with the given training state.
    state: the training state of the run that is continued, or None in a new one.
    remark: is called with a few words about how the training goes, for the line of the progress.
    notes: lines for the user, such as a size that was chosen; `fit` appends to them.
    facts: what the provenance of the checkpoint says about the training; `fit` adds to it.
    """

    images: Sequence[Image]
    steps: int
    seed: int = 0
    deadline: float = math.inf
    progress: Progress = no_progress
    save: Callable[[dict[str, Any]], None] = lambda state: None
    state: dict[str, Any] | None = None
    remark: Remark = no_remark
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state = self.state or {}
        self.finished: list[str] = list(state.get("finished", ()))
        self.facts.update(state.get("facts", {}))
        self.begun: list[str] = []

    def phase(self, name: str) -> Phase:
        """Begin or resume a phase of the training; a method may have several, in order."""
        saved = None
        if self.state is not None and self.state["phase"] == name:
            saved = self.state["state"]
        self.begun.append(name)
        return Phase(self, name, saved)

    def missing(self, phases: Sequence[str]) -> tuple[str, ...]:
        """Return those of the phases that neither this run nor an earlier one has begun."""
        started = {*self.begun, *self.finished}
        return tuple(name for name in phases if name not in started)


@dataclass
class Phase:
    """A part of a training that resumes on its own.

    state: what this phase saved in the run that is continued, or None if it has to begin.
    """

    fit: Fit
    name: str
    state: dict[str, Any] | None

    @property
    def done(self) -> bool:
        """Whether an earlier run has finished this phase; its result is in the checkpoint."""
        return self.name in self.fit.finished

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint from which this phase resumes exactly; `state` is data only."""
        self._save(self.name, state)

    def finish(self) -> None:
        """Record that this phase is done and write a checkpoint; needed before another phase."""
        self.fit.finished.append(self.name)
        self._save("", None)

    def _save(self, name: str, state: dict[str, Any] | None) -> None:
        record = {"finished": list(self.fit.finished), "facts": dict(self.fit.facts)}
        self.fit.save({"phase": name, "state": state, **record})
