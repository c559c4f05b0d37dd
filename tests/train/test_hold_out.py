"""The hold-out: a fifth by rank, the same everywhere, stable when folders come and go."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.runtime.good_images import hold_out as hold_out_module
from flawline.train.data import DataError, GoodImages, hold_out, open_data
from flawline.train.data.split import (
    content_hashes,
    list_hash,
    require_not_trained_on,
    without_copies,
)


def names(count: int, folder: str = "good") -> list[Path]:
    return [Path(folder) / f"{i:04d}.png" for i in range(count)]


def test_hold_out_takes_a_fraction_of_the_images_and_keeps_their_order() -> None:
    training, held_out = hold_out(names(1000))
    assert len(held_out) == 200
    assert sorted(training + held_out) == names(1000)
    assert (training, held_out) == (sorted(training), sorted(held_out))


@pytest.mark.parametrize("pattern", ["frame_{:05d}.png", "img_{:04d}.jpg", "{}.bmp", "p{}/top.png"])
@pytest.mark.parametrize(("count", "held_out"), [(5, 1), (7, 1), (8, 2), (10, 2), (20, 4), (23, 5)])
def test_it_is_a_fifth_whatever_the_names_are(pattern: str, count: int, held_out: int) -> None:
    paths = [Path("d") / pattern.format(i) for i in range(1, count + 1)]
    assert len(hold_out(paths)[1]) == held_out


def test_hold_out_goes_by_name_alone() -> None:
    """It is the same on every machine and does not depend on the order, folder or hash seed."""
    held_out = hold_out(names(20))[1]
    assert [p.name for p in held_out] == ["0003.png", "0014.png", "0015.png", "0019.png"]
    assert hold_out(names(20)[::-1])[1] == held_out[::-1]
    assert [p.name for p in hold_out(names(20, "/elsewhere"))[1]] == [p.name for p in held_out]


def test_hold_out_distinguishes_images_of_the_same_name() -> None:
    paths = [Path(f"/data/part{i:03d}/top.png") for i in range(500)]
    held_out = hold_out(paths)[1]
    assert len(held_out) == 100
    assert held_out[-1] > paths[400]


def write(root: Path, folder: str, count: int) -> None:
    (root / folder).mkdir(parents=True)
    for i in range(count):
        (root / folder / f"{i:03d}.png").write_bytes(f"{folder} {i}".encode())


def test_it_stays_when_folders_come_and_go(tmp_path: Path) -> None:
    """The name of an image must not depend on what else is there."""
    write(tmp_path, "mon", 50)
    before, held_out_before = hold_out(open_data(tmp_path).train_good)
    write(tmp_path, "tue", 30)
    write(tmp_path, "late/wed", 25)
    training, held_out = hold_out(open_data(tmp_path).train_good)
    assert set(before) < set(training)
    assert set(held_out_before) < set(held_out)
    assert len(held_out) == 21


@pytest.mark.parametrize("layout", ["train/good", "good", "train/0_OK", ""])
def test_it_is_the_same_in_every_layout(layout: str, tmp_path: Path) -> None:
    if layout:
        (tmp_path / "plain").mkdir()
    root = tmp_path / "data"
    write(root, layout or ".", 20) if layout else write(tmp_path, "data", 20)
    held_out = hold_out(open_data(root).train_good)[1]
    assert [path.name for path in held_out] == [p.name for p in hold_out(three_digits(20))[1]]


def three_digits(count: int) -> list[Path]:
    return [Path("x") / f"{i:03d}.png" for i in range(count)]


def test_images_that_are_added_move_few_others() -> None:
    training, held_out = hold_out(names(50))
    more_training, more_held_out = hold_out(names(300))
    assert len(set(training) & set(more_held_out)) <= 2
    assert len(set(held_out) & set(more_training)) <= 2


@given(
    sizes=st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 40), min_size=2),
    data=st.data(),
)
def test_a_folder_moves_at_most_the_remainders_of_others(
    sizes: dict[str, int], data: st.DataObject
) -> None:
    """Each folder gives a fifth of its own, rounded down; only the rest is shared."""

    def good(folders: list[str]) -> GoodImages:
        paths = []
        for folder in folders:
            paths += [Path("root") / folder / f"{i}.png" for i in range(sizes[folder])]
        return GoodImages(paths, [Path("root")])

    gone = data.draw(st.sampled_from(sorted(sizes)))
    left = [folder for folder in sorted(sizes) if folder != gone]
    if sum(sizes[folder] for folder in left) < 5:
        return
    training, held_out = hold_out(good(left))
    all_training, all_held_out = hold_out(good(sorted(sizes)))
    assert len(all_held_out) == max(1, int(0.2 * sum(sizes.values()) + 0.5))
    rest = len(held_out) - sum(sizes[folder] // 5 for folder in left)
    all_rest = len(all_held_out) - sum(size // 5 for size in sizes.values())
    assert len(set(training) & set(all_held_out)) <= all_rest
    assert len(set(held_out) & set(all_training)) <= rest
    if all(size % 5 == 0 for size in sizes.values()):
        assert set(training) <= set(all_training)


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.2, 1.0])
@pytest.mark.parametrize("count", [5, 6, 20])
def test_hold_out_leaves_neither_side_empty(
    count: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold_out_module, "HELD_OUT_SHARE", share)
    training, held_out = hold_out(names(count))
    assert training
    assert held_out
    assert sorted(training + held_out) == names(count)


def test_hold_out_needs_five_images() -> None:
    with pytest.raises(
        DataError, match="only 4 good images; at least 5 are needed, 100 or more are better"
    ):
        hold_out(names(4))


# ---------------------------------------------------------------- names in any encoding

GBK = b"\xc1\xbc\xc6\xb7"


def test_names_that_are_not_utf8_are_split_and_hashed(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + GBK))
    folder.mkdir()
    for i in range(10):
        (folder / os.fsdecode(GBK + b"%d.png" % i)).write_bytes(b"%d" % i)
    paths = open_data(folder).train_good
    training, held_out = hold_out(paths)
    assert (len(training), len(held_out)) == (8, 2)
    assert len(list_hash(training)) == 16
    assert len(set(content_hashes(paths))) == 10


def test_composed_and_decomposed_names_are_the_same_image() -> None:
    """macOS decomposes the accents of names."""
    composed = [Path("d") / f"Stück {i}.png" for i in range(40)]
    decomposed = [Path(unicodedata.normalize("NFD", str(path))) for path in composed]
    assert decomposed != composed
    held_out = hold_out(decomposed)[1]
    assert [Path(unicodedata.normalize("NFC", str(path))) for path in held_out] == hold_out(
        composed
    )[1]


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=5, max_size=12, unique=True))
def test_any_bytes_are_a_name(raw: list[bytes]) -> None:
    paths = []
    for name in raw:
        cleaned = name.replace(b"/", b"_").replace(b"\0", b"_").replace(b".", b"_")
        paths.append(Path("d") / os.fsdecode(b"%d" % len(paths) + cleaned))
    training, held_out = hold_out(paths)
    assert sorted(training + held_out) == sorted(paths)


# ---------------------------------------------------------------- trained on and held out


def files(root: Path, *contents: str) -> list[Path]:
    paths = []
    for content in contents:
        path = root / f"{len(list(root.iterdir()))}.png"
        path.write_text(content)
        paths.append(path)
    return paths


def test_held_out_images_that_were_trained_on_are_refused_under_any_name(tmp_path: Path) -> None:
    trained_on = content_hashes(files(tmp_path, "a", "b", "c"))
    held_out = files(tmp_path, "d", "b")
    with pytest.raises(DataError, match=r"1 of 2 held-out images were trained on, .*4\.png"):
        require_not_trained_on(held_out, trained_on)
    require_not_trained_on(held_out[:1], trained_on)


def test_copies_set_no_threshold(tmp_path: Path) -> None:
    training = files(tmp_path, "a", "b")
    held_out = files(tmp_path, "c", "b", "d", "c")
    assert without_copies(held_out, training) == [held_out[0], held_out[2]]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        content_hashes([tmp_path / "gone.png"])
