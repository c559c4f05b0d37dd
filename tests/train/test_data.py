"""Every layout as a tiny tree with its true names: good and defective images, and their masks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.runtime.image import Geometry
from flawline.train.data import (
    DataError,
    DataSet,
    PreparedImages,
    Sample,
    describe_images,
    open_data,
    read_mask,
)

GEOMETRY = Geometry("stretch", 32, 32)


def write(path: Path, value: int = 90) -> Path:
    """Write an 8x8 image or mask; the left half is 0, the right half is `value`."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    return path


def write_all(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name)
    return root


def mvtec(root: Path) -> Path:
    good = [f"train/good/{i:03d}.png" for i in range(3)]
    test = ["test/good/000.png", "test/crack/000.png", "test/crack/001.png", "test/dent/000.png"]
    masks = ["ground_truth/crack/000_mask.png", "ground_truth/dent/000_mask.png"]
    return write_all(root / "mvtec" / "bottle", *good, *test, *masks)


def visa_converted(root: Path) -> Path:
    good = [f"train/good/{i:04d}.JPG" for i in range(3)]
    test = ["test/good/0003.JPG", "test/bad/000.JPG", "test/bad/001.JPG"]
    return write_all(
        root / "1cls" / "candle",
        *good,
        *test,
        "ground_truth/bad/000.png",
        "ground_truth/bad/001.png",
    )


VISA_ROWS = (
    "object,split,label,image,mask",
    "candle,train,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,train,normal,candle/Data/Images/Normal/0000.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    "candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png",
    "candle,test,anomaly,candle/Data/Images/Anomaly/002.JPG,candle/Data/Masks/Anomaly/002.png",
    # This file does not exist: other products may be absent.
    "capsules,train,normal,capsules/Data/Images/Normal/000.JPG,",
)


def visa(root: Path) -> Path:
    folder = root / "VisA_20220922" / "candle"
    write_all(folder / "Data" / "Images" / "Normal", "0000.JPG", "0001.JPG", "0002.JPG")
    for i in range(3):
        write(folder / "Data" / "Images" / "Anomaly" / f"{i:03d}.JPG")
        write(folder / "Data" / "Masks" / "Anomaly" / f"{i:03d}.png", value=i + 1)
    write_table(folder, VISA_ROWS)
    return folder


def write_table(folder: Path, lines: tuple[str, ...]) -> Path:
    table = folder.parent / "split_csv" / "1cls.csv"
    table.parent.mkdir(exist_ok=True)
    table.write_text("\n".join(lines) + "\n")
    return table


def btad(root: Path) -> Path:
    good = [f"train/ok/{i:04d}.bmp" for i in range(3)]
    test = ["test/ok/0000.png", "test/ko/0000.png", "test/ko/0001.bmp"]
    masks = ["ground_truth/ko/0000.bmp", "ground_truth/ko/0001.png"]
    return write_all(root / "BTech_Dataset_transformed" / "01", *good, *test, *masks)


def dagm(root: Path) -> Path:
    train = [f"Train/{i:04d}.PNG" for i in (576, 577, 578, 579)]
    test = [f"Test/{i:04d}.PNG" for i in (1, 2, 3)]
    folder = write_all(
        root / "DAGM" / "Class1",
        *train,
        *test,
        "Train/Label/0577_label.PNG",
        "Test/Label/0002_label.PNG",
    )
    for part in ("Train", "Test"):
        (folder / part / "Label" / "Labels.txt").write_text("1\n1\t0\t0001.PNG\t0\t0\n")
    return folder


def plain(root: Path) -> Path:
    return write_all(
        root / "parts", "b.png", "a.jpg", "monday/c.bmp", "Data/Images/d.tif", "monday/late/e.PNG"
    )


def own(root: Path) -> Path:
    """A user's tree: every way to name a mask, images that are .png, test parts in subfolders."""
    folder = write_all(root / "own", "train/good/a.png")
    images = ("a.png", "b.png", "c.png", "d.png", "e.png", "x/f.png", "y/f.png")
    write_all(folder / "test" / "bad", *images)
    masks = ("a_mask.png", "b.png", "c_label.PNG", "d.bmp", "y/f.png")
    write_all(folder / "ground_truth" / "bad", *masks)
    return folder


