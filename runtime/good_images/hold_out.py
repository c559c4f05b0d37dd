"""The hold-out: which good images train the detector, and which ones set its threshold."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from flawline.cameras.listing import count_of
from flawline.runtime.good_images import DataError, GoodImages

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


def require_different_images(hashes: Sequence[str]) -> None:
    """Raise DataError if all images, given by their content hashes, are copies of one image."""
    if len(set(hashes)) == 1:
        raise DataError(
            f"the {len(hashes)} good images are copies of one image, from which nothing follows "
            f"about other parts; give images of different parts"
        )
