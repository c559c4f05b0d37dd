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
from flawline.cameras.decode import FileImage, decode_image, decode_images

FEW = range(200)
MANY = range(10_000, 30_000)


@pytest.fixture(autouse=True)
def _no_warnings_of_other_decoders() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_colour(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels


def check_one_image(case: str, path: Path, images: list[FileImage]) -> None:
    """Decoding a file as one image gives its only image, or an error."""
    fault = None
    try:
        pixels = decode_image(path)
    except CameraError as error:
        fault = str(error)
    if len(images) > 1:
        assert fault is not None, case
        return
    (only,) = images
    assert only.source == str(path), case
    assert fault == only.fault, case
    if only.image is not None:
        assert np.array_equal(pixels, only.image), case


def check(seed: int, folder: Path) -> None:
    file = odd_files.make_file(seed)
    case = f"seed {seed}, {file.kind}, {file.damage}"
    path = folder / f"x{file.suffix}"
    path.write_bytes(file.data)
    images = list(decode_images(path))
    again = list(decode_images(path))
    assert [image.fault for image in images] == [image.fault for image in again], case
    read = []
    for number, image in enumerate(images):
        if image.image is not None:
            assert np.array_equal(image.image, again[number].image), case
            read.append(number)
            continue
        fault = image.fault or ""
        assert fault.startswith(f"{image.source}: "), case
        assert "\n" not in fault, case
        if file.damage == "good" and file.kind in odd_files.COMMON:
            assert "transparent" in fault, f"{case}: {fault}"
    check_one_image(case, path, images)
    if not read:
        return
    count, expected = odd_files.independent_images(file.data, read)
    # A page that tifffile finds is never left out.
    assert len(images) >= count, case
    for number in read:
        pixels = images[number].image
        assert pixels is not None
        assert np.array_equal(as_colour(pixels), as_colour(expected[number])), case


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
