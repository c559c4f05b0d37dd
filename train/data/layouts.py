"""Where a product's good and defective images lie: one adapter for each layout, from its folder to a DataSet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flawline import FlawlineError
from flawline.cameras.decode import list_images

KNOWN = (
    "give the folder of one product as MVTec AD (train/good), VisA (Data/Images), BTAD (train/ok) or DAGM 2007 "
    "(Train/Label) lays it out, or a plain folder of good images"
)
GOOD = ("good", "ok")
# A folder with one of these below it is no plain folder of good images.
PRODUCT_FOLDERS = (
    "train/good",
    "train/ok",
    "ground_truth",
    "Data/Masks",
    "Train/Label",
    "Test/Label",
)
# In the order in which they are tried.
MASK_ENDINGS = ("_mask", "_label", "")
VISA_COLUMNS = ("object", "split", "label", "image", "mask")


class DataError(FlawlineError):
    """The images cannot be used; the message is one line and ends with the remedy."""


@dataclass(frozen=True)
class Sample:
    """A test image. `defect` is None for a good part; `mask` is a file where defective pixels are above 0."""

    path: Path
    defect: str | None
    mask: Path | None = None


@dataclass(frozen=True)
class DataSet:
    root: Path
    train_good: tuple[Path, ...]
    test: tuple[Sample, ...]


def open_data(root: str | Path) -> DataSet:
    """Open the folder of one product in any layout that KNOWN names; only the layouts with a test split fill `test`.
    Raises DataError."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"data {root}: there is no such folder; {KNOWN}")
    return _layout(root)(root)


def _layout(root: Path) -> Callable[[Path], DataSet]:
    if any((root / "Data" / "Images" / name).is_dir() for name in ("Normal", "Anomaly")):
        return _visa
    # Names as they are listed: where the file system ignores case, DAGM's Train also answers to train.
    names = {p.name for p in root.glob("*") if p.is_dir()}
    if "Train" in names and ("Test" in names or (root / "Train" / "Label").is_dir()):
        return _dagm
    return _mvtec if "train" in names else _plain


def _mvtec(root: Path) -> DataSet:
    """MVTec AD, and what differs from it only in the names of the good folder or the masks: BTAD, converted VisA, a
    user's own tree."""
    good = [path for name in GOOD for path in list_images(root / "train" / name)]
    test: list[Sample] = []
    for folder in sorted(p for p in (root / "test").glob("*") if p.is_dir()):
        defect = None if folder.name in GOOD else folder.name
        test += _samples(list_images(folder), folder, root / "ground_truth" / folder.name, defect)
    ok = (root / "train" / "ok").is_dir()
    return _with_good(
        DataSet(root, tuple(good), tuple(test)), root / "train" / ("ok" if ok else "good")
    )


def _samples(
    images: list[Path], folder: Path, mask_folder: Path, defect: str | None
) -> list[Sample]:
    masks = _masks(mask_folder) if defect else {}
    return [Sample(path, defect, _mask_of(path.relative_to(folder), masks)) for path in images]


def _masks(folder: Path) -> dict[Path, Path]:
    return {path.relative_to(folder).with_suffix(""): path for path in list_images(folder)}


def _mask_of(image: Path, masks: Mapping[Path, Path]) -> Path | None:
    """The mask at the image's place in the folder of masks, whatever its ending and suffix."""
    names = (image.with_name(image.stem + ending) for ending in MASK_ENDINGS)
    return next((masks[name] for name in names if name in masks), None)


def _with_good(data_set: DataSet, folder: Path) -> DataSet:
    if not data_set.train_good:
        raise DataError(
            f"data {folder}: no good images; put images of good parts there (.png, .jpg, .bmp, .tif)"
        )
    return data_set


def _dagm(root: Path) -> DataSet:
    # Defective images of Train are left out, and the test stays what it is: nobody knows which ones the papers used.
    good = [sample.path for sample in _dagm_part(root / "Train") if sample.defect is None]
    return _with_good(DataSet(root, tuple(good), tuple(_dagm_part(root / "Test"))), root / "Train")


def _dagm_part(folder: Path) -> list[Sample]:
    """The pictures of Train or Test; the defective ones are those that have a label file."""
    labels = folder / "Label"
    if folder.is_dir() and not labels.is_dir():
        raise DataError(
            f"data {labels}: there is no such folder, so defective images would pass for good; {KNOWN}"
        )
    pictures = [path for path in list_images(folder) if path.parent == folder]
    found = _samples(pictures, folder, labels, "defect")
    return [sample if sample.mask else Sample(sample.path, None) for sample in found]


def _visa(root: Path) -> DataSet:
    """VisA as it is published, split for training on good images."""
    root_named = (
        root.resolve() if root.name in ("", "..") else root
    )  # "." does not say which object it is
    visa, product = root_named.parent, root_named.name
    table = visa / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DataError(f"data {root}: VisA's split is missing; the file must lie at {table}")
    rows = [row for row in _visa_rows(table) if row["object"] == product]
    good = [
        _visa_file(table, r["image"])
        for r in rows
        if (r["split"], r["label"]) == ("train", "normal")
    ]
    if not good:
        raise DataError(
            f"data {table}: no row begins {product},train,normal; name the folder as in that file"
        )
    test = [_visa_sample(table, row) for row in rows if row["split"] == "test"]
    return DataSet(root, tuple(sorted(good)), tuple(sorted(test, key=lambda sample: sample.path)))


def _visa_sample(table: Path, row: Mapping[str, str]) -> Sample:
    image = _visa_file(table, row["image"])
    if row["label"] == "normal":
        return Sample(image, None)
    return Sample(image, "anomaly", _visa_file(table, row["mask"]) if row["mask"] else None)


def _visa_file(table: Path, name: str) -> Path:
    path = table.parents[1] / name
    if not path.is_file():
        raise DataError(f"data {table}: names {path}, which is not there; copy the data set again")
    return path


def _visa_rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file, restval="")
            if set(VISA_COLUMNS) <= set(rows.fieldnames or ()):
                return list(rows)
    except (OSError, csv.Error) as error:
        raise DataError(
            f"data {table}: cannot be read ({error}); copy the data set again"
        ) from error
    raise DataError(
        f"data {table}: lacks a column of {','.join(VISA_COLUMNS)}; copy the data set again"
    )


def _plain(root: Path) -> DataSet:
    images = list_images(root)
    if not images:
        raise DataError(f"data {root}: no good images; {KNOWN}")
    # The folder above the products would otherwise be learnt whole: defects, masks and all.
    for folder in sorted({path.parent for path in images}):
        inside = f"/{folder.relative_to(root).as_posix()}/"
        if any(f"/{name}/" in inside for name in PRODUCT_FOLDERS):
            raise DataError(
                f"data {root}: {folder} shows that not every image here is a good part; {KNOWN}"
            )
    return DataSet(root, tuple(images), ())
