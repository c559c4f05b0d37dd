"""Progress of long work: the callback that reports it, and bars with an ETA on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flawline.runtime.console import Verbosity

if TYPE_CHECKING:
    from tqdm import tqdm

# Called with what is being done, how many steps of it are done, and how many there are.
Progress = Callable[[str, int, int], None]

# Seconds between redraws. In a file every redraw is a new line, so redraw rarely there.
REDRAW_TERMINAL_S = 0.2
REDRAW_FILE_S = 10.0


# Called with a few words about how the current work goes, for its line.
Remark = Callable[[str], None]


def no_progress(label: str, done: int, total: int) -> None:
    """Report nothing."""


def no_remark(text: str) -> None:
    """Show nothing."""


class Bars:
    """Progress bars with an ETA on stderr, one per kind of work.

    As a context manager, it closes the current bar at the end of the block, also after an error.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._label = ""

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of the work `label` are done."""
        if self._bar is None or self._label != label:
            self.close()
            self._label = label
            self._bar = _open_bar(label, done, total)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def remark(self, text: str) -> None:
        """Show a few words after the counts of the current bar, if there is one."""
        if self._bar is not None:
            # The next redraw shows them; a redraw of their own would be a line each in a file.
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Leave the current bar as it is; the next call opens another."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _open_bar(label: str, done: int, total: int) -> tqdm[Any]:
    from tqdm import tqdm

    interval = REDRAW_TERMINAL_S if sys.stderr.isatty() else REDRAW_FILE_S
    return tqdm(
        total=total,
        desc=label,
        initial=done - 1,
        mininterval=interval,
        dynamic_ncols=True,
        disable=Verbosity.quiet,
    )
