"""The files of a folder and its subfolders: each real file once, without system folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Folders that hold copies, thumbnails or deleted files, which are often those of bad parts. Names
# are compared without case. A folder whose name begins with a dot is hidden and left out as well,
# for example .Trash-1000, .ipynb_checkpoints, .thumbnails and .git.
SYSTEM_FOLDERS = {
    "@eadir": "thumbnails on a Synology NAS",
    "#recycle": "deleted files on a Synology NAS",
    "#snapshot": "snapshots on a Synology NAS",
    "@recycle": "deleted files on a QNAP NAS",
    "@recently-snapshot": "snapshots on a QNAP NAS",
    "__macosx": "second halves of files in archives from macOS",
    "network trash folder": "deleted files on a share of macOS",
    "temporary items": "unfinished files on a share of macOS",
    "$recycle.bin": "deleted files of Windows",
    "recycler": "deleted files of old Windows",
    "system volume information": "snapshots of Windows",
    "found.000": "file fragments from a disk check of Windows",
    "lost+found": "file fragments from a disk check of Linux",
    "__pycache__": "compiled files of Python",
}
# Endings of images, and so of parts, that are not read. They are reported, and never left out
# without a message.
UNREAD_SUFFIXES = (
    ".gif",
    ".jp2",
    ".j2k",
    ".jpx",
    ".jxl",
    ".jxr",
    ".avif",
    ".heic",
    ".heif",
    ".exr",
    ".hdr",
    ".pbm",
    ".pam",
    ".pfm",
    ".ras",
    ".tga",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
    ".psd",
)
DIGITS = re.compile(r"(\d+)", re.ASCII)
# Names in a message; the rest is only counted.
NAMES_SHOWN = 3

# Device and inode of a real file or folder; a path where there is none, as for a broken link.
FileKey = tuple[int, int] | str


@dataclass
class LeftOut:
    """What a listing left out, counted per kind.

    Attributes:
        folders: hidden and system folders, by name.
        unreadable: folders that cannot be read.
        repeated: links to files and folders that are listed already, and links to a folder that
            contains the listed one.
        hidden: hidden files.
        unread: images of formats that are not read, by their ending.
        other: files that are no images, by their ending.
    """

    folders: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    repeated: int = 0
    hidden: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)

    def describe(self) -> list[str]:
        """Return one phrase for each kind of which something was left out."""
        phrases = []
        if self.unread:
            phrases.append(
                f"{count_of(self.unread.total(), 'image')} of formats that are not read "
                f"({_all_of(self.unread)}; save them as PNG)"
            )
        if self.folders:
            phrases.append(
                f"{count_of(self.folders.total(), 'hidden or system folder')} "
                f"({_most_common(self.folders)})"
            )
        if self.unreadable:
            phrases.append(f"{count_of(self.unreadable, 'folder')} without permission to read")
        if self.repeated:
            phrases.append(f"{count_of(self.repeated, 'link')} to what is counted already")
        if self.hidden:
            phrases.append(count_of(self.hidden, "hidden file"))
        if self.other:
            phrases.append(
                f"{count_of(self.other.total(), 'other file')} ({_most_common(self.other)})"
            )
        return phrases


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 file" or "2 files"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}s"


def _parts(counts: Counter[str]) -> list[str]:
    parts = []
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        parts.append(f"{count} {name}")
    return parts


def _all_of(counts: Counter[str]) -> str:
    return ", ".join(_parts(counts))


def _most_common(counts: Counter[str]) -> str:
    parts = _parts(counts)
    if len(parts) > NAMES_SHOWN:
        parts[NAMES_SHOWN:] = ["..."]
    return ", ".join(parts)


def is_unread(path: Path) -> bool:
    """Tell by its ending whether a file is an image of a format that is not read."""
    return path.suffix.lower() in UNREAD_SUFFIXES and not path.name.startswith(".")


def is_system_folder(name: str) -> bool:
    """Tell by its name whether a folder is hidden or belongs to the system."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def subfolders(folder: Path) -> list[Path]:
    """List the folders directly in a folder, sorted, without hidden and system folders."""
    folders = []
    for path in folder.glob("*"):
        if path.is_dir() and not is_system_folder(path.name):
            folders.append(path)
    return sorted(folders)


