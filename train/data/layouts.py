"""Folder layouts of data sets: a reader for each layout turns a product's folder into a DataSet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from flawline.cameras.decode import list_images
from flawline.cameras.folder_names import folder_kind, named_subfolders, subfolders_of_kind
from flawline.cameras.listing import LeftOut, subfolders
from flawline.train.data.checks import describe_left_out, require_only_good, without_repeats
from flawline.train.data.dataset import DataError, DataSet, GoodImages, Sample
from flawline.train.data.exclusion import without_images
from flawline.train.data.pairing import Masks
from flawline.train.data.published import KNOWN_LAYOUTS, read_dagm, read_visa, require_good

__all__ = ["KNOWN_LAYOUTS", "DataError", "DataSet", "GoodImages", "Sample", "open_data"]


def open_data(root: str | Path, excluded: Collection[str] = ()) -> DataSet:
    """Open the folder of one product in any layout that `KNOWN_LAYOUTS` names.

    A real file counts once, and hidden and system folders are left out. A layout without a test
    split gives an empty `test`. `excluded` are content hashes of good images to leave out. Raises
    DataError where the folder does not exist, holds no good images, mixes several products, or
    mixes good and bad images in a way that is not known.
    """
    root = Path(root)
    if not root.is_dir():
        reason = "is a file and no folder" if root.exists() else "there is no such folder"
        raise DataError(f"data {root}: {reason}; {KNOWN_LAYOUTS}")
    read = _choose_layout(root)
    data = without_images(without_repeats(read(root)), excluded)
    return replace(data, left_out=describe_left_out(data))


def _choose_layout(root: Path) -> Callable[[Path], DataSet]:
    visa_images = root / "Data" / "Images"
    if (visa_images / "Normal").is_dir() or (visa_images / "Anomaly").is_dir():
        return read_visa
    train = named_subfolders(root, "train")
    if len(train) > 1:
        raise DataError(
            f"data {root}: holds both {train[0].name} and {train[1].name}; remove or rename one"
        )
    if train and _is_dagm(root, train[0]):
        return read_dagm
    if train:
        return _read_mvtec
    if subfolders_of_kind(root, "good"):
        return _read_side_by_side
    return _read_plain


def _is_dagm(root: Path, train: Path) -> bool:
    """Tell DAGM's Train, which has no folder of good images, from MVTec's train."""
    if subfolders_of_kind(train, "good"):
        return False
    if named_subfolders(train, "Label"):
        return True
    # Compare listed names: on a file system that ignores case, `root / "Test"` also exists where
    # the folder is called test.
    names = [folder.name for folder in subfolders(root)]
    return train.name == "Train" and "Test" in names


# MVTec AD, and layouts that differ from it only in the names of the good folder or of the masks:
# BTAD, converted VisA, a user's own tree.


def _read_mvtec(root: Path) -> DataSet:
    train = named_subfolders(root, "train")[0]
    good_folders = subfolders_of_kind(train, "good")
    good = _good_images(good_folders)
    missing = good_folders[0] if good_folders else train / "good"
    require_good(good, missing)
    mask_roots = subfolders_of_kind(root, "mask")
    classes: list[Path] = []
    for test in named_subfolders(root, "test"):
        mask_roots += subfolders_of_kind(test, "mask")
        classes += subfolders(test)
    test_images, notes = _test_samples(root, classes, mask_roots)
    return DataSet(root, GoodImages(good, good_folders), test_images, notes=notes)


def _good_images(folders: Sequence[Path]) -> list[Path]:
    """List the images of folders of good images, and check that none of them shows bad parts."""
    images: list[Path] = []
    for folder in folders:
        inside = _class_images(folder)
        require_only_good(folder, inside, "move everything else out of the folder of good images")
        images += inside
    return images


def _class_images(folder: Path) -> list[Path]:
    """List the images of a good folder or of a kind of defect, without masks and depth maps."""
    # MVTec 3D-AD has the folders rgb, xyz and gt in every kind of defect.
    for colour in named_subfolders(folder, "rgb"):
        return list_images(colour)
    masks = subfolders_of_kind(folder, "mask")
    images = []
    for path in list_images(folder):
        if not any(path.is_relative_to(inner) for inner in masks):
            images.append(path)
    return images


def _test_samples(
    root: Path, classes: Sequence[Path], mask_roots: Sequence[Path]
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Read the folders of test images; return the samples, and notes about their masks."""
    defects = []
    for folder in classes:
        if folder_kind(folder.name) not in ("good", "mask"):
            defects.append(folder)
    masks = Masks(mask_roots, len(defects))
    samples: list[Sample] = []
    for folder in classes:
        images = _class_images(folder)
        if folder in defects:
            samples += masks.samples(images, folder)
        elif folder_kind(folder.name) == "good":
            samples += [Sample(path, None) for path in images]
    return tuple(samples), tuple(masks.notes(root))


# Good images next to folders of bad ones, as anomalib and many lines store them.


def _read_side_by_side(root: Path) -> DataSet:
    good_folders = subfolders_of_kind(root, "good")
    good = _good_images(good_folders)
    require_good(good, good_folders[0])
    mask_roots = subfolders_of_kind(root, "mask")
    classes: list[Path] = []
    for folder in subfolders(root):
        if folder in good_folders or folder in mask_roots:
            continue
        if folder.name.casefold() == "test":
            classes += subfolders(folder)
            mask_roots += subfolders_of_kind(folder, "mask")
        elif list_images(folder):
            _require_only_bad(root, folder)
            classes.append(folder)
    test, notes = _test_samples(root, classes, mask_roots)
    return DataSet(root, GoodImages(good, good_folders), test, notes=notes)


def _require_only_bad(root: Path, folder: Path) -> None:
    """Refuse a folder next to the good one that is no kind of defect, but another product."""
    for path in list_images(folder):
        for name in path.parent.relative_to(folder).parts:
            if folder_kind(name) == "good":
                raise DataError(
                    f"data {root}: {path.parent} holds good images inside {folder}, which lies "
                    f"next to the good folder and counts as a kind of defect; {KNOWN_LAYOUTS}"
                )


# A plain folder of good images.


def _read_plain(root: Path) -> DataSet:
    left_out = LeftOut()
    images = list_images(root, left_out)
    if not images:
        if left_out.unreadable:
            require_good(images, root)
        raise DataError(f"data {root}: no good images; {KNOWN_LAYOUTS}")
    if folder_kind(root.resolve().name) == "mask":
        raise DataError(
            f"data {root}: is named as a folder of masks; give the folder of good images, or "
            f"rename it if these are images of good parts"
        )
    require_only_good(root, images, KNOWN_LAYOUTS)
    return DataSet(root, GoodImages(images, [root]), ())
