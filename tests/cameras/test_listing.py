"""Which files of a folder are listed: each real file once, none of the system's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flawline.cameras.decode import list_images
from flawline.cameras.listing import SYSTEM_FOLDERS, LeftOut, count_of, list_files, subfolders


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names(root: Path, left_out: LeftOut | None = None) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_images(root, left_out)]


def test_a_link_to_its_own_folder_counts_nothing_twice(tmp_path: Path) -> None:
    root = touch(tmp_path / "parts", "0.png", "a/1.png")
    (root / "latest").symlink_to(".")
    (root / "a" / "up").symlink_to("..")
    left_out = LeftOut()
    assert names(root, left_out) == ["0.png", "a/1.png"]
    assert left_out.describe() == ["2 links to what is counted already"]


def test_a_folder_linked_next_to_itself_is_listed_under_its_own_name(tmp_path: Path) -> None:
    root = touch(tmp_path / "parts", "b/1.png", "b/2.png")
    (root / "a").symlink_to("b")
    assert names(root) == ["b/1.png", "b/2.png"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    touch(tmp_path / "archive", "1.png", "deep/2.png")
    root = touch(tmp_path / "parts", "0.png")
    (root / "archive").symlink_to(tmp_path / "archive")
    assert names(root) == ["0.png", "archive/1.png", "archive/deep/2.png"]


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    """It would list the neighbours of the folder as well."""
    touch(tmp_path / "bad", "9.png")
    root = touch(tmp_path / "parts", "0.png")
    (root / "all").symlink_to(tmp_path)
    assert names(root) == ["0.png"]


def test_links_and_hard_links_to_a_file_count_once(tmp_path: Path) -> None:
    root = touch(tmp_path, "b.png", "c.png")
    (root / "a.png").symlink_to("b.png")
    os.link(root / "c.png", root / "d.png")
    left_out = LeftOut()
    assert names(root, left_out) == ["b.png", "c.png"]
    assert left_out.repeated == 2


def test_broken_links_are_listed_so_that_they_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("gone.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "folder").symlink_to("gone")
    assert names(tmp_path) == ["a.png", "self.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_left_out_and_counted(tmp_path: Path) -> None:
    root = touch(tmp_path, "0.png")
    os.mkfifo(root / "1.png")
    (root / "2.png").symlink_to("1.png")
    left_out = LeftOut()
    assert names(root, left_out) == ["0.png"]
    assert left_out.describe() == ["2 other files (2 pipe or device)"]


@pytest.mark.parametrize("name", [*SYSTEM_FOLDERS, ".Trash-1000", ".ipynb_checkpoints", "@eaDir"])
def test_system_folders_are_left_out_and_counted(name: str, tmp_path: Path) -> None:
    root = touch(tmp_path, "0.png", f"{name}/files/1.png", f"a/{name.upper()}/2.png")
    left_out = LeftOut()
    assert names(root, left_out) == ["0.png"]
    assert left_out.folders.total() == 2
    assert left_out.describe()[0].startswith("2 hidden or system folders (1 ")
    assert [path.name for path in subfolders(root)] == ["a"]


def test_a_hidden_folder_that_is_given_is_listed(tmp_path: Path) -> None:
    assert names(touch(tmp_path / ".cache", "0.png")) == ["0.png"]


def test_what_is_left_out_is_counted_per_kind(tmp_path: Path) -> None:
    root = touch(tmp_path, "0.png", "._0.png", ".DS_Store", "a.txt", "b.TXT", "c.heic", "LICENSE")
    left_out = LeftOut()
    assert names(root, left_out) == ["0.png"]
    assert left_out.describe() == [
        "1 image of formats that are not read (1 .heic; save them as PNG)",
        "2 hidden files",
        "3 other files (2 .txt, 1 without an ending)",
    ]


def test_a_folder_without_permission_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    list_names = os.listdir

    def refuse(folder: Path) -> list[str]:
        if folder.name == "a":
            raise PermissionError
        return list_names(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    left_out = LeftOut()
    assert names(tmp_path, left_out) == []
    assert left_out.describe() == ["1 folder without permission to read"]


def test_an_absent_folder_lists_nothing(tmp_path: Path) -> None:
    assert list_images(tmp_path / "gone") == []


def test_numbers_agree_with_their_nouns() -> None:
    assert count_of(0, "link") == "0 links"
    assert count_of(1, "link") == "1 link"


PARTS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=0, max_size=3).map("/".join)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.sets(PARTS, min_size=1, max_size=5),
    links=st.lists(st.tuples(PARTS, PARTS, st.booleans()), max_size=5),
)
def test_any_tree_of_links_lists_each_real_file_once(
    tmp_path_factory: pytest.TempPathFactory,
    files: set[str],
    links: list[tuple[str, str, bool]],
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for folder in files:
        touch(root, f"{folder}/0.png".lstrip("/"))
    for number, (place, target, is_file) in enumerate(links):
        (root / place).mkdir(parents=True, exist_ok=True)
        name = f"link{number}.png" if is_file else f"link{number}"
        aim = root / target / "0.png" if is_file else root / target
        (root / place / name).symlink_to(aim)
    listed = list_files(root, lambda path: path.suffix == ".png" and path.exists())
    assert sorted({path.resolve() for path in listed}) == sorted(p.resolve() for p in listed)
    assert {path.resolve() for path in listed} == {
        (root / folder / "0.png").resolve() for folder in files
    }
    assert not [path for path in listed if "link" in path.as_posix()]


def test_all_endings_of_images_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("a.gif", "b.GIF", "c.jp2", "d.avif", "e.exr", "f.psd", ".g.gif", "h.txt"):
        (tmp_path / name).touch()
    left_out = LeftOut()
    assert list_images(tmp_path, left_out) == []
    assert left_out.describe() == [
        "6 images of formats that are not read "
        "(2 .gif, 1 .avif, 1 .exr, 1 .jp2, 1 .psd; save them as PNG)",
        "1 hidden file",
        "1 other file (1 .txt)",
    ]
