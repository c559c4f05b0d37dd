"""Patch aggregation and smoothing against closed forms and scipy."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images
from torch.nn import functional as F

from flawline.runtime import large_array
from flawline.train import TrainError
from flawline.train.blocks.patches import collect_features, patch_features, smoothed_map
from flawline.train.progress import no_progress

pytestmark = pytest.mark.torch


def test_aggregation_is_the_published_stencil() -> None:
    """512 and 1024 channels pooled to 1024 twice have a closed form: weighted 3x3 means.

    Rows of layer3 are means of pairs of channels.
    """
    generator = torch.Generator().manual_seed(0)
    level2 = torch.randn(1, 512, 6, 6, generator=generator).double()
    level3 = torch.randn(1, 1024, 3, 3, generator=generator).double()

    class Backbone:
        def extract(self, image: Any) -> Any:
            return level2, level3

    backbone: Any = Backbone()
    got = patch_features(backbone, torch.zeros(1), 1024, 1024)[0].permute(2, 0, 1)
    kernel = torch.full((512, 1, 3, 3), 0.1).double()
    kernel[:, :, 1, 1] = 0.2
    fine = F.conv2d(level2, kernel, padding=1, groups=512)[0]
    boxes = F.avg_pool2d(level3, 3, 1, 1)
    boxes = F.interpolate(boxes, size=(6, 6), mode="bilinear")[0]
    expected = torch.cat([fine, (boxes[0::2] + boxes[1::2]) / 2])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_smoothing_is_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    score = torch.randn(2, 64, 48, dtype=torch.float64)
    expected = [ndimage.gaussian_filter(one.numpy(), sigma=4) for one in score]
    np.testing.assert_allclose(smoothed_map(score, (64, 48), 4.0).numpy(), expected, atol=1e-12)


def test_features_in_memory_and_on_disk_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    images = list(random_images(32, 5).numpy())
    reported: list[tuple[str, int, int]] = []

    def collect() -> Any:
        def compute(batch: Any) -> Any:
            return batch.float().mean(3)

        report = lambda *now: reported.append(now)  # noqa: E731
        return collect_features(images, compute, torch.device("cpu"), str(tmp_path), report)

    in_memory = collect()
    assert type(in_memory) is np.ndarray
    assert in_memory.shape == (5, 32, 32)
    assert in_memory.dtype == np.float32
    assert reported == [("features", done, 5) for done in range(1, 6)]
    monkeypatch.setattr(large_array, "MEMORY_MAP_ABOVE", 0)
    on_disk = collect()
    assert isinstance(on_disk, np.memmap)
    np.testing.assert_array_equal(on_disk, in_memory)


def test_a_full_disk_is_one_line_and_stays_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Writing to a memory map there would end the process by SIGBUS."""

    def no_space(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(large_array, "MEMORY_MAP_ABOVE", 0)
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    images = list(random_images(32, 5).numpy())
    with pytest.raises(TrainError, match=r"No space left on device\); set TMPDIR"):
        collect_features(
            images,
            lambda batch: batch.float().mean(3),
            torch.device("cpu"),
            str(tmp_path),
            no_progress,
        )
    assert list(tmp_path.iterdir()) == []


def test_features_on_disk_have_their_space_reserved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(large_array, "MEMORY_MAP_ABOVE", 0)
    images = list(random_images(32, 5).numpy())
    collect_features(
        images, lambda batch: batch.float().mean(3), torch.device("cpu"), str(tmp_path), no_progress
    )
    (path,) = tmp_path.iterdir()
    assert 512 * path.stat().st_blocks >= path.stat().st_size == 5 * 32 * 32 * 4
