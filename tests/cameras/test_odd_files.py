"""Odd and damaged image files of every kind: the right pixels or a fault, and twice the same."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import odd_files
import pytest

from flawline.cameras import CameraError
from flawline.cameras.decode import decode_image

FEW = range(200)
MANY = range(10_000, 30_000)


@pytest.fixture(autouse=True)
def _no_warnings_of_other_decoders() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(path: Path) -> tuple[np.ndarray | None, str]:
    """Return the pixels and an empty text, or None and the fault."""
    try:
        return decode_image(path), ""
    except CameraError as error:
        return None, str(error)


def as_colour(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels


def check(seed: int, folder: Path) -> None:
    file = odd_files.make_file(seed)
    case = f"seed {seed}, {file.kind}, {file.damage}"
    path = folder / f"x{file.suffix}"
    path.write_bytes(file.data)
    pixels, fault = decode(path)
    again, fault_again = decode(path)
    assert fault == fault_again, case
    if pixels is None:
        assert again is None, case
        assert "\n" not in fault, case
        if file.damage == "good" and file.kind in odd_files.COMMON:
            assert "transparent" in fault, f"{case}: {fault}"
        return
    assert again is not None, case
    assert np.array_equal(pixels, again), case
    expected = odd_files.independent_pixels(file.data)
    assert np.array_equal(as_colour(pixels), as_colour(expected)), case


def test_a_few_odd_files(tmp_path: Path) -> None:
    for seed in FEW:
        check(seed, tmp_path)


@pytest.mark.slow
def test_many_odd_files(tmp_path: Path) -> None:
    for seed in MANY:
        check(seed, tmp_path)


def test_every_kind_and_every_damage_occurs() -> None:
    seen = set()
    for seed in FEW:
        rng = random.Random(seed)
        seen.add((rng.choice(list(odd_files.KINDS)), rng.choice(list(odd_files.DAMAGES))))
    assert {kind for kind, _ in seen} == set(odd_files.KINDS)
    assert {damage for _, damage in seen} == set(odd_files.DAMAGES)
