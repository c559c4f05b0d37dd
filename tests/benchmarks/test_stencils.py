"""The study of the exact forms of SimpleNet's patch aggregation."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch.nn import functional as F

from flawline.benchmarks.studies.stencils import measure
from flawline.benchmarks.studies.stencils.__main__ import main
from flawline.benchmarks.studies.stencils.forms import STENCILS, row_mean
from flawline.train.blocks.fused import patch_stencils

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", STENCILS)
def test_every_form_is_the_same_map(name: str) -> None:
    for kernel in patch_stencils((12, 24), 36, 36):
        kernel = kernel[kernel.flatten(1).abs().sum(1) > 0]
        weight = torch.randn(7, len(kernel), dtype=torch.float64)
        x = torch.randn(2, kernel.shape[1], 5, 6, dtype=torch.float64)
        expected = F.conv2d(F.conv2d(x, kernel, padding=1), weight[..., None, None])
        form = STENCILS[name](kernel, weight)
        assert form is not None
        torch.testing.assert_close(form.double()(x), expected, rtol=1e-9, atol=1e-9)


def test_a_row_mean_needs_rows_of_equal_taps() -> None:
    kernel = patch_stencils((8, 8), 100, 100)[0]
    assert row_mean(kernel, torch.randn(3, 100, dtype=torch.float64)) is None


def test_the_command_times_every_form_on_both_levels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "SETTLE_S", 0.0)
    monkeypatch.setattr(measure, "REPEATS", 1)
    assert main(["--size", "32", "--rounds", "1", "--threads", "1"]) == 0
    output = capsys.readouterr()
    for level in (2, 3):
        for name in STENCILS:
            assert f"layer{level}  {name} " in output.out
    assert not output.err
