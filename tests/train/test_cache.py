"""The cache of prepared images: the same pixels, one file, safe to interrupt and to reuse."""

from __future__ import annotations

import copy
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.cameras import CameraError
from flawline.runtime.files import keep_from_removal
from flawline.runtime.image import Geometry
from flawline.train.data import CachedImages, DataError, PreparedImages
from flawline.train.data.cache import ComputedArrays

GEOMETRY = Geometry("stretch", 32, 48)


def write_image(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


@pytest.fixture
def images(tmp_path: Path) -> PreparedImages:
    folder = tmp_path / "data"
    folder.mkdir()
    paths = [write_image(folder / f"{seed}.png", seed) for seed in range(5)]
    return PreparedImages(paths, GEOMETRY)


@pytest.fixture(params=["temporary", "folder"])
def cache_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "temporary":
        return None
    return tmp_path / "new" / "cache"


@pytest.fixture
def largest_file() -> Iterator[int]:
    """Limit files of this process to 1000 bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_cache_has_the_prepared_pixels(
    images: PreparedImages, cache_folder: Path | None
) -> None:
    cached = CachedImages(images, cache_folder)
    assert len(cached) == 5
    for index, image in enumerate(images):
        assert np.array_equal(cached[index], image)
    assert np.array_equal(cached[-1], images[4])
    assert np.array_equal(cached[np.int64(2)], images[2])
    with pytest.raises(IndexError):
        cached[5]
    assert len(list(cached)) == 5


def test_an_image_of_the_cache_belongs_to_the_caller(images: PreparedImages) -> None:
    cached = CachedImages(images)
    image = cached[0]
    assert image.dtype == np.uint8
    assert type(image) is np.ndarray
    image[:] = 0
    assert np.array_equal(cached[0], images[0])


def test_a_slice_is_a_cache_too(images: PreparedImages) -> None:
    part = CachedImages(images)[1:4]
    assert isinstance(part, CachedImages)
    assert len(part) == 3
    assert np.array_equal(part[0], images[1])
    assert len(part[5:]) == 0


def test_progress_is_reported_image_by_image(images: PreparedImages) -> None:
    reports: list[tuple[str, int, int]] = []
    CachedImages(images, progress=lambda *report: reports.append(report))
    assert reports == [("preparing images", done, 5) for done in (1, 2, 3, 4, 5)]


def test_a_temporary_cache_leaves_no_file(
    images: PreparedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    cached = CachedImages(images)
    assert not list(folder.iterdir())
    assert np.array_equal(cached[3], images[3])


def test_a_stored_cache_is_filled_once(images: PreparedImages, tmp_path: Path) -> None:
    CachedImages(images, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    before = file.stat().st_mtime_ns
    reports: list[tuple[str, int, int]] = []
    again = CachedImages(images, tmp_path / "cache", lambda *report: reports.append(report))
    assert not reports
    assert file.stat().st_mtime_ns == before
    assert np.array_equal(again[2], images[2])


def test_a_stored_cache_is_read_without_decoding(
    images: PreparedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = images[2]
    CachedImages(images, tmp_path / "cache")
    monkeypatch.setattr("flawline.train.data.images.read_image", None)
    assert np.array_equal(CachedImages(images, tmp_path / "cache")[2], expected)


@pytest.mark.parametrize("change", ["content", "geometry", "bit_depth", "fewer"])
def test_other_images_get_their_own_file(
    change: str, images: PreparedImages, tmp_path: Path
) -> None:
    CachedImages(images, tmp_path / "cache")
    paths = list(images.paths)
    other = images
    if change == "content":
        os.utime(write_image(paths[1], 99), ns=(0, 0))
    elif change == "geometry":
        other = PreparedImages(paths, Geometry("letterbox", 32, 48))
    elif change == "bit_depth":
        other = PreparedImages(paths, GEOMETRY, bit_depth=12)
    else:
        other = PreparedImages(paths[:4], GEOMETRY)
    cached = CachedImages(other, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    for index, image in enumerate(other):
        assert np.array_equal(cached[index], image)


@pytest.mark.parametrize("error", [KeyboardInterrupt, CameraError])
def test_an_interrupted_filling_is_not_taken_for_a_cache(
    error: type[BaseException], images: PreparedImages, cache_folder: Path | None
) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done == 3:
            raise error("stop")

    with pytest.raises(error):
        CachedImages(images, cache_folder, interrupt)
    if cache_folder is not None:
        assert not list(cache_folder.iterdir())
    assert np.array_equal(CachedImages(images, cache_folder)[4], images[4])


def test_a_file_that_was_cut_off_is_filled_again(images: PreparedImages, tmp_path: Path) -> None:
    CachedImages(images, tmp_path)
    (file,) = tmp_path.glob("*.uint8")
    file.write_bytes(file.read_bytes()[:-1])
    assert np.array_equal(CachedImages(images, tmp_path)[4], images[4])


def test_a_full_disk_is_one_line_with_a_remedy(
    images: PreparedImages, cache_folder: Path | None, largest_file: int
) -> None:
    with pytest.raises(
        DataError, match=r"not enough space for 0 MiB .*; free disk space"
    ) as caught:
        CachedImages(images, cache_folder)
    assert "\n" not in str(caught.value)
    if cache_folder is not None:
        assert str(cache_folder) in str(caught.value)
        assert not list(cache_folder.iterdir())


def test_a_disk_that_fills_up_while_writing_is_one_line(
    images: PreparedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(DataError, match="No space left on device"):
        CachedImages(images, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(
    images: PreparedImages, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be written .*; check the folder"):
        CachedImages(images, tmp_path / "cache")


def test_an_image_that_cannot_be_read_is_named(images: PreparedImages, tmp_path: Path) -> None:
    images.paths[3].write_bytes(b"rubbish")
    with pytest.raises(CameraError, match=r"3\.png"):
        CachedImages(images, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_an_empty_cache_is_refused(images: PreparedImages) -> None:
    with pytest.raises(ValueError, match="no images"):
        CachedImages(images[:0])


# ---------------------------------------------------------------- arrays computed from images


def rows_of(value: int) -> np.ndarray:
    return np.full((2, 3), value, np.uint8)


def test_arrays_are_computed_once_for_each_content() -> None:
    arrays = ComputedArrays()
    calls = []

    def compute(value: int) -> np.ndarray:
        calls.append(value)
        return rows_of(value)

    for value in (1, 2, 1, 3, 2):
        found = arrays.get(np.array([value], np.uint8), lambda value=value: compute(value))
        assert np.array_equal(found, rows_of(value))
        found[:] = 0  # it belongs to the caller
    assert calls == [1, 2, 3]
    assert len(copy.deepcopy(arrays)) == 3
    shared = copy.deepcopy(arrays).get(np.array([3], np.uint8), lambda: rows_of(9))
    assert np.array_equal(shared, rows_of(3))


def test_an_interrupted_computation_leaves_nothing() -> None:
    arrays = ComputedArrays()

    def interrupt() -> np.ndarray:
        raise KeyboardInterrupt

    key = np.zeros(1, np.uint8)
    with pytest.raises(KeyboardInterrupt):
        arrays.get(key, interrupt)
    assert np.array_equal(arrays.get(key, lambda: rows_of(1)), rows_of(1))
    with pytest.raises(ValueError, match=r"the shape is \(1,\), expected \(2, 3\)"):
        arrays.get(np.ones(1, np.uint8), lambda: np.zeros(1, np.uint8))


def test_a_full_disk_is_one_line_that_names_the_folder(largest_file: int) -> None:
    arrays = ComputedArrays()
    arrays.get(np.zeros(1, np.uint8), lambda: np.zeros(900, np.uint8))
    with pytest.raises(DataError, match=r"cannot be written .*TMPDIR"):
        arrays.get(np.ones(1, np.uint8), lambda: np.ones(900, np.uint8))
    assert np.array_equal(
        arrays.get(np.zeros(1, np.uint8), lambda: rows_of(1)), np.zeros(900, np.uint8)
    )


def test_what_a_killed_process_left_is_removed(images: PreparedImages, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    left = folder / f"images-{'0' * 32}-abcd_123.partial"
    written = folder / f"images-{'0' * 32}-abcd_124.partial"
    other = folder / "mine.partial"
    for file in (left, written, other):
        file.touch()
        os.utime(file, (0, 0))
    with written.open("wb") as writer:
        keep_from_removal(writer)
        os.utime(written, (0, 0))
        CachedImages(images, folder)
    assert not left.exists()
    assert {written, other} < set(folder.iterdir())
