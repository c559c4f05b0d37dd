"""Writing files safely: a crash or a full disk leaves the old content or the new one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flawline import FlawlineError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.scratch import EXCHANGING, work_beside

# Read at once when a file is hashed.
BLOCK = 1 << 20
# Of renameat2 in linux/fs.h and fcntl.h.
RENAME_EXCHANGE = 2
AT_FDCWD = -100
# The end of the name of a file that is being written, which has the process before it.
TEMPORARY = ".tmp"
# One that was just opened is not locked yet.
ABANDONED_S = 60.0


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, unless it is a folder, a pipe or a device. Raises OSError.

    Opening a pipe would wait for its writer, and reading a device need not end.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def read_small(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file. Raises OSError, also for one of more bytes."""
    with open_regular(path) as file:
        _require_small(path, file, most_bytes)
        return file.read()


def _require_small(path: Path, file: BinaryIO, most_bytes: int | None) -> None:
    if most_bytes is not None and os.fstat(file.fileno()).st_size > most_bytes:
        raise OSError(errno.EINVAL, f"it has more than {most_bytes} bytes", str(path))


def sha256_of(path: Path, most_bytes: int | None = None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, without loading it.

    Raises OSError, also for a file of more than `most_bytes`.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        _require_small(path, file, most_bytes)
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def has_unicode_name(path: Path) -> bool:
    """Whether a path is valid Unicode; libraries in C++ cannot open any other by its name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that readers see the old file or the whole new one. Raises OSError.

    With `durable` False it does not wait for the disk, which takes milliseconds: a power failure
    may then leave the new file empty. With True it also removes what killed processes left of the
    same file. A file that is replaced keeps its permissions, and its owner where that is allowed,
    as for root.
    """
    if durable:
        remove_abandoned(path.parent, rf"{re.escape(f'.{path.name}.')}\d+{re.escape(TEMPORARY)}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            keep_from_removal(file)
            if path.is_file():
                old = path.stat()
                with suppress(PermissionError):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if not durable:
        return
    # The new name is safe on disk only when the folder is written, too. The file is there already,
    # and some network file systems cannot do this: it must not be reported as not written.
    with suppress(OSError):
        synchronise_folder(path.parent)


def keep_from_removal(file: BinaryIO) -> None:
    """Let `remove_abandoned` leave a file alone while it is open and this process lives."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(folder: Path, names: str) -> None:
    """Remove the files that killed processes were writing in a folder; `names` is a pattern."""
    name = re.compile(names)
    with suppress(OSError):
        for file in folder.iterdir():
            if name.fullmatch(file.name) and time.time() - file.stat().st_mtime > ABANDONED_S:
                _remove_unless_written(file)


def _remove_unless_written(path: Path) -> None:
    with suppress(OSError), path.open("rb") as file:
        # Raises OSError while another process writes it.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def synchronise_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk. Raises OSError."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_file(path: Path, data: bytes, error: type[FlawlineError], flag: str) -> None:
    """Write a file atomically, and create its folder if necessary.

    Raises `error` if that is impossible; `flag`, for example "--out", names the flag in its remedy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as cause:
        reason = reason_of(cause)
        raise error(f"{path} cannot be written ({reason}); {remedy_of(cause, flag)}") from cause


@contextmanager
def replace_folder(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Give an empty folder to write into; when the block ends, it takes the place of `path`.

    The folder is next to `path`, so that the exchange is a rename. If the block or the exchange
    fails, `path` stays or comes back as it was, and the new folder is removed. One that a killed
    process left is removed by the next call for the same `path`. What was at `path`
    is removed, or with `keep` moved there, in place of what is there. The new folder gets the
    permissions of a replaced one, and all in it its owner where that is allowed, as for root: a
    service may run as that user. Raises OSError.

        with replace_folder(bundle) as new:
            write_atomically(new / "model.onnx", model)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with work_beside(path) as work:
        new = work / "new"
        new.mkdir()
        yield new
        if path.is_dir():
            _take_owner(new, path.stat())
        kept = work / "kept"
        # After a crash, it is not known which of the two folders is in this one.
        exchanging = work / EXCHANGING
        exchanging.touch()
        try:
            if keep is not None and keep.exists():
                os.replace(keep, kept)
            _put_in_place(new, path, keep or work / "old")
        finally:
            if keep is not None and kept.exists() and not keep.exists():
                os.replace(kept, keep)
            exchanging.unlink()


def _take_owner(folder: Path, old: os.stat_result) -> None:
    """Give a folder the permissions of another, and all in it its owner. Raises OSError."""
    paths = [os.fspath(folder)]
    for parent, folders, names in os.walk(folder):
        paths += [os.path.join(parent, name) for name in (*folders, *names)]
    with suppress(PermissionError):
        for path in paths:
            os.chown(path, old.st_uid, old.st_gid, follow_symlinks=False)
    # After the change of the owner, which removes some of them.
    folder.chmod(stat.S_IMODE(old.st_mode))


def _put_in_place(new: Path, path: Path, displaced: Path) -> None:
    """Move a folder to `path`, and what is there to `displaced`. Raises OSError.

    After an error everything is where it was.
    """
    if not path.exists():
        os.replace(new, path)
    elif _exchange(new, path):
        try:
            os.replace(new, displaced)
        except BaseException:
            _exchange(new, path)
            raise
    else:
        os.replace(path, displaced)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(displaced, path)
            raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False where the system does not offer that.

    Between two renames, a reader would find nothing at one of them. Raises OSError.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    # An older kernel, or a file system without it.
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(second))


def copy_folder(source: Path, target: Path, left_out: Collection[str] = ()) -> None:
    """Copy what is in a folder, and in those in it, but for files of some names.

    Unlike `shutil.copytree` it ends with the first error, which names its reason. Raises OSError.
    """
    for parent, _folders, names in os.walk(source, onerror=_raise, followlinks=True):
        folder = target / Path(parent).relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name not in left_out:
                shutil.copy2(Path(parent) / name, folder / name)


def _raise(error: OSError) -> None:
    raise error


def make_writable(folder: Path) -> None:
    """Create a folder with its parents, and check that files can be written there.

    Called before long work, so that a full disk is reported early. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
