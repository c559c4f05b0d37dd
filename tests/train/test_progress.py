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


def test_a_remark_is_in_the_line_of_the_current_work(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.remark("too early")
        bars("work", 1, 3)
        bars.remark("half of it counts")
        bars("work", 3, 3)
        bars("other work", 1, 1)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert [line for line in lines if "3/3" in line and "half of it counts" in line]
    assert not [line for line in lines if "other work" in line and "counts" in line]
    assert not [line for line in lines if "too early" in line]
