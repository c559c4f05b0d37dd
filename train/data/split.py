"""Hashes of images: which ones were trained on, and which are copies of others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from flawline.os_errors import reason_of
from flawline.runtime.trained_images import content_hash
from flawline.train.data.dataset import DataError, DataSet


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """Return a hash of the content of each file, which identifies it under any name.

    A checkpoint and its bundle store the hashes of the training images.
    Raises DataError for a file that cannot be read.
    """
    hashes = []
    for path in paths:
        try:
            hashes.append(content_hash(path))
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({reason_of(error)}); check the path and its permissions"
            ) from error
    return hashes


def list_hash(paths: Sequence[Path]) -> str:
    """Hash the names and sizes of files: an unfinished training needs the same images again."""
    lines = []
    for path in paths:
        if path.exists():
            lines.append(f"{path.name} {path.stat().st_size}")
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]


def samples_hash(data_set: DataSet) -> str:
    """Hash the names and sizes of the test images and of their masks.

    A name is the path below the folder of the data set, which says what is defective. Raises
    DataError for a file that cannot be read.
    """
    lines = []
    for sample in data_set.test:
        files = [sample.path]
        if sample.mask is not None:
            files.append(sample.mask)
        lines.append(str(sample.defect))
        for path in files:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be read ({reason_of(error)}); check the path and its "
                    "permissions"
                ) from error
            lines.append(f"{os.path.relpath(path, data_set.root)} {size}")
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]


def without_copies(held_out: Sequence[Path], training: Sequence[Path]) -> list[Path]:
    """Return the held-out images without copies of training images, and each content once.

    The method has seen what a copy shows, and a second copy says no more than the first. Raises
    DataError for a file that cannot be read.
    """
    seen = set(content_hashes(training))
    chosen = []
    for path, content in zip(held_out, content_hashes(held_out), strict=True):
        if content not in seen:
            seen.add(content)
            chosen.append(path)
    return chosen


def require_not_trained_on(held_out: Sequence[Path], trained_on: Collection[str]) -> None:
    """Raise DataError if held-out images are among those that a checkpoint was trained on.

    Their scores are lower than those of other good parts, so that a threshold from them would be
    too low. `trained_on` are content hashes.
    """
    known = set(trained_on)
    trained = []
    for path, content in zip(held_out, content_hashes(held_out), strict=True):
        if content in known:
            trained.append(path)
    if trained:
        raise DataError(
            f"{len(trained)} of {len(held_out)} held-out images were trained on, such as "
            f"{trained[0]}, so that they cannot set the threshold; train again on this data set, "
            f"or give the one of the training with --data"
        )
