"""Masks of test images on the grid of the maps, and the notes about them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from conftest import write_tiny_bundle

from flawline.benchmarks.grid_masks import read_masks
from flawline.runtime.inspected_area import InspectedArea
from flawline.train.data import Sample

HEIGHT, WIDTH = 96, 128


def sample(folder: Path, left: int, right: int) -> Sample:
    """A test image with a defect in these columns."""
    name = f"{left}-{right}"
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:60, left:right] = 255
    cv2.imwrite(str(folder / f"{name}.png"), image)
    cv2.imwrite(str(folder / f"{name}_mask.png"), mask)
    return Sample(folder / f"{name}.png", "spot", folder / f"{name}_mask.png")


def test_defects_outside_of_the_inspected_area_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_half = np.zeros((HEIGHT, WIDTH), bool)
    left_half[:, : WIDTH // 2] = True
    area = InspectedArea.of_mask(left_half)
    bundle = write_tiny_bundle(tmp_path / "b", inspected_area=area)
    inside = sample(tmp_path, 10, 30)
    across = sample(tmp_path, 50, 100)
    outside = [sample(tmp_path, 80, 100), sample(tmp_path, 90, 120)]
    assert len(read_masks([inside, across], bundle)) == 2
    assert "outside" not in capsys.readouterr().err
    assert len(read_masks([inside, *outside, across], bundle)) == 4
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: 2 defects outside of the inspected area of the bundle")
    plain = write_tiny_bundle(tmp_path / "plain")
    read_masks(outside, plain)
    assert capsys.readouterr().err == ""
