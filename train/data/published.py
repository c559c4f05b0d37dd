"""Public data sets as they are published, where they are no plain folders: DAGM 2007 and VisA."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flawline.cameras.decode import list_images
from flawline.cameras.folder_names import named_subfolders
from flawline.cameras.listing import LeftOut, count_of
from flawline.train.data.dataset import DataError, DataSet, GoodImages, Sample
from flawline.train.data.pairing import MaskFolder

KNOWN_LAYOUTS = (
    "give the folder of one product as MVTec AD (train/good), VisA (Data/Images), BTAD (train/ok) "
    "or DAGM 2007 (Train/Label) lays it out, folders of good and bad images side by side "
    "(good and bad, OK and NG, normal and abnormal), or a plain folder of good images"
)
VISA_COLUMNS = ("object", "split", "label", "image", "mask")


def require_good(good: Sequence[Path], folder: Path) -> None:
    """Raise DataError if there are no good images; `folder` is where they belong."""
    if good:
        return
    left_out = LeftOut()
    list_images(folder, left_out)
    if left_out.unreadable:
        raise DataError(
            f"data {folder}: no good images, and {count_of(left_out.unreadable, 'folder')} without "
            f"permission to read; check the permissions"
        )
    raise DataError(
        f"data {folder}: no good images; put images of good parts there (.png, .jpg, .bmp, .tif)"
    )


# DAGM 2007.


def read_dagm(root: Path) -> DataSet:
    """Read a class of DAGM 2007: an image is defective if it has a label file."""
    train = named_subfolders(root, "Train")[0]
    # Defective images of Train are left out, and not added to the test either: the papers do not
    # say which of them they used.
    good = []
    for sample in _dagm_samples(train):
        if sample.defect is None:
            good.append(sample.path)
    require_good(good, train)
    test: list[Sample] = []
    for folder in named_subfolders(root, "Test"):
        test += _dagm_samples(folder)
    return DataSet(root, GoodImages(good, [train]), tuple(test))


def _dagm_samples(folder: Path) -> list[Sample]:
    """Read the images of Train or Test; an image is defective if it has a label file."""
    labels = folder / "Label"
    for named in named_subfolders(folder, "Label")[:1]:
        labels = named
    if not labels.is_dir():
        raise DataError(
            f"data {labels}: there is no such folder, "
            f"so defective images would pass for good; {KNOWN_LAYOUTS}"
        )
    masks = MaskFolder(labels)
    samples = []
    for path in list_images(folder):
        if path.parent != folder:
            continue
        mask = masks.find(Path(path.name))
        defect = None if mask is None else "defect"
        samples.append(Sample(path, defect, mask))
    return samples


# VisA as it is published, with its split for training on good images.


def read_visa(root: Path) -> DataSet:
    """Read a product of VisA with the table split_csv/1cls.csv next to its folder."""
    named = root
    if root.name in ("", ".."):
        named = root.resolve()  # a relative path such as "." does not name the product
    product = named.name
    table = named.parent / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DataError(f"data {root}: VisA's split is missing; the file must lie at {table}")

    good = []
    test = []
    for row in _read_visa_table(table):
        if row["object"] != product:
            continue
        if row["split"] == "test":
            test.append(_visa_sample(table, row))
        elif row["split"] == "train" and row["label"] == "normal":
            good.append(_visa_file(table, row["image"]))
    if not good:
        raise DataError(
            f"data {table}: no row begins {product},train,normal; name the folder as in that file"
        )
    test.sort(key=lambda sample: sample.path)
    folder = Path(os.path.commonpath([path.parent for path in good]))
    return DataSet(root, GoodImages(sorted(good), [folder]), tuple(test))


def _visa_sample(table: Path, row: Mapping[str, str]) -> Sample:
    image = _visa_file(table, row["image"])
    if row["label"] == "normal":
        return Sample(image, None)
    if not row["mask"]:
        return Sample(image, "anomaly")
    return Sample(image, "anomaly", _visa_file(table, row["mask"]))


def _visa_file(table: Path, name: str) -> Path:
    path = table.parents[1] / name
    if not path.is_file():
        raise DataError(f"data {table}: names {path}, which is not there; copy the data set again")
    return path


def _read_visa_table(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = set(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, csv.Error) as error:
        raise DataError(
            f"data {table}: cannot be read ({error}); copy the data set again"
        ) from error
    if not columns.issuperset(VISA_COLUMNS):
        raise DataError(
            f"data {table}: lacks a column of {','.join(VISA_COLUMNS)}; copy the data set again"
        )
    return rows