# The good training images, and the test images with defect and mask, relative to the tree's root.
Contents = tuple[list[str], list[tuple[str, str | None, str | None]]]
EXPECTED: dict[Callable[[Path], Path], Contents] = {
    mvtec: (
        ["train/good/000.png", "train/good/001.png", "train/good/002.png"],
        [
            ("test/crack/000.png", "crack", "ground_truth/crack/000_mask.png"),
            ("test/crack/001.png", "crack", None),
            ("test/dent/000.png", "dent", "ground_truth/dent/000_mask.png"),
            ("test/good/000.png", None, None),
        ],
    ),
    visa_converted: (
        ["train/good/0000.JPG", "train/good/0001.JPG", "train/good/0002.JPG"],
        [
            ("test/bad/000.JPG", "bad", "ground_truth/bad/000.png"),
            ("test/bad/001.JPG", "bad", "ground_truth/bad/001.png"),
            ("test/good/0003.JPG", None, None),
        ],
    ),
    visa: (
        ["Data/Images/Normal/0000.JPG", "Data/Images/Normal/0002.JPG"],
        [
            ("Data/Images/Anomaly/000.JPG", "anomaly", "Data/Masks/Anomaly/000.png"),
            ("Data/Images/Anomaly/001.JPG", "anomaly", "Data/Masks/Anomaly/001.png"),
            ("Data/Images/Anomaly/002.JPG", "anomaly", "Data/Masks/Anomaly/002.png"),
            ("Data/Images/Normal/0001.JPG", None, None),
        ],
    ),
    btad: (
        ["train/ok/0000.bmp", "train/ok/0001.bmp", "train/ok/0002.bmp"],
        [
            ("test/ko/0000.png", "ko", "ground_truth/ko/0000.bmp"),
            ("test/ko/0001.bmp", "ko", "ground_truth/ko/0001.png"),
            ("test/ok/0000.png", None, None),
        ],
    ),
    dagm: (
        ["Train/0576.PNG", "Train/0578.PNG", "Train/0579.PNG"],
        [
            ("Test/0001.PNG", None, None),
            ("Test/0002.PNG", "defect", "Test/Label/0002_label.PNG"),
            ("Test/0003.PNG", None, None),
        ],
    ),
    plain: (["Data/Images/d.tif", "a.jpg", "b.png", "monday/c.bmp", "monday/late/e.PNG"], []),
    own: (
        ["train/good/a.png"],
        [
            ("test/bad/a.png", "bad", "ground_truth/bad/a_mask.png"),
            ("test/bad/b.png", "bad", "ground_truth/bad/b.png"),
            ("test/bad/c.png", "bad", "ground_truth/bad/c_label.PNG"),
            ("test/bad/d.png", "bad", "ground_truth/bad/d.bmp"),
            ("test/bad/e.png", "bad", None),
            ("test/bad/x/f.png", "bad", None),
            ("test/bad/y/f.png", "bad", "ground_truth/bad/y/f.png"),
        ],
    ),
}
each_layout = pytest.mark.parametrize("layout", EXPECTED, ids=lambda layout: layout.__name__)
each_product = pytest.mark.parametrize(
    "layout", [k for k in EXPECTED if k is not plain], ids=lambda k: k.__name__
)


def contents(data: DataSet) -> Contents:
    """Describe a data set as EXPECTED does."""

    def name(path: Path) -> str:
        return path.relative_to(data.root).as_posix()

    test = [(name(s.path), s.defect, name(s.mask) if s.mask else None) for s in data.test]
    return [name(path) for path in data.train_good], test


def refusal(root: Path) -> str:
    """Return the message with which open_data refuses `root`; always one line."""
    with pytest.raises(DataError) as caught:
        open_data(root)
    message = str(caught.value)
    assert message.startswith("data ")
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- layouts


@each_layout
def test_a_layout_is_recognised_by_its_folder(
    layout: Callable[[Path], Path], tmp_path: Path
) -> None:
    root = layout(tmp_path)
    data = open_data(str(root))
    assert data.root == root
    assert contents(data) == EXPECTED[layout]


