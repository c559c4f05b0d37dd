"""A crash or a full disk leaves the old files or the new ones."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from flawline import FlawlineError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.files import (
    copy_folder,
    make_writable,
    replace_folder,
    write_atomically,
    write_file,
)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_written_is_not_reported_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def not_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", not_for_folders)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_may_be_written_without_waiting_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    write_atomically(tmp_path / "file", b"new", durable=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_copy_ends_with_the_first_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("x")
    (source / "log").touch()
    copy_folder(source, tmp_path / "target", ("log",))
    assert [path.name for path in sorted((tmp_path / "target").rglob("*"))] == ["inner", "file"]
    (source / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="gone"):
        copy_folder(source, tmp_path / "other")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "folder"
    for name in ("first", "second"):
        with replace_folder(path) as new:
            (new / name).touch()
            assert not (path / name).exists()
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("interrupted", ["new", "old"])
def test_an_interrupted_exchange_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "first").touch()
    replace = os.replace

    def interrupt(source: Path, target: Path) -> None:
        if interrupted in (Path(source).name, Path(target).name) and target != path / "first":
            monkeypatch.setattr("os.replace", replace)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt), replace_folder(path) as new:
        (new / "second").touch()
    assert [file.name for file in path.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="No space"), replace_folder(path):
        full_disk()
    assert list(path.iterdir()) == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_created_and_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    monkeypatch.setattr("tempfile.TemporaryFile", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_writable(tmp_path)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_writable(tmp_path / "file")


class WriteError(FlawlineError):
    pass


def test_a_file_is_written_with_its_folder_or_the_error_of_the_caller_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_file(path, b"content", WriteError, "--out")
    assert path.read_bytes() == b"content"
    message = r"file/below cannot be written \(.*\); check the path, or choose another --out"
    with pytest.raises(WriteError, match=message):
        write_file(path / "below", b"", WriteError, "--out")
    monkeypatch.setattr("os.fsync", full_disk)
    message = r"\(No space left on device\); free disk space, or choose another --out"
    with pytest.raises(WriteError, match=message):
        write_file(path, b"other", WriteError, "--out")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOENT, "check the path"),
        (errno.ENOTDIR, "check the path"),
        (errno.EACCES, "check the permissions"),
        (errno.EROFS, "check the permissions"),
        (errno.ENOSPC, "free disk space"),
        (errno.EIO, "check the path, its permissions and the free disk space"),
    ],
)
def test_the_remedy_follows_the_cause(number: int, remedy: str) -> None:
    error = OSError(number, os.strerror(number))
    assert remedy_of(error) == remedy
    assert remedy_of(error, "--out") == f"{remedy}, or choose another --out"
    assert reason_of(error) == os.strerror(number)
    assert reason_of(OSError()) == "OSError"
