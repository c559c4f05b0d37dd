"""Good next to bad: recognised by the names of folders, or refused, never learnt."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flawline.cameras.folder_names import folder_kind
from flawline.train.data import DataError, DataSet, open_data


def write_all(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), number, np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return root


def good(data: DataSet) -> list[str]:
    return [path.relative_to(data.root).as_posix() for path in data.train_good]


def test(data: DataSet) -> list[tuple[str, str | None, str | None]]:
    samples = []
    for sample in data.test:
        mask = None
        if sample.mask is not None:
            mask = sample.mask.relative_to(data.root).as_posix()
        samples.append((sample.path.relative_to(data.root).as_posix(), sample.defect, mask))
    return samples


test.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[(name, "good") for name in ("good", "Good", "GOOD", "ok", "OK", "normal", "0_normal")],
        *[(name, "good") for name in ("good parts", "OK-parts", "non_defective", "IO", "良品")],
        *[(name, "bad") for name in ("bad", "BAD", "NG", "abnormal", "1_anomaly", "bad parts")],
        *[
            (name, "bad")
            for name in ("not good", "no_ok", "NiO", "Scratch", "不良品", "good_and_bad")
        ],
        *[(name, "mask") for name in ("mask", "Masks", "ground_truth", "Ground-Truth", "GT")],
        *[(name, None) for name in ("monday", "2024-05-01", "goodyear", "part_mask_left", "")],
    ],
)
def test_a_name_tells_what_is_in_a_folder(name: str, kind: str | None) -> None:
    assert folder_kind(name) == kind


@pytest.mark.parametrize(
    ("good_name", "bad_name"),
    [("good", "crack"), ("good", "bad"), ("OK", "NG"), ("normal", "abnormal"), ("0_Normal", "1_x")],
)
def test_good_next_to_bad_is_recognised(good_name: str, bad_name: str, tmp_path: Path) -> None:
    root = write_all(
        tmp_path,
        f"{good_name}/0.png",
        f"{good_name}/monday/0.png",
        f"{bad_name}/0.png",
        f"{bad_name}/1.png",
        f"mask/{bad_name}/0.png",
        f"mask/{bad_name}/1_mask.png",
    )
    data = open_data(root)
    assert good(data) == [f"{good_name}/0.png", f"{good_name}/monday/0.png"]
    assert test(data) == [
        (f"{bad_name}/0.png", bad_name, f"mask/{bad_name}/0.png"),
        (f"{bad_name}/1.png", bad_name, f"mask/{bad_name}/1_mask.png"),
    ]
    assert data.notes == ()


def test_the_masks_of_one_kind_may_lie_directly_in_their_folder(tmp_path: Path) -> None:
    root = write_all(tmp_path, "normal/0.png", "abnormal/0.png", "mask/0.png")
    assert test(open_data(root)) == [("abnormal/0.png", "abnormal", "mask/0.png")]


def test_a_test_folder_next_to_the_good_one_is_read(tmp_path: Path) -> None:
    root = write_all(tmp_path, "good/0.png", "test/OK/0.png", "test/crack/0.png")
    assert test(open_data(root)) == [
        ("test/OK/0.png", None, None),
        ("test/crack/0.png", "crack", None),
    ]


def test_another_product_next_to_the_good_folder_is_no_defect(tmp_path: Path) -> None:
    root = write_all(tmp_path, "good/0.png", "line2/good/0.png", "line2/bad/0.png")
    with pytest.raises(DataError, match="holds good images inside"):
        open_data(root)


@pytest.mark.parametrize(
    "folders",
    [
        ("monday/good", "monday/bad"),
        ("monday/OK", "monday/scratch on side"),
        ("monday/good", "monday/xyz"),
        ("bad", "monday"),
        ("monday", "tuesday/NG"),
        ("monday", "masks"),
        ("a/test/crack", "b"),
        ("a/Train/0_good", "b"),
        ("a/b/c/Ground-Truth", "b"),
    ],
)
def test_what_shows_bad_parts_is_refused(folders: tuple[str, ...], tmp_path: Path) -> None:
    root = write_all(tmp_path, "0.png", *[f"{folder}/0.png" for folder in folders])
    with pytest.raises(DataError, match="shows that not every image here is a good part"):
        open_data(root)


def test_folders_of_days_and_lines_are_plain(tmp_path: Path) -> None:
    names = ["monday/0.png", "tuesday/night/0.png", "line 1/good/0.png", "line 2/good/0.png"]
    assert good(open_data(write_all(tmp_path, *names))) == sorted(names)


@pytest.mark.parametrize("inner", ["bad", "NG", "mask", "good_and_bad"])
def test_a_good_folder_must_hold_good_parts_only(inner: str, tmp_path: Path) -> None:
    root = write_all(tmp_path, "train/good/0.png", f"train/good/x/{inner}/0.png")
    with pytest.raises(DataError, match="shows that not every image here is a good part"):
        open_data(root)


@pytest.mark.parametrize(
    "mask",
    [
        "Part0_mask.png",
        "Part0_LABEL.png",
        "Part0_GT.png",
        "Part0.mask.png",
        "Part0-mask.bmp",
        "mask_Part0.png",
        "Part7_mask.png",
        # A photograph as JPEG with its mask as PNG, as in the set of magnetic tiles.
        "Part0.jpg",
    ],
)
def test_masks_next_to_their_images_are_not_learnt(mask: str, tmp_path: Path) -> None:
    root = write_all(tmp_path, "kos01/Part0.png", f"kos01/{mask}")
    with pytest.raises(DataError, match="is named as the mask of an image, or as a second file"):
        open_data(root)


def test_images_whose_names_hold_the_word_are_learnt(tmp_path: Path) -> None:
    names = ["maskbox/label_1.png", "maskbox/label_2.png", "maskbox/unmasked.png"]
    assert good(open_data(write_all(tmp_path, *names))) == names


@pytest.mark.parametrize("name", ["ground_truth", "Masks"])
def test_a_folder_of_masks_is_not_learnt(name: str, tmp_path: Path) -> None:
    root = write_all(tmp_path / name, "0.png", "1.png")
    with pytest.raises(DataError, match="is named as a folder of masks; give the folder of good"):
        open_data(root)


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    root = write_all(tmp_path, "0.png")
    with pytest.raises(DataError, match="is a file and no folder; give the folder"):
        open_data(root / "0.png")


@pytest.mark.parametrize("folder", [".", "train/good"])
def test_a_folder_without_permission_is_not_called_empty(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_all(tmp_path, "train/good/0.png")
    if folder == ".":
        root = root / "train" / "good"
    list_folder = os.listdir

    def forbidden(path: Path) -> list[str]:
        # Permissions do not stop root, as which containers run tests.
        if Path(path) == tmp_path / "train" / "good":
            raise PermissionError(13, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(DataError, match="1 folder without permission to read; check the perm"):
        open_data(root)


@pytest.mark.parametrize("name", ["Good", "GOOD", "normal", "0_normal", "OK"])
def test_good_test_images_are_recognised_in_any_spelling(name: str, tmp_path: Path) -> None:
    root = write_all(tmp_path, f"train/{name}/0.png", f"test/{name}/0.png", "test/dent/0.png")
    data = open_data(root)
    assert good(data) == [f"train/{name}/0.png"]
    assert {defect for _, defect, _ in test(data)} == {None, "dent"}


def test_train_with_a_capital_letter_is_not_dagm(tmp_path: Path) -> None:
    root = write_all(
        tmp_path,
        "Train/Good/0.png",
        "Test/Good/0.png",
        "Test/Scratch/0.png",
        "Ground_Truth/scratch/0_MASK.png",
    )
    data = open_data(root)
    assert good(data) == ["Train/Good/0.png"]
    assert test(data) == [
        ("Test/Good/0.png", None, None),
        ("Test/Scratch/0.png", "Scratch", "Ground_Truth/scratch/0_MASK.png"),
    ]


def test_two_training_folders_are_refused(tmp_path: Path) -> None:
    root = write_all(tmp_path, "train/good/0.png", "Train/good/1.png")
    if len(list(root.iterdir())) == 1:
        pytest.skip("this file system ignores case")
    with pytest.raises(DataError, match="holds both train and Train"):
        open_data(root)


def test_mvtec_3d_gives_colour_images_and_masks(tmp_path: Path) -> None:
    root = write_all(
        tmp_path,
        "train/good/rgb/0.png",
        "train/good/xyz/0.png",
        "test/crack/rgb/0.png",
        "test/crack/xyz/0.png",
        "test/crack/gt/0.png",
        "test/good/rgb/0.png",
        "test/good/gt/0.png",
    )
    data = open_data(root)
    assert good(data) == ["train/good/rgb/0.png"]
    assert test(data) == [
        ("test/crack/rgb/0.png", "crack", "test/crack/gt/0.png"),
        ("test/good/rgb/0.png", None, None),
    ]


def test_hidden_folders_are_neither_learnt_nor_a_defect(tmp_path: Path) -> None:
    root = write_all(
        tmp_path,
        "train/good/0.png",
        "train/good/.Trash-1000/files/1.png",
        "train/.hidden/2.png",
        "test/good/0.png",
        "test/.ipynb_checkpoints/0-checkpoint.png",
        "test/@eaDir/0.png",
    )
    data = open_data(root)
    assert good(data) == ["train/good/0.png"]
    assert test(data) == [("test/good/0.png", None, None)]
    assert data.left_out[0].startswith("4 hidden or system folders (")


def test_one_line_says_what_was_taken_and_what_was_left(tmp_path: Path) -> None:
    root = write_all(
        tmp_path,
        "train/good/0.png",
        "train/good/1.png",
        "train/other/2.png",
        "test/flat.png",
        "test/ok/0.png",
        "test/dent/0.png",
        "test/dent/1.png",
        "ground_truth/dent/0_mask.png",
    )
    (root / "notes.txt").touch()
    (root / ".git").mkdir()
    (root / "train" / "good" / "again.png").symlink_to("0.png")
    assert open_data(root).describe() == [
        f"data {root}: 2 good images to train and set the threshold; 1 good and 2 defective ones "
        "for the test (dent 2; 1 mask); left out: 2 images (1 in test, 1 in train/other), "
        "1 hidden or system folder (1 .git), 1 link to what is counted already, "
        "1 other file (1 .txt)",
        "note: 1 of 2 defective images have no mask",
    ]
    plain = write_all(tmp_path / "plain", "0.png")
    assert open_data(plain).describe() == [
        f"data {plain}: 1 good image to train and set the threshold; no test images; "
        "left out: nothing"
    ]


def test_a_trained_image_is_no_test_image(tmp_path: Path) -> None:
    root = write_all(tmp_path, "train/good/0.png", "test/good/1.png", "test/dent/0.png")
    (root / "test" / "good" / "0.png").symlink_to(root / "train" / "good" / "0.png")
    (root / "test" / "stain").symlink_to("dent")
    data = open_data(root)
    assert good(data) == ["train/good/0.png"]
    assert test(data) == [("test/dent/0.png", "dent", None), ("test/good/1.png", None, None)]


def test_a_file_cannot_be_good_and_defective(tmp_path: Path) -> None:
    root = write_all(tmp_path, "train/good/0.png", "test/dent/1.png")
    os.link(root / "train" / "good" / "0.png", root / "test" / "dent" / "0.png")
    with pytest.raises(DataError, match="are the same file, once as a good part"):
        open_data(root)


def test_a_split_by_links_into_one_folder_is_read(tmp_path: Path) -> None:
    root = write_all(tmp_path, "pool/0.png", "pool/1.png")
    for folder, name in (("train/good", "0.png"), ("test/dent", "1.png")):
        (root / folder).mkdir(parents=True)
        (root / folder / name).symlink_to(root / "pool" / name)
    data = open_data(root)
    assert good(data) == ["train/good/0.png"]
    assert test(data) == [("test/dent/1.png", "dent", None)]
    assert data.left_out[-1:] == ("2 links to what is counted already",)


# ---------------------------------------------------------------- masks by name


def with_masks(root: Path, *masks: str) -> DataSet:
    images = [f"test/scratch/{i}.png" for i in range(3)]
    return open_data(write_all(root, "train/good/0.png", "test/dent/9.png", *images, *masks))


@pytest.mark.parametrize(
    "name",
    [
        "ground_truth/scratch/%d_gt.png",
        "ground_truth/scratch/%d_MASK.PNG",
        "ground_truth/Scratch/%d_mask.png",
        "Ground_truth/scratch/%d.png",
        "masks/scratch/%d.png",
        "GT/scratch/%d_label.png",
    ],
)
def test_masks_are_found_in_any_case_and_folder(name: str, tmp_path: Path) -> None:
    data = with_masks(tmp_path, *[name % i for i in range(3)])
    assert [mask for _, _, mask in test(data)] == [None, *[name % i for i in range(3)]]


@pytest.mark.parametrize(
    "name",
    ["scratch/mask_%d.png", "scratch/%d.png.png", "scratch/%d/000.png", "%d_mask.png", "x/%d.png"],
)
def test_misnamed_and_misplaced_masks_are_reported(name: str, tmp_path: Path) -> None:
    data = with_masks(tmp_path, *[f"ground_truth/{name}" % i for i in range(3)])
    assert not [sample for sample in data.test if sample.mask]
    assert data.notes == (
        "4 of 4 defective images have no mask although ground_truth holds 3 masks of no defective "
        "image; a mask is named NAME_mask, NAME_label, NAME_gt or NAME and lies in "
        "ground_truth/DEFECT",
    )


def test_a_mask_too_many_is_reported(tmp_path: Path) -> None:
    masks = [f"ground_truth/scratch/{i}.png" for i in range(4)]
    data = with_masks(tmp_path, *masks, "ground_truth/dent/9.png")
    assert data.notes == ("ground_truth holds 1 mask of no defective image",)


# ---------------------------------------------------------------- any tree

SOME_NAMES = ["good", "OK", "bad", "NG", "mask", "monday", "test", "train", ".trash", "crack"]
TREES = st.sets(
    st.lists(st.sampled_from(SOME_NAMES), max_size=3).map("/".join), min_size=1, max_size=6
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(folders=TREES)
def test_in_any_tree_nothing_bad_is_learnt(
    tmp_path_factory: pytest.TempPathFactory, folders: set[str]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "0.png").write_bytes(b"never read")
    try:
        data = open_data(root)
    except DataError:
        return
    learnt = []
    for path in data.train_good:
        learnt.append(path.relative_to(root).parts[:-1])
    for parts in learnt:
        kinds = {folder_kind(name) for name in parts}
        assert not kinds & {"bad", "mask"}
        assert ".trash" not in parts
    # An image of unknown kind is learnt only where no folder of good images is next to it.
    if any("good" in map(folder_kind, parts) for parts in learnt):
        top = {parts[0] for parts in learnt if parts}
        assert not {"crack"} & top
    taken = [sample.path for sample in data.test] + list(data.train_good)
    assert len(set(taken)) == len(taken)
