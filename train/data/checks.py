"""Checks of a data set: nothing defective is learnt, no file counts twice, the rest is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from flawline.cameras.decode import list_images
from flawline.cameras.folder_names import folder_kind
from flawline.cameras.listing import FileKey, LeftOut, count_of, file_key
from flawline.train.data.dataset import DataError, DataSet, GoodImages, Sample
from flawline.train.data.exclusion import describe_excluded

# An image whose name adds such a word to that of an image next to it is its mask.
MASK_WORDS = ("mask", "label", "gt")
SEPARATORS = "_-. "
FOLDERS_SHOWN = 3


def require_only_good(root: Path, images: Sequence[Path], remedy: str) -> None:
    """Raise DataError if folders or files below `root` are named as bad parts or masks.

    Without this check, a folder with defects, or one that contains several products, would be
    learnt as a whole.
    """
    folder = _mixed_folder(root, images)
    if folder is not None:
        raise DataError(
            f"data {root}: {folder} shows that not every image here is a good part; {remedy}"
        )
    mask = _mask_next_to_image(images)
    if mask is not None:
        raise DataError(
            f"data {root}: {mask} is named as the mask of an image, or as a second file of the "
            f"image next to it, so that not every image here is a good part; move such files to "
            f"another folder"
        )


def _mixed_folder(root: Path, images: Iterable[Path]) -> Path | None:
    """Return a folder of images whose name, or whose neighbours, show bad parts or masks."""
    folders = sorted({path.parent for path in images})
    names: dict[Path, set[str]] = {}
    for folder in folders:
        inner = folder
        while inner != root:
            names.setdefault(inner.parent, set()).add(inner.name)
            inner = inner.parent
    for folder in folders:
        inner = folder
        while inner != root:
            if _shows_bad_parts(root, inner, names[inner.parent]):
                return folder
            inner = inner.parent
    return None


def _shows_bad_parts(root: Path, folder: Path, siblings: set[str]) -> bool:
    """Whether a folder's images are not good parts, or lie next to some that are not.

    `siblings` are the names of all folders with images in the same parent.
    """
    kind = folder_kind(folder.name)
    if kind in ("bad", "mask"):
        return True
    parent = ""
    if folder.parent != root:
        parent = folder.parent.name.casefold()
    if parent == "test":
        return True
    if kind != "good":
        return False
    if parent == "train":
        return True
    return any(folder_kind(name) != "good" for name in siblings)


def _mask_next_to_image(images: Iterable[Path]) -> Path | None:
    """Return an image whose name shows that it is a mask, and not an image of a part.

    It is named as the mask of an image next to it, or it has the name of an image of another
    format, or it ends with `_mask`.
    """
    stems: dict[tuple[Path, str], Path] = {}
    names = set()
    for path in images:
        # Where case counts, A.png and a.png are two images.
        if (path.parent, path.stem) in names:
            return path
        names.add((path.parent, path.stem))
        stems[path.parent, path.stem.casefold()] = path
    for (folder, stem), path in stems.items():
        if stem.endswith("_mask"):
            return path
        for name in _names_without_mask_word(stem):
            if (folder, name) in stems:
                return path
    return None


def _names_without_mask_word(stem: str) -> list[str]:
    """Return the names that an image may have whose mask is called `stem`."""
    names = []
    for word in MASK_WORDS:
        for separator in SEPARATORS:
            names.append(stem.removesuffix(separator + word))
            names.append(stem.removeprefix(word + separator))
    return [name for name in names if name != stem]


def without_repeats(data: DataSet) -> DataSet:
    """Return the data set with each real file once; what is trained on is no test image.

    Raises DataError if a file counts as good and as defective.
    """
    good_keys: dict[FileKey, Path] = {}
    for path in data.train_good:
        good_keys.setdefault(file_key(path), path)
    train_good = GoodImages(good_keys.values(), data.train_good.folders)
    seen: dict[FileKey, Sample] = {}
    for sample in data.test:
        key = file_key(sample.path)
        if key in good_keys:
            _require_same_kind(data, Sample(good_keys[key], None), sample)
        elif key in seen:
            _require_same_kind(data, seen[key], sample)
        else:
            seen[key] = sample
    return replace(data, train_good=train_good, test=tuple(seen.values()))


def _require_same_kind(data: DataSet, first: Sample, second: Sample) -> None:
    if (first.defect is None) != (second.defect is None):
        raise DataError(
            f"data {data.root}: {first.path} and {second.path} are the same file, once as a good "
            f"part and once as a defective one; remove one of the links"
        )


def describe_left_out(data: DataSet) -> tuple[str, ...]:
    """Return one phrase for each kind of file below the root that the data set does not use."""
    used = set()
    for path in (*data.train_good, *data.excluded):
        used.add(file_key(path))
    for sample in data.test:
        used.add(file_key(sample.path))
        if sample.mask is not None:
            used.add(file_key(sample.mask))
    left_out = LeftOut()
    unused: Counter[str] = Counter()
    for path in list_images(data.root, left_out):
        if file_key(path) not in used:
            unused[path.parent.relative_to(data.root).as_posix()] += 1
    phrases = []
    if data.excluded:
        phrases.append(describe_excluded(data.excluded))
    if unused:
        phrases.append(f"{count_of(unused.total(), 'image')} ({_places(unused)})")
    return (*phrases, *left_out.describe())


def _places(unused: Counter[str]) -> str:
    parts = []
    for folder, count in unused.most_common(FOLDERS_SHOWN):
        parts.append(f"{count} in {folder}")
    if len(unused) > FOLDERS_SHOWN:
        parts.append("...")
    return ", ".join(parts)
