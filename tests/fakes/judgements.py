"""Judgements for the tests of outputs."""

from __future__ import annotations

import numpy as np

from flawline.cameras import Frame
from flawline.runtime.detector import Verdict
from flawline.runtime.outputs import Judgement

IMAGE = np.zeros((48, 64, 3), np.uint8)


def judgement(index: int, part: str | None = None, *, can_wait: bool = False) -> Judgement:
    """Return a good part; with `can_wait` that of a folder, else that of a live camera."""
    verdict = Verdict(80.0, 100.0, False, None, {"prepare": 1.0, "infer": 2.0})
    frame = Frame("line", index, IMAGE, part=part)
    return Judgement(frame, verdict, 10.0, live=not can_wait, can_wait=can_wait)