def natural_key(text: str) -> list[tuple[str, int, str]]:
    """Return a key that sorts texts with numbers by the values of these: part9 before part10."""
    parts = DIGITS.split(text)
    key = []
    # Texts and digits alternate, and a text comes first.
    for index in range(0, len(parts), 2):
        digits = ""
        if index + 1 < len(parts):
            digits = parts[index + 1]
        key.append((parts[index].casefold(), int(digits or 0), digits))
    return key


def file_key(path: Path) -> FileKey:
    """Identify the real file or folder behind a path: equal for all links to it."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return (status.st_dev, status.st_ino)


def list_files(
    folder: Path, wanted: Callable[[Path], bool], left_out: LeftOut | None = None
) -> list[Path]:
    """List the wanted files in a folder and its subfolders, sorted by path.

    Links are followed, and a real file is listed once, where possible under a path without links.
    A broken link is listed, so that it is reported when it is read. `left_out` counts the rest.
    """
    walk = _Walk(folder, wanted, LeftOut() if left_out is None else left_out)
    return walk.files()


def walk_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder and its subfolders and is no folder, in no order.

    Leaves out what `list_files` leaves out, except for links to files and repeated files, and asks
    no file for its status, so that it is fast enough to be repeated. Raises OSError where a folder
    cannot be listed, unless it is a subfolder that is gone or forbidden.
    """
    visited = {file_key(parent) for parent in folder.resolve().parents}
    pending = [str(folder)]
    links: list[str] = []
    while pending or links:
        if not pending:
            # Links come last, so that a file is found under its own path rather than a link's.
            pending.append(links.pop(0))
        current = pending.pop()
        key = file_key(Path(current))
        if key in visited:
            continue
        visited.add(key)
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        yield entry
                    elif is_system_folder(entry.name):
                        continue
                    elif entry.is_symlink():
                        links.append(entry.path)
                    else:
                        pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            if current == str(folder):
                raise


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():
        # The method of the entry raises OSError for a link to itself.
        return os.path.isdir(entry.path)
    return entry.is_dir()


class _Walk:
    def __init__(self, folder: Path, wanted: Callable[[Path], bool], left_out: LeftOut) -> None:
        self._wanted = wanted
        self._left_out = left_out
        self._root = folder
        self._folder_links: list[Path] = []
        self._files: list[Path] = []
        self._file_links: list[Path] = []
        # A link to a folder above would list everything there, this folder included.
        self._visited = {file_key(parent) for parent in folder.resolve().parents}

    def files(self) -> list[Path]:
        self._enter(self._root)
        # Links come last, so that a file is listed under its own path rather than a link's.
        while self._folder_links:
            self._enter(self._folder_links.pop(0))
        listed = []
        seen = set()
        for path in sorted(self._files) + sorted(self._file_links):
            key = file_key(path)
            if key in seen:
                self._left_out.repeated += 1
                continue
            seen.add(key)
            listed.append(path)
        return sorted(listed)

    def _enter(self, folder: Path) -> None:
        pending = [folder]
        while pending:
            current = pending.pop()
            key = file_key(current)
            if key in self._visited:
                self._left_out.repeated += 1
                continue
            self._visited.add(key)
            pending += self._scan(current)

    def _scan(self, folder: Path) -> list[Path]:
        """Sort the entries of a folder into files and links; return its real subfolders."""
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            self._left_out.unreadable += 1
            return []
        inner = []
        for name in names:
            path = folder / name
            if not os.path.isdir(path):
                self._add_file(path)
            elif is_system_folder(name):
                self._left_out.folders[name] += 1
            elif path.is_symlink():
                self._folder_links.append(path)
            else:
                inner.append(path)
        return inner

    def _add_file(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            # To open a pipe waits until another process writes to it.
            self._left_out.other["pipe or device"] += 1
        elif self._wanted(path):
            files = self._file_links if path.is_symlink() else self._files
            files.append(path)
        elif path.name.startswith("."):
            self._left_out.hidden += 1
        elif is_unread(path):
            self._left_out.unread[path.suffix.lower()] += 1
        else:
            self._left_out.other[path.suffix.lower() or "without an ending"] += 1
