"""What long work shows: bars with an ETA, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Progress = Callable[[str, int, int], None]  # (what is being done, done, of how many)


class Bars:
    """Progress bars with an ETA on stderr, one per phase of the work."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bar is None or self._what != what:
            self.close()
            self._what = what
            # Written to a file, a bar is one line per redraw: seldom there.
            every = 0.2 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                total=total, desc=what, initial=done - 1, mininterval=every, dynamic_ncols=True
            )
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
