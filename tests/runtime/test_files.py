"""A crash or a full disk leaves the old files or the new ones."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
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


def kill(code: str, *words: str) -> None:
    """Run code in a process that ends by SIGKILL."""
    lines = f"import os, signal, sys\n{code}\nos.kill(os.getpid(), signal.SIGKILL)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", lines, *words], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL


WRITES = """
from pathlib import Path
from flawline.runtime.files import replace_folder
written = replace_folder(Path(sys.argv[1]))
(written.__enter__() / "file").write_text("half")
"""


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    kill(WRITES, str(path))
    (left,) = tmp_path.iterdir()
    # Folders of the user, of another path, and one that was just made.
    others = [tmp_path / name for name in (".folder.work", ".folder.work-mine", ".folder.work-b")]
    for other in others:
        other.mkdir()
    kill(WRITES, str(tmp_path / "folder.work-x"))
    with replace_folder(path) as first:
        assert not left.exists()
        with replace_folder(path) as second:
            assert first.is_dir()
            (second / "second").touch()
        (first / "first").touch()
    assert [file.name for file in path.iterdir()] == ["first"]
    assert {*others, path} < set(tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == len(others) + 2


def test_what_was_in_place_when_a_process_was_killed_in_the_exchange_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    killed = """
from flawline.runtime import files
files._put_in_place = lambda new, path, displaced: os._exit(os.kill(os.getpid(), signal.SIGKILL))
written.__exit__(None, None, None)
"""
    keep = tmp_path / "folder.previous"
    keep.mkdir()
    (keep / "older").touch()
    code = f"{WRITES.replace('sys.argv[1])', 'sys.argv[1]), Path(sys.argv[2])')}{killed}"
    kill(code, str(path), str(keep))
    assert not keep.exists()
    with replace_folder(path) as new:
        (new / "new").touch()
    (left,) = tmp_path.glob(".folder.work-*")
    assert (left / "kept" / "older").exists()
    assert f"{left} may have what was there before; look at it, and remove it" in (
        capsys.readouterr().err
    )


def test_a_file_that_a_killed_process_left_is_removed_unless_it_is_being_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    names = (".file.123.tmp", ".file.124.tmp", ".file.125.tmp", ".file.x.tmp", ".other.123.tmp")
    left, written, young, *others = (tmp_path / name for name in names)
    for file in (left, written, *others):
        file.touch()
        os.utime(file, (0, 0))
    young.touch()
    with written.open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        os.utime(written, (0, 0))
        write_atomically(path, b"new", durable=False)
        assert left.exists()
        write_atomically(path, b"new")
    assert set(tmp_path.iterdir()) == {path, written, young, *others}
