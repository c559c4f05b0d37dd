"""Hashes of the images that a detector was trained on, which must not set its threshold.

A detector gives them lower scores than other good parts, so that a threshold from them would reject
more good parts than it states.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from flawline import FlawlineError
from flawline.runtime.files import sha256_of
from flawline.runtime.strict_json import StrictReader

# In the manifest. The second ones are good images that were left out of the training.
TRAINED_IMAGES = "trained_images"
EXCLUDED_IMAGES = "excluded_images"
DIGITS = 16
HASH = re.compile(f"[0-9a-f]{{{DIGITS}}}")


class TrainedImagesError(FlawlineError):
    """Good parts that set a threshold are images that the detector was trained on."""


def content_hash(path: Path) -> str:
    """Return a hash of the content of a file, which identifies it under any name: 16 digits.

    It reveals neither the name nor the pixels. Raises OSError.
    """
    return sha256_of(path)[:DIGITS]


def take_hashes(reader: StrictReader, key: str = TRAINED_IMAGES) -> tuple[str, ...]:
    """Take the hashes from the manifest; empty if it has none. Raises SchemaError."""
    if not reader.has(key):
        return ()
    hashes = reader.take_texts(key)
    for value in hashes:
        if not HASH.fullmatch(value):
            reader.refuse(f"{key} holds {value!r}, which is not {DIGITS} hexadecimal digits")
    if not hashes or list(hashes) != sorted(set(hashes)):
        reader.refuse(f"{key} is empty, not sorted or holds a hash twice")
    return hashes


def require_new_images(paths: Sequence[Path], trained_on: Collection[str]) -> None:
    """Raise TrainedImagesError if image files, or copies under other names, were trained on.

    `trained_on` are content hashes; without them nothing is known. A file that cannot be read is
    left out here, because judging it fails with the reason.
    """
    if not trained_on:
        return
    known = set(trained_on)
    trained = []
    for path in paths:
        try:
            content = content_hash(path)
        except OSError:
            continue
        if content in known:
            trained.append(path)
    if not trained:
        return
    found = f"{trained[0]} was trained on"
    if len(paths) > 1:
        found = f"{len(trained)} of {len(paths)} images were trained on, such as {trained[0]}"
    raise TrainedImagesError(
        f"{found}; a threshold from such images would be too low; take new images of good parts"
    )
