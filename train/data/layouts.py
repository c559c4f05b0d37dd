"""Folder layouts of data sets: a reader for each layout turns a product's folder into a DataSet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flawline import FlawlineError
from flawline.cameras.decode import list_images

KNOWN_LAYOUTS = (
    "give the folder of one product as MVTec AD (train/good), VisA (Data/Images), BTAD (train/ok) "
    "or DAGM 2007 (Train/Label) lays it out, or a plain folder of good images"
)
GOOD_FOLDERS = ("good", "ok")
# A folder that contains one of these subfolders is not a plain folder of good images.
PRODUCT_FOLDERS = (
    "train/good",
    "train/ok",
    "ground_truth",
    "Data/Masks",
    "Train/Label",
    "Test/Label",
)
# Endings that a mask's name adds to its image's name, in the order in which they are tried.
MASK_ENDINGS = ("_mask", "_label", "")
VISA_COLUMNS = ("object", "split", "label", "image", "mask")


class DataError(FlawlineError):
    """The images cannot be used; the message is one line and ends with the remedy."""


@dataclass(frozen=True)
class Sample:
    """A test image.

    `defect` names the kind of defect and is None for a good part. `mask` is an image file in which
    defective pixels are above 0, or None where the data set has no mask.
    """

    path: Path
    defect: str | None
    mask: Path | None = None


@dataclass(frozen=True)
class DataSet:
    """The images of one product: good ones to train on, and labelled ones to test with."""

    root: Path
    train_good: tuple[Path, ...]
    test: tuple[Sample, ...]


def open_data(root: str | Path) -> DataSet:
    """Open the folder of one product in any layout that `KNOWN_LAYOUTS` names.

    A layout without a test split gives an empty `test`. Raises DataError where the folder does not
    exist, holds no good images or mixes several products.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"data {root}: there is no such folder; {KNOWN_LAYOUTS}")
    read = _choose_layout(root)
    return read(root)


def _choose_layout(root: Path) -> Callable[[Path], DataSet]:
    visa_images = root / "Data" / "Images"
    if (visa_images / "Normal").is_dir() or (visa_images / "Anomaly").is_dir():
        return _read_visa
    # Compare listed names: on a file system that ignores case, `root / "train"` also exists where
    # DAGM's folder is called Train.
    names = [folder.name for folder in _subfolders(root)]
    if "Train" in names and ("Test" in names or (root / "Train" / "Label").is_dir()):
        return _read_dagm
    if "train" in names:
        return _read_mvtec
    return _read_plain


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


# MVTec AD, and layouts that differ from it only in the names of the good folder or of the masks:
# BTAD, converted VisA, a user's own tree.


def _read_mvtec(root: Path) -> DataSet:
    good: list[Path] = []
    for name in GOOD_FOLDERS:
        good += list_images(root / "train" / name)

    test: list[Sample] = []
    for folder in _subfolders(root / "test"):
        images = list_images(folder)
        if folder.name in GOOD_FOLDERS:
            test += _good_samples(images)
        else:
            masks = root / "ground_truth" / folder.name
            test += _defective_samples(images, folder, masks, folder.name)

    good_folder = root / "train" / "good"
    if (root / "train" / "ok").is_dir():
        good_folder = root / "train" / "ok"
    _require_good(good, good_folder)
    return DataSet(root, tuple(good), tuple(test))


def _good_samples(images: list[Path]) -> list[Sample]:
    return [Sample(path, None) for path in images]


def _defective_samples(
    images: list[Path], folder: Path, mask_folder: Path, defect: str
) -> list[Sample]:
    """Pair each image below `folder` with the mask at the same place below `mask_folder`."""
    masks = {}
    for path in list_images(mask_folder):
        masks[path.relative_to(mask_folder).with_suffix("")] = path

    samples = []
    for path in images:
        mask = _find_mask(path.relative_to(folder), masks)
        samples.append(Sample(path, defect, mask))
    return samples


def _find_mask(image: Path, masks: Mapping[Path, Path]) -> Path | None:
    """Return the mask of an image, with any ending and file type, or None."""
    for ending in MASK_ENDINGS:
        mask = masks.get(image.with_name(image.stem + ending))
        if mask is not None:
            return mask
    return None


def _require_good(good: list[Path], folder: Path) -> None:
    if not good:
        raise DataError(
            f"data {folder}: no good images; "
            "put images of good parts there (.png, .jpg, .bmp, .tif)"
        )


# DAGM 2007.


def _read_dagm(root: Path) -> DataSet:
    # Defective images of Train are left out, and not added to the test either: the papers do not
    # say which of them they used.
    good = []
    for sample in _dagm_samples(root / "Train"):
        if sample.defect is None:
            good.append(sample.path)
    _require_good(good, root / "Train")
    return DataSet(root, tuple(good), tuple(_dagm_samples(root / "Test")))


def _dagm_samples(folder: Path) -> list[Sample]:
    """Read the images of Train or Test; an image is defective if it has a label file."""
    labels = folder / "Label"
    if folder.is_dir() and not labels.is_dir():
        raise DataError(
            f"data {labels}: there is no such folder, "
            f"so defective images would pass for good; {KNOWN_LAYOUTS}"
        )
    images = [path for path in list_images(folder) if path.parent == folder]
    samples = []
    for sample in _defective_samples(images, folder, labels, "defect"):
        if sample.mask is None:
            sample = Sample(sample.path, None)
        samples.append(sample)
    return samples


# VisA as it is published, with its split for training on good images.


def _read_visa(root: Path) -> DataSet:
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
    return DataSet(root, tuple(sorted(good)), tuple(test))


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


# A plain folder of good images.


def _read_plain(root: Path) -> DataSet:
    images = list_images(root)
    if not images:
        raise DataError(f"data {root}: no good images; {KNOWN_LAYOUTS}")
    # Without this check the folder that contains several products would be learnt as a whole, with
    # its defects and masks.
    folders = {path.parent for path in images}
    for folder in sorted(folders):
        inside = f"/{folder.relative_to(root).as_posix()}/"
        for name in PRODUCT_FOLDERS:
            if f"/{name}/" in inside:
                raise DataError(
                    f"data {root}: {folder} shows that not every image here is a good part; "
                    f"{KNOWN_LAYOUTS}"
                )
    return DataSet(root, tuple(images), ())
