"""The hold-out: which good images train the detector, and which ones set its threshold."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from flawline.cameras.listing import count_of
from flawline.os_errors import reason_of
from flawline.runtime.trained_images import content_hash
from flawline.train.data.dataset import DataError, DataSet, GoodImages

# Fewer good images leave too little to train on once some are held out.
MIN_GOOD_IMAGES = 5
# Share of the good images that is held out to set the threshold.
HELD_OUT_SHARE = 0.2


def hold_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split good images into training images and images held out to set the threshold.

    Each folder holds out a fifth of its images, rounded down, those whose names have the lowest
    hashes, so that a folder that comes or goes does not change the sides in other folders. The
    rest, up to a fifth of all images, rounded, comes from the next lowest hashes of all folders.
    Both sides get at least one image, and keep the order of `paths`.

    A name is the path below the folder of good images, or below the common folder if `paths` are no
    GoodImages. The split is therefore the same on every machine. Images that are added to a folder
    move its limit a little, so that a few images near it can change sides.

    Raises DataError for fewer than 5 images.
    """
    require_enough(len(paths))
    count = int(HELD_OUT_SHARE * len(paths) + 0.5)
    count = min(max(count, 1), len(paths) - 1)
    ranked = _ranked(paths)
    first = _first_of_each_folder(ranked)
    # The sort is stable: images of equal preference stay in the order of their ranks.
    ranked.sort(key=lambda path: path not in first)
    held_out = set(ranked[:count])

    training_images = []
    held_out_images = []
    for path in paths:
        if path in held_out:
            held_out_images.append(path)
        else:
            training_images.append(path)
    return training_images, held_out_images


def require_enough(images: int) -> None:
    """Raise DataError for fewer good images than a training and a threshold need."""
    if images < MIN_GOOD_IMAGES:
        raise DataError(
            f"only {count_of(images, 'good image')}; "
            f"at least {MIN_GOOD_IMAGES} are needed, 100 or more are better"
        )


def _ranked(paths: Sequence[Path]) -> list[Path]:
    """Return the images in the order of the hashes of their names."""
    if not isinstance(paths, GoodImages):
        common = os.path.commonpath([path.parent for path in paths])
        paths = GoodImages(paths, [Path(common)])
    ranks = {}
    for path in paths:
        # Two folders of good images can hold the same names; the path then decides.
        ranks[path] = (_rank(paths.name_of(path)), path)
    return sorted(paths, key=ranks.__getitem__)


def _first_of_each_folder(ranked: Sequence[Path]) -> set[Path]:
    """Return the first fifth of each folder, rounded down."""
    folders: dict[Path, list[Path]] = {}
    for path in ranked:
        folders.setdefault(path.parent, []).append(path)
    first: set[Path] = set()
    for inside in folders.values():
        # A fifth of 50 must not become 9 by the rounding of 0.2.
        count = int(HELD_OUT_SHARE * len(inside) + 1e-9)
        first.update(inside[:count])
    return first


def _rank(name: Path) -> bytes:
    """Map a relative path to bytes that look random and are always the same."""
    # The subfolder counts: some lines give the images of every part the same names. A name need
    # not be valid Unicode, and macOS composes accents in another way than Linux.
    text = os.fsencode(name.as_posix()).decode("utf-8", "surrogateescape")
    composed = unicodedata.normalize("NFC", text)
    return hashlib.sha256(composed.encode("utf-8", "surrogateescape")).digest()


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


def require_different_images(hashes: Sequence[str]) -> None:
    """Raise DataError if all images, given by their content hashes, are copies of one image."""
    if len(set(hashes)) == 1:
        raise DataError(
            f"the {len(hashes)} good images are copies of one image, from which nothing follows "
            f"about other parts; give images of different parts"
        )


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
