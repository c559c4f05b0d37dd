"""Good images that a list leaves out of a training: the file of the list, and what it means.

The list is a text file with one path per line; a name with a line break is a file URI. A checkpoint
and its bundle know the images by the hashes of their contents, so that later commands on the same
data set leave them out as well.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote_to_bytes

from flawline.cameras.listing import FileKey, count_of, file_key
from flawline.os_errors import reason_of
from flawline.runtime.console import log
from flawline.runtime.files import read_small
from flawline.runtime.good_images.hold_out import MIN_GOOD_IMAGES
from flawline.train.data.dataset import DataError, DataSet, GoodImages
from flawline.train.data.split import content_hashes

FLAG = "--exclude-images"
COMMENT = "#"
# What a file URI begins with.
URI = "file://"
# A list of a million images is about as long.
MOST_BYTES = 1 << 27


def read_exclusion_list(file: Path, data_set: DataSet) -> tuple[str, ...]:
    """Return the content hashes, sorted, of the good images that a list names.

    A line is a path, absolute or below the folder of the data set, or a file URI. Empty lines and
    those that begin with "#" are skipped; a list of nothing else is noted. Raises DataError for a
    file that cannot be read, for a line that names no good image of the data set, and where too few
    images are left.
    """
    good: dict[FileKey, Path] = {file_key(path): path for path in data_set.train_good}
    chosen = []
    for number, line in _lines(file):
        # A name may begin or end with a space, but a space at the end of a line is easily added.
        name = line.strip()
        path = good.get(file_key(data_set.root / line), good.get(file_key(data_set.root / name)))
        if path is None and name.startswith(URI):
            path = good.get(file_key(Path(os.fsdecode(unquote_to_bytes(name.removeprefix(URI))))))
        if path is None:
            raise DataError(
                f"{FLAG} {file}: line {number} ({name}) names no good image of {data_set.root}; "
                f"correct or remove the line"
            )
        chosen.append(path)
    if not chosen:
        log(f"note: {FLAG} {file} names no image: no good image is left out")
        return ()
    _require_enough(f"{FLAG} {file}", len(good), len(good) - len(set(chosen)))
    return tuple(sorted(set(content_hashes(chosen))))


def _require_enough(called: str, images: int, left: int) -> None:
    """Raise DataError if so many images were enough, and what a list left of them is not."""
    if left < MIN_GOOD_IMAGES <= images:
        raise DataError(
            f"{called} leaves {left} of {count_of(images, 'good image')}, and at least "
            f"{MIN_GOOD_IMAGES} are needed; remove lines of good parts from the list"
        )


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that names an image. Raises DataError."""
    try:
        # Some editors begin a text file with a byte order mark.
        text = os.fsdecode(read_small(file, MOST_BYTES).removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise DataError(
            f"{FLAG} {file}: cannot be read ({reason_of(error)}); give a text file with one path "
            f"per line"
        ) from error
    if "\0" in text:
        raise DataError(f"{FLAG} {file}: is no text; give a text file with one path per line")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith(COMMENT):
            yield number, line.removesuffix("\r")


def list_line(path: Path, root: Path) -> str:
    """Return the line that names an image: its path below the folder of the data set if it is."""
    name = path.relative_to(root) if path.is_relative_to(root) else path.absolute()
    line = str(name)
    # Such a line would be skipped.
    if line.startswith(COMMENT):
        line = os.path.join(os.curdir, line)
    # It would be two lines, or lose its end.
    if "\n" in line or line.endswith("\r"):
        line = path.absolute().as_uri()
    return line


def without_images(data_set: DataSet, excluded: Collection[str]) -> DataSet:
    """Return the data set without the good images of these contents, which it then names.

    excluded: content hashes; those of no image are ignored. Raises DataError for a file that cannot
    be read, and where too few images are left.
    """
    if not excluded:
        return data_set
    left_out = set(excluded)
    kept = []
    removed = []
    good = data_set.train_good
    for path, content in zip(good, content_hashes(good), strict=True):
        if content in left_out:
            removed.append(path)
        else:
            kept.append(path)
    _require_enough(f"data {data_set.root}: {FLAG}", len(good), len(kept))
    return replace(data_set, train_good=GoodImages(kept, good.folders), excluded=tuple(removed))


def describe_excluded(excluded: Sequence[Path]) -> str:
    """Return how a line of the log calls excluded images."""
    return f"{count_of(len(excluded), 'good image')} by {FLAG}"
