"""Caches on disk, for methods that read every image, or what belongs to it, in each epoch."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from flawline.runtime.files import keep_from_removal, remove_abandoned
from flawline.runtime.image import Image
from flawline.train.data.images import PreparedImages
from flawline.train.data.layouts import DataError

if TYPE_CHECKING:
    from flawline.train.progress import Progress

# Part of every file name: raise it when `prepare` gives other pixels or the file format changes.
CACHE_VERSION = 1
# The names of files that are being written, of any images.
PARTIAL = r"images-[0-9a-f]{32}-\w{8}\.partial"


class CachedImages(Sequence[Image]):
    """Prepared images in one memory-mapped file: uint8 [H, W, 3] BGR, decoded and resized once.

    The constructor fills the file, in order, and reports to `progress`. The operating system then
    holds as many images in memory as fit and reads the others from disk.

    Without a `folder` the file is temporary: it lies in the folder that TMPDIR names, and is freed
    with this object or when the process ends. In a `folder` it stays, and serves any later run with
    the same image files, geometry and bit depth; its name is a hash of these. It gets this name
    only when it is complete, so an interrupted run leaves no file that could be taken for a full
    cache.

    Raises DataError where the file cannot be written, for example on a full disk, and CameraError
    for an image that cannot be read. Raises ValueError where there are no images.
    """

    def __init__(
        self,
        images: PreparedImages,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not images:
            raise ValueError("there are no images to cache")
        if folder is None:
            self._pixels = _temporary_pixels(images, progress)
        else:
            self._pixels = _stored_pixels(images, folder, progress)

    def __len__(self) -> int:
        return len(self._pixels)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> CachedImages: ...

    def __getitem__(self, index: int | slice) -> Image | CachedImages:
        """Return a new array that the caller owns; a slice shares the file."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part._pixels = self._pixels[index]
            return part
        return np.array(self._pixels[index])


class ComputedArrays:
    """Arrays, uint8 and all of one shape, each computed once and then read from a temporary file.

    The file lies in the folder that TMPDIR names, has no name of its own, and is freed with this
    object or when the process ends. Detectors that are copied share it.
    """

    def __init__(self) -> None:
        with self._errors(), tempfile.TemporaryFile() as file:
            self._handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._handle)
        self._places: dict[bytes, int] = {}
        self._shape: tuple[int, ...] = ()

    def __deepcopy__(self, memo: dict[int, object]) -> ComputedArrays:
        return self

    def __len__(self) -> int:
        return len(self._places)

    def get(
        self, key: npt.NDArray[np.uint8], compute: Callable[[], npt.NDArray[np.uint8]]
    ) -> npt.NDArray[np.uint8]:
        """Return what `compute` returned for an array of this content, as a new array.

        Raises DataError where the file cannot be written.
        """
        digest = hashlib.blake2b(np.ascontiguousarray(key).tobytes(), digest_size=16).digest()
        place = self._places.get(digest)
        if place is None:
            computed = compute()
            self._append(computed)
            self._places[digest] = len(self._places)
            return computed
        size = int(np.prod(self._shape))
        stored = np.frombuffer(os.pread(self._handle, size, place * size), np.uint8)
        array: npt.NDArray[np.uint8] = stored.reshape(self._shape).copy()
        return array

    def _append(self, computed: npt.NDArray[np.uint8]) -> None:
        if self._shape and computed.shape != self._shape:
            raise ValueError(f"the shape is {computed.shape}, expected {self._shape}")
        self._shape = computed.shape
        # Written again from its begin if an earlier call was interrupted.
        place = len(self._places) * computed.nbytes
        with self._errors():
            written = os.pwrite(self._handle, computed.tobytes(), place)
            if written < computed.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    @contextmanager
    def _errors() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cache in {tempfile.gettempdir()}: cannot be written ({error.strerror}); set "
                "TMPDIR to a folder with more space"
            ) from error


def _temporary_pixels(images: PreparedImages, progress: Progress | None) -> npt.NDArray[np.uint8]:
    folder = Path(tempfile.gettempdir())
    try:
        # This file has no name, so the system frees it even after a crash.
        with tempfile.TemporaryFile() as file:
            _fill(file, images, progress)
            return np.memmap(file, np.uint8, "r", shape=_shape(images))
    except OSError as error:
        raise _cannot_write(folder, images, error) from error


def _stored_pixels(
    images: PreparedImages, folder: Path, progress: Progress | None
) -> npt.NDArray[np.uint8]:
    path = folder / f"images-{_fingerprint(images)}.uint8"
    try:
        if not _is_complete(path, images):
            folder.mkdir(parents=True, exist_ok=True)
            _write_stored(path, images, progress)
    except OSError as error:
        raise _cannot_write(folder, images, error) from error
    return np.memmap(path, np.uint8, "r", shape=_shape(images))


def _write_stored(path: Path, images: PreparedImages, progress: Progress | None) -> None:
    """Write a file of another name and rename it, so that `path` never holds half a cache."""
    # Each process has its own file: two that start together both finish, and the contents are
    # equal.
    remove_abandoned(path.parent, PARTIAL)
    handle, partial = tempfile.mkstemp(".partial", f"{path.stem}-", path.parent)
    try:
        with open(handle, "wb") as file:
            keep_from_removal(file)
            _fill(file, images, progress)
            os.fsync(handle)
        os.replace(partial, path)
    except BaseException:  # also KeyboardInterrupt: a file of many gigabytes must not stay
        os.unlink(partial)
        raise


def _fill(file: BinaryIO, images: PreparedImages, progress: Progress | None) -> None:
    # Reserve the space first, so that a full disk is reported at once and not after an hour. Then
    # write with write(): on a full disk, writing to a memory map would end the process by SIGBUS.
    os.posix_fallocate(file.fileno(), 0, _size(images))
    for done, image in enumerate(images, 1):
        file.write(image.tobytes())
        if progress is not None:
            progress("preparing images", done, len(images))
    file.flush()


def _is_complete(path: Path, images: PreparedImages) -> bool:
    return path.is_file() and path.stat().st_size == _size(images)


def _shape(images: PreparedImages) -> tuple[int, int, int, int]:
    geometry = images.geometry
    return (len(images), geometry.height, geometry.width, 3)


def _size(images: PreparedImages) -> int:
    """Return the size of the cache file in bytes."""
    return int(np.prod(_shape(images)))


def _fingerprint(images: PreparedImages) -> str:
    """Identify the images without reading them: by the paths, sizes and times of their files."""
    files = []
    for path in images.paths:
        status = path.stat()
        files.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    described = json.dumps([CACHE_VERSION, images.geometry.to_json(), images.bit_depth, files])
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def _cannot_write(folder: Path, images: PreparedImages, error: OSError) -> DataError:
    needed = f"{_size(images) / 2**20:.0f} MiB"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DataError(
            f"image cache in {folder}: not enough space for {needed} ({error.strerror}); free disk "
            "space there, or choose another folder (TMPDIR for a temporary one)"
        )
    return DataError(
        f"image cache in {folder}: cannot be written ({error.strerror}); "
        "check the folder and its permissions, or choose another folder"
    )
