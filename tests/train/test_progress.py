"""Progress bars."""

from __future__ import annotations

import contextlib

import pytest

pytest.importorskip("tqdm", reason="needs the train extra")

from flawline.train.progress import Bars

pytestmark = pytest.mark.torch


def test_the_current_bar_is_closed_at_the_end_of_the_block_also_after_an_error() -> None:
    bars = Bars()
    with contextlib.suppress(KeyboardInterrupt), bars:
        bars("work", 1, 3)
        bar = bars._bar
        raise KeyboardInterrupt
    assert bar is not None
    assert bar.disable  # tqdm's mark of a closed bar
    assert bars._bar is None
