"""The mirrored Gaussian against OpenCV's, and its matrix."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.train.blocks.mirrored_gaussian import mirrored_gaussian, mirrored_gaussian_matrix

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("size", [(14, 40), (13, 13)])
def test_the_filter_is_opencvs_with_a_mirrored_border(size: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).normal(size=size)
    got = mirrored_gaussian(torch.from_numpy(plane)[None, None], 4.0)[0, 0]
    expected = cv2.GaussianBlur(plane, (25, 25), 4.0, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("size", [(14, 40), (13, 64)])
def test_the_matrix_is_the_filter_of_a_line(size: tuple[int, int]) -> None:
    plane = torch.rand(1, 1, *size, dtype=torch.float64)
    rows = mirrored_gaussian_matrix(size[0], 4.0)
    columns = mirrored_gaussian_matrix(size[1], 4.0)
    expected = mirrored_gaussian(plane, 4.0)
    torch.testing.assert_close(rows @ plane @ columns.T, expected, atol=1e-12, rtol=0)
