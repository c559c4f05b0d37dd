"""Good images that a list leaves out of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import write_levels

from flawline.train.data import DataError, DataSet, hold_out, open_data
from flawline.train.data.exclusion import list_line, read_exclusion_list, without_images
from flawline.train.data.split import content_hashes

LEVELS = range(0, 200, 20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_levels(tmp_path / "part", {"train/good": LEVELS, "test/good": [7]}, 8)


def written(folder: Path, text: str) -> Path:
    path = folder / "list.txt"
    path.write_bytes(text.encode())
    return path


def names(data_set: DataSet) -> list[str]:
    return sorted(path.stem for path in data_set.train_good)


def test_a_list_has_one_path_per_line(root: Path, tmp_path: Path) -> None:
    """Paths are absolute, or below the folder of the data set from wherever the command runs."""
    absolute = root / "train/good/40.png"
    text = f"\ufeff# a comment\n\ntrain/good/20.png\r\n  \n{absolute}\ntrain/good/60.png  "
    excluded = read_exclusion_list(written(tmp_path, text), open_data(root))
    assert len(excluded) == 3
    assert list(excluded) == sorted(excluded)
    data_set = open_data(root, excluded)
    assert set(names(data_set)) == {str(level) for level in LEVELS} - {"20", "40", "60"}
    assert {path.stem for path in data_set.excluded} == {"20", "40", "60"}
    assert "left out: 3 good images by --exclude-images" in data_set.describe()[0]


def test_names_with_odd_characters_are_listed_and_read_again(tmp_path: Path) -> None:
    root = write_levels(tmp_path / "part", {".": range(0, 240, 20)}, 8)
    (root / "f").mkdir()
    renamed = {"0": " 0.png", "20": "#20.png", "40": "b\xe4r 40.png", "60": "f/60.png"}
    renamed |= {"80": "8\n0.png", "100": "1\n#\n\udcff.png"}
    odd = []
    for level, name in renamed.items():
        odd.append((root / f"{level}.png").rename(root / name))
    lines = [list_line(path, root) for path in odd]
    assert not any("\n" in line for line in lines)
    excluded = read_exclusion_list(written(tmp_path, "\n".join(lines)), open_data(root))
    assert set(open_data(root, excluded).excluded) == set(odd)


def test_a_line_that_names_no_good_image_is_an_error(root: Path, tmp_path: Path) -> None:
    data_set = open_data(root)
    for name in ("train/good/1.png", "test/good/7.png", "train/good"):
        path = written(tmp_path, f"train/good/20.png\n{name}\n")
        with pytest.raises(DataError, match=f"line 2 \\({name}\\) names no good image .*; correct"):
            read_exclusion_list(path, data_set)


@pytest.mark.parametrize("content", [b"a\0b", None])
def test_a_file_that_is_no_list_is_an_error(
    root: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"--exclude-images .*list.txt: .*one path per line"):
        read_exclusion_list(path, open_data(root))


def test_a_copy_of_an_excluded_image_is_left_out_too(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "train/good/20.png", root / "train/good/copy.png")
    list_file = written(tmp_path, "train/good/copy.png")
    data_set = open_data(root, read_exclusion_list(list_file, open_data(root)))
    assert {path.stem for path in data_set.excluded} == {"20", "copy"}


def test_an_excluded_image_is_on_neither_side_of_the_hold_out(root: Path, tmp_path: Path) -> None:
    data_set = open_data(root)
    _, held_out = hold_out(data_set.train_good)
    list_file = written(tmp_path, str(held_out[0]))
    rest = without_images(data_set, read_exclusion_list(list_file, data_set)).train_good
    learnt, held_out_of_rest = hold_out(rest)
    assert held_out[0] not in [*learnt, *held_out_of_rest]
    # Names are still relative to the folder of good images.
    assert rest.name_of(learnt[0]) == Path(learnt[0].name)


def test_too_few_images_may_be_left(root: Path, tmp_path: Path) -> None:
    data_set = open_data(root)
    list_file = written(tmp_path, "\n".join(map(str, data_set.train_good[:6])))
    with pytest.raises(DataError, match=r"list.txt leaves 4 of 10 good images, and at least 5 are"):
        read_exclusion_list(list_file, data_set)
    # Of a checkpoint or a bundle, the hashes alone are known.
    excluded = content_hashes(data_set.train_good)
    with pytest.raises(DataError, match=r"part: --exclude-images leaves 0 of 10 good images"):
        open_data(root, excluded)


def test_an_empty_list_is_noted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_exclusion_list(written(tmp_path, "# none\n\n"), open_data(root)) == ()
    assert "list.txt names no image: no good image is left out" in capsys.readouterr().err