@each_layout
def test_no_image_is_listed_twice_and_no_mask_is_an_image(
    layout: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = open_data(layout(tmp_path))
    images = [*data.train_good, *(s.path for s in data.test)]
    masks = [s.mask for s in data.test if s.mask]
    assert len(set(images)) == len(images)
    assert len(set(masks)) == len(masks)
    assert not set(images) & set(masks)
    assert not [p for p in images if {"ground_truth", "Masks", "Label"} & set(p.parts)]


@each_layout
def test_a_folder_may_be_given_as_the_current_one(
    layout: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VisA's table lists products by the folder's name, which is not in "."."""
    monkeypatch.chdir(layout(tmp_path))
    data = open_data(".")
    good, test = EXPECTED[layout]
    assert [p.absolute().relative_to(Path.cwd()).as_posix() for p in data.train_good] == good
    assert len(data.test) == len(test)


@each_product
def test_products_are_not_mixed(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    """The folder above has defects and masks, which a plain folder would teach as good."""
    root = layout(tmp_path)
    expected = "not every image here is a good part; give the folder of one product"
    assert expected in refusal(root.parent)
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize(
    "folder",
    [
        "train/good",
        "train/ok",
        "ground_truth/bad",
        "Data/Masks/Anomaly",
        "Train/Label",
        "Test/Label",
    ],
)
def test_one_folder_is_enough_to_recognise_a_product(folder: str, tmp_path: Path) -> None:
    write_all(tmp_path, "0.png", f"a/product/{folder}/0.png")
    shows = tmp_path / "a" / "product" / folder
    assert f"{shows} shows that not every image here is a good part" in refusal(tmp_path)


def test_a_folder_without_a_test_split_is_enough(tmp_path: Path) -> None:
    roots = [
        write_all(tmp_path / "mvtec", "train/good/0.png"),
        write_all(tmp_path / "btad", "train/ok/0.png"),
        write_all(tmp_path / "dagm", "Train/0.PNG", "Train/Label/1_label.PNG"),
    ]
    assert [(len(data.train_good), data.test) for data in map(open_data, roots)] == [(1, ())] * 3


def test_a_mask_counts_only_from_the_folder_of_masks(tmp_path: Path) -> None:
    """An image may be named like a mask, and a good part never has a mask."""
    images = ("test/bad/a.png", "test/bad/a_mask.png", "test/good/a.png")
    data = open_data(
        write_all(tmp_path, "train/good/0.png", *images, "ground_truth/good/a_mask.png")
    )
    assert contents(data)[1] == [
        (images[0], "bad", None),
        (images[1], "bad", None),
        (images[2], None, None),
    ]


def test_other_files_are_ignored(tmp_path: Path) -> None:
    root = write_all(tmp_path, "train/good/0.png", "test/bad/0.png")
    for name in ("train/good/Thumbs.db", "train/good/._0.png", "ground_truth/bad/0_mask.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no image")
    assert contents(open_data(root)) == (["train/good/0.png"], [("test/bad/0.png", "bad", None)])


def test_visa_leaves_out_defective_training_images(tmp_path: Path) -> None:
    root = visa(tmp_path)
    row = (
        "candle,train,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png"
    )
    write_table(root, (*VISA_ROWS[:4], row))
    good, test = contents(open_data(root))
    assert good == EXPECTED[visa][0]
    assert [name for name, _, _ in test] == ["Data/Images/Normal/0001.JPG"]


def test_visa_may_lack_masks_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    root = visa(tmp_path)
    lines = [line.removesuffix("candle/Data/Masks/Anomaly/000.png") for line in VISA_ROWS]
    write_table(root, ("\ufeff" + lines[0], *lines[1:])).read_text()
    assert contents(open_data(root))[1][0] == ("Data/Images/Anomaly/000.JPG", "anomaly", None)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_for_an_unknown_layout_the_message_lists_the_known_ones(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    if kind == "file":
        write(tmp_path / "parts.png").rename(root)
    elif kind == "empty":
        (root / "monday").mkdir(parents=True)
    message = refusal(root)
    assert str(root) in message
    reasons = {
        "absent": "there is no such folder",
        "file": "is a file and no folder",
        "empty": "no good images",
    }
    assert reasons[kind] in message
    for known in ("MVTec AD", "VisA", "BTAD", "DAGM 2007", "plain folder of good images"):
        assert known in message


@pytest.mark.parametrize(
    ("folder", "other"),
    [
        ("train/good", "test/bad/0.png"),
        ("train/ok", "test/ko/0.png"),
        ("Train", "Train/Label/0_label.PNG"),
    ],
)
def test_a_layout_without_good_images_says_where_they_go(
    folder: str, other: str, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    write(tmp_path / other)
    message = refusal(tmp_path)
    assert message.startswith(
        f"data {tmp_path / folder}: no good images; put images of good parts there"
    )


@pytest.mark.parametrize("part", ["Train", "Test"])
def test_dagm_without_labels_is_refused(part: str, tmp_path: Path) -> None:
    root = dagm(tmp_path)
    for path in (root / part / "Label").iterdir():
        path.unlink()
    (root / part / "Label").rmdir()
    message = refusal(root)
    assert message.startswith(f"data {root / part / 'Label'}: there is no such folder")
    assert "defective images would pass for good" in message


def test_visa_without_its_table_says_where_it_must_lie(tmp_path: Path) -> None:
    root = visa(tmp_path)
    (root.parent / "split_csv" / "1cls.csv").unlink()
    table = root.parent / "split_csv" / "1cls.csv"
    assert refusal(root) == f"data {root}: VisA's split is missing; the file must lie at {table}"


@pytest.mark.parametrize(
    "name", ["Images/Normal/0002.JPG", "Images/Anomaly/001.JPG", "Masks/Anomaly/001.png"]
)
def test_visa_names_the_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    root = visa(tmp_path)
    (root / "Data" / name).unlink()
    assert f"names {root / 'Data' / name}, which is not there" in refusal(root)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (VISA_ROWS[:1], "no row begins candle,train,normal"),
        ((VISA_ROWS[0], *VISA_ROWS[3:]), "no row begins candle,train,normal"),
        ((), "lacks a column of object,split,label,image,mask"),
        (
            ("object,split,label,image", *VISA_ROWS[1:]),
            "lacks a column of object,split,label,image,mask",
        ),
        ((VISA_ROWS[0], "candle,train,normal"), "which is not there"),
    ],
    ids=["empty", "no training rows", "no header", "no mask column", "short row"],
)
def test_visa_with_a_damaged_table_is_refused(
    lines: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    root = visa(tmp_path)
    table = write_table(root, lines)
    refused = refusal(root)
    assert refused.startswith(f"data {table}: ")
    assert message in refused


def test_visa_with_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    root = visa(tmp_path)
    write_table(root, (*VISA_ROWS, "candle," + "x" * 200_000))
    assert "1cls.csv: cannot be read (field larger than field limit" in refusal(root)


# ---------------------------------------------------------------- masks and images


@pytest.mark.parametrize("layout", [visa, btad, dagm, mvtec], ids=lambda layout: layout.__name__)
def test_a_mask_is_read_as_defect_or_not(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    """VisA's masks have the values 1 to 3, which look black but are defects."""
    test = open_data(layout(tmp_path)).test
    assert any(s.mask for s in test)
    for sample in test:
        mask = read_mask(sample, GEOMETRY)
        assert mask.dtype == bool
        assert mask.shape == (32, 32)
        assert not mask[:, :16].any()
        assert mask[:, 16:].all() == mask.any() == (sample.mask is not None)


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    path = tmp_path / "0_mask.png"
    path.write_bytes(b"rubbish")
    with pytest.raises(DataError, match=re.escape(f"mask {path}: is not an image")):
        read_mask(Sample(tmp_path / "0.png", "bad", path), GEOMETRY)


def test_images_of_any_layout_can_be_prepared(tmp_path: Path) -> None:
    images = PreparedImages(open_data(dagm(tmp_path)).train_good, GEOMETRY)
    assert len(images[:2]) == 2
    for image in images[:2]:
        assert image.dtype == np.uint8
        assert image.shape == (32, 32, 3)
    assert describe_images(images.paths, GEOMETRY) == []


def test_sixteen_bit_images_are_prepared_with_their_bit_depth(tmp_path: Path) -> None:
    pixels = np.full((8, 8), 0x0FF0, np.uint16)
    path = tmp_path / "0.png"
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    images = PreparedImages([path], GEOMETRY, bit_depth=12)
    assert np.unique(images[0]).tolist() == [0xFF]
    assert np.array_equal(images[:1][0], images[0])
    assert describe_images([path], GEOMETRY, bit_depth=12) == []


def test_mixed_sizes_and_a_crop_are_described(tmp_path: Path) -> None:
    paths = []
    for name, height, width in (("a", 40, 80), ("b", 64, 64), ("c", 40, 80)):
        path = tmp_path / f"{name}.png"
        path.write_bytes(cv2.imencode(".png", np.zeros((height, width), np.uint8))[1].tobytes())
        paths.append(path)
    mixed, *cropped = describe_images(paths, Geometry("shorter-crop", 32, 32, shorter=36))
    assert mixed == "images differ in size (80x40 to 64x64); each becomes 32x32"
    assert len(cropped) == 2
    assert all("uninspected" in line for line in cropped)
    assert len(describe_images(paths[:1], Geometry("shorter-crop", 32, 32, shorter=36))) == 1


@pytest.mark.parametrize(
    ("largest", "declared", "needed"),
    [(4095, 16, 12), (1023, 12, 10), (4095, 12, None), (2047, 12, None), (255, 16, 8)],
)
def test_unused_bits_are_noted(
    largest: int, declared: int, needed: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(cv2.imencode(".png", np.full((32, 32), largest, np.uint16))[1].tobytes())
    lines = describe_images([path], GEOMETRY, declared)
    if needed is None:
        assert lines == []
        return
    (line,) = lines
    assert f"needs {needed} of the declared {declared} bits" in line
    assert f"{2 ** (declared - needed)} times darker" in line


def test_files_whose_size_was_read_are_known(tmp_path: Path) -> None:
    paths = []
    for name, height in (("a", 30), ("b", 40), ("c", 50)):
        path = tmp_path / f"{name}.png"
        path.write_bytes(cv2.imencode(".png", np.zeros((height, 20, 3), np.uint8))[1].tobytes())
        paths.append(path)
    images = PreparedImages(paths, GEOMETRY)
    assert images.sizes == {}
    images[0]
    images[1:][1]
    assert images.sizes == {paths[0]: (30, 20), paths[2]: (50, 20)}
