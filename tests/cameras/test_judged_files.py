"""The memory of a watched folder: small, exact, and limited to files that exist."""

from __future__ import annotations

import pytest

from flawline.cameras import judged_files
from flawline.cameras.judged_files import FORGET_AFTER_S, FileStatus, JudgedFiles, entry_key


def status(index: int, modified_ns: int = 1_500_000_001) -> FileStatus:
    return FileStatus(device=1, inode=index, modified_ns=modified_ns, size=100)


def filled(count: int, now: float = 0.0) -> JudgedFiles:
    judged = JudgedFiles()
    for index in range(count):
        judged.add(entry_key(f"/{index}.png", index), f"/{index}.png", status(index), now)
    return judged


@pytest.mark.parametrize("least_added", [1, 7, 10_000])
def test_every_file_is_found_wherever_it_is_kept(
    least_added: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged_files, "LEAST_ADDED", least_added)
    judged = filled(50)
    assert len(judged) == 50
    keys = [entry_key(f"/{index}.png", index) for index in range(100)]
    assert judged.see(keys, 1).tolist() == [True] * 50 + [False] * 50
    for index in range(100):
        path = f"/{index}.png"
        assert judged.knows(path, status(index)) == (index < 50)
        assert not judged.knows(path, status(index, 1_500_000_002))
        if index < 50:
            assert not judged.is_changed(keys[index], path, status(index))
            assert judged.is_changed(keys[index], path, status(index, 1_500_000_002))


def test_a_new_version_replaces_the_old_one() -> None:
    judged = filled(10)
    judged.forget(1)
    newer = status(3, 2_500_000_001)
    key = entry_key("/3.png", 3)
    judged.add(key, "/3.png", newer, 2)
    for _ in range(2):
        assert judged.knows("/3.png", newer)
        assert not judged.is_changed(key, "/3.png", newer)
        judged.forget(3)
    assert len(judged) == 10


def test_a_moved_file_is_known_and_one_with_the_inode_of_another_is_not() -> None:
    judged = JudgedFiles()
    judged.add(1, "/a.png", status(5), 0)
    assert judged.knows("/moved/a.png", status(5))
    # A share that changed the inodes of its files, and a file that has the inode of a deleted one.
    assert judged.knows("/a.png", status(6))
    assert not judged.knows("/b.png", status(5, 1_500_000_002))
    # With times in whole seconds, the next file may have the same inode, time and size.
    judged.add(2, "/c.png", status(7, 3_000_000_000), 0)
    assert judged.knows("/c.png", status(7, 3_000_000_000))
    assert not judged.knows("/d.png", status(7, 3_000_000_000))


def test_what_was_not_seen_for_an_hour_is_forgotten() -> None:
    judged = filled(1000)
    seen = [entry_key(f"/{index}.png", index) for index in range(0, 1000, 2)]
    judged.forget(FORGET_AFTER_S - 1)
    assert judged.see(seen, FORGET_AFTER_S - 1).all()
    judged.forget(FORGET_AFTER_S + 1)
    assert len(judged) == 500
    assert judged.see(seen, FORGET_AFTER_S + 1).all()
    assert judged.knows("/2.png", status(2))
    assert not judged.knows("/3.png", status(3))


def test_a_file_takes_48_bytes() -> None:
    judged = filled(20_000)
    judged.forget(1)
    size = judged._rows.nbytes + judged._versions.nbytes + judged._files.nbytes
    assert size == 48 * 20_000
    assert not judged._added
    assert not judged._added_hashes
