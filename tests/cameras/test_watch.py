"""A watched folder: each file once, complete, in order of arrival, without waiting in real time."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from fakes.clock import FakeClock

from flawline.cameras import CameraError, Frame, open_camera, watch
from flawline.cameras.decode import FileImage, decode_images
from flawline.cameras.folder import Folder, FolderOptions
from flawline.cameras.judged_files import FileStatus

SETTLE = 0.5
STEP = Callable[[], object]
# Waits after the last step: enough for a file to be listed, to settle and to be read.
WAITS_AT_THE_END = 12


def png(grey: int) -> bytes:
    image = np.full((40, 50, 3), grey, np.uint8)
    # Noise, so that a part of the file is no complete image.
    image[::2] = np.random.default_rng(grey).integers(0, 255, (20, 50, 3), np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def write(path: Path, grey: int = 1, modified: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(grey))
    if modified is not None:
        os.utime(path, (modified, modified))


class Watched:
    """A watched folder and a clock that moves by what the camera waits; a step for each wait."""

    def __init__(self, folder: Path, steps: list[STEP], **options: object) -> None:
        self.steps = list(steps)
        self.waits = 0
        self.clock = FakeClock(self._wait)
        record = FolderOptions(watch=True, **options)  # type: ignore[arg-type]
        self.camera = Folder(str(folder), record, self.clock)

    def _wait(self, timeout: float) -> None:
        self.waits += 1
        # The camera is asked often enough, and never without a pause.
        assert 0 < timeout <= 20
        if self.steps:
            self.steps.pop(0)()
        elif self.waits > 10_000:
            raise AssertionError("the camera waits for ever")
        else:
            self._end_soon()
        self.clock.advance(timeout)

    def _end_soon(self) -> None:
        self.left = getattr(self, "left", WAITS_AT_THE_END) - 1
        if self.left == 0:
            self.camera.stop()

    def frames(self) -> list[Frame]:
        return list(self.camera)

    def names(self) -> list[str]:
        """Return the names of the files of the frames; one with a fault is marked with !."""
        names = []
        for frame in self.frames():
            names.append(Path(frame.source).name + "!" * (frame.fault is not None))
        return names


def nothing() -> None:
    """A step in which nothing happens."""


def pauses(count: int = 8) -> list[STEP]:
    return [nothing] * count


def test_present_files_come_first_and_new_ones_in_order_of_arrival(tmp_path: Path) -> None:
    for index, name in enumerate(("b/1.png", "a.png", "a/2.png", "10.png", "9.png")):
        write(tmp_path / name, modified=2_000_000 - index)

    def arrive() -> None:
        write(tmp_path / "part10.png", modified=3_000_000.5)
        write(tmp_path / "part9.png", modified=3_000_000.5)
        write(tmp_path / "z.png", modified=2_999_999)
        write(tmp_path / "new" / "folder.png", modified=3_000_001)

    watched = Watched(tmp_path, [*pauses(), arrive])
    frames = watched.frames()
    names = [str(Path(frame.source).relative_to(tmp_path)) for frame in frames]
    listed = [frame.source for frame in open_camera(str(tmp_path))]
    present = ["10.png", "9.png", "a/2.png", "a.png", "b/1.png"]
    assert names == [*present, "z.png", "part9.png", "part10.png", "new/folder.png"]
    assert [str(tmp_path / name) for name in present] == [
        source for source in listed if source.removeprefix(f"{tmp_path}/") in present
    ]
    assert [frame.index for frame in frames] == list(range(9))
    assert watched.camera.dropped == watched.camera.reconnects == 0
    assert watched.camera.endless
    assert not watched.camera.live


def test_files_are_in_order_though_looking_at_them_takes_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is listed in any order, and the files settle one after the other."""
    names = [f"{index:02d}.png" for index in range(20)]
    for name in names:
        write(tmp_path / name)

    def arrive() -> None:
        for index, name in enumerate(names):
            write(tmp_path / f"new{name}", modified=3_000_000 + index)

    watched = Watched(tmp_path, [*pauses(), arrive])
    status_of = watch._status_of

    def looked_at(path: str) -> FileStatus | None:
        watched.clock.now += 0.001
        return status_of(path)

    monkeypatch.setattr(watch, "_status_of", looked_at)
    walk = watch.walk_entries

    def listed(root: Path) -> list[os.DirEntry[str]]:
        return sorted(walk(root), key=lambda entry: entry.path, reverse=True)

    monkeypatch.setattr(watch, "walk_entries", listed)
    found = [Path(frame.source).name for frame in watched.frames()]
    assert found == [*names, *(f"new{name}" for name in names)]


def chunks_of(path: Path, data: bytes, count: int) -> list[STEP]:
    """Steps that write a file part by part."""
    size = len(data) // count + 1
    steps: list[STEP] = []
    for start in range(0, len(data), size):
        part = data[start : start + size]

        def append(part: bytes = part) -> None:
            with path.open("ab") as file:
                file.write(part)

        steps.append(append)
    return steps


def test_a_file_that_is_written_slowly_is_read_once_it_is_complete(tmp_path: Path) -> None:
    steps = chunks_of(tmp_path / "slow.png", png(7), 30)
    (frame,) = Watched(tmp_path, steps).frames()
    assert frame.image is not None
    assert frame.image[1, 0].tolist() == [7, 7, 7]


def test_a_file_that_stays_truncated_is_one_fault_and_another_part_when_it_changes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cut.png"
    first, second = chunks_of(path, png(7), 2)
    assert Watched(tmp_path, [first, *pauses(30)]).names() == ["cut.png!"]
    path.unlink()
    assert Watched(tmp_path, [first, *pauses(30), second]).names() == ["cut.png!", "cut.png"]


def test_pages_are_given_once_and_not_before_the_file_is_complete(tmp_path: Path) -> None:
    pages = tmp_path / "source"
    tifffile.imwrite(pages, np.arange(5 * 64 * 64, dtype=np.uint8).reshape(5, 64, 64))
    data = pages.read_bytes()
    steps = chunks_of(tmp_path / "pages.tif", data, 20)
    names = Watched(tmp_path, [*steps[:10], nothing, *steps[10:]]).names()
    assert names == [f"pages.tif page {page}" for page in range(1, 6)]


def test_temporary_files_are_left_out_until_they_are_renamed(tmp_path: Path) -> None:
    def rename() -> None:
        (tmp_path / "1.png.part").rename(tmp_path / "1.png")
        (tmp_path / ".2.png.Xa81").rename(tmp_path / "2.png")

    for name in ("1.png.part", ".2.png.Xa81", "3.png.tmp", ".4.png", ".hidden/5.png", "6.txt"):
        write(tmp_path / name)
    write(tmp_path / "@eaDir" / "7.png")
    os.mkfifo(tmp_path / "8.png")
    (tmp_path / "9.png").symlink_to(tmp_path / "9.png")
    (tmp_path / "10.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "all").symlink_to(tmp_path)
    (tmp_path / "above").symlink_to(tmp_path.parent)
    assert Watched(tmp_path, [*pauses(), rename]).names() == ["1.png", "2.png"]


def test_a_format_that_is_not_read_rejects_its_part(tmp_path: Path) -> None:
    assert Watched(tmp_path, [lambda: write(tmp_path / "1.gif")]).names() == ["1.gif"]
    (tmp_path / "1.gif").write_bytes(b"GIF89a")
    assert Watched(tmp_path, []).names() == ["1.gif!"]


def test_a_file_that_is_gone_before_it_is_read_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "short.png"
    steps = [nothing, lambda: write(path), nothing, path.unlink, *pauses()]
    assert Watched(tmp_path, steps).names() == []


def test_a_file_is_judged_again_only_if_its_time_or_size_changes(tmp_path: Path) -> None:
    path = tmp_path / "latest.png"

    def replace_by_renaming() -> None:
        write(tmp_path / "latest.tmp", 2, 1_000_001.5)
        (tmp_path / "latest.tmp").rename(path)

    def same_by_renaming() -> None:
        write(tmp_path / "latest.tmp", 2, 1_000_001.5)
        (tmp_path / "latest.tmp").rename(path)

    write(path, 1, 1_000_000.5)
    steps = [*pauses(), replace_by_renaming, *pauses(), same_by_renaming, *pauses()]
    steps += [lambda: write(path, 3, 1_000_002.5), *pauses(), lambda: os.utime(path), *pauses()]
    frames = Watched(tmp_path, steps).frames()
    greys = [int(frame.image[1, 0, 0]) for frame in frames if frame.image is not None]
    assert greys == [1, 2, 3, 3]


def test_a_judged_file_that_is_moved_or_linked_to_is_not_judged_again(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    write(folder / "1.png", 1, 1_000_000.5)
    write(folder / "2.png", 2, 1_000_001.5)

    def move() -> None:
        (folder / "judged").mkdir()
        (folder / "1.png").rename(folder / "judged" / "1.png")
        (folder / "link.png").symlink_to(folder / "2.png")
        os.link(folder / "2.png", folder / "copy.png")

    # The inode of a deleted file may be given to the next one.
    def next_with_the_same_inode() -> None:
        (folder / "judged" / "1.png").unlink()
        write(folder / "3.png", 3, 1_000_002.5)

    steps = [*pauses(), move, *pauses(), next_with_the_same_inode]
    assert Watched(folder, steps).names() == ["1.png", "2.png", "3.png"]


def test_two_links_to_a_new_file_are_one_part(tmp_path: Path) -> None:
    def arrive() -> None:
        write(tmp_path / "1.png", 1, 1_000_000.5)
        os.link(tmp_path / "1.png", tmp_path / "2.png")

    assert Watched(tmp_path, [nothing, arrive]).names() == ["1.png"]


def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def decode(path: Path) -> Iterator[FileImage]:
        yield from decode_images(path)
        reads.append(path)
        if len(reads) == 1:
            write(path, 2)

    monkeypatch.setattr(watch, "decode_images", decode)
    write(tmp_path / "1.png", 1)
    (frame,) = Watched(tmp_path, pauses()).frames()
    assert frame.image is not None
    assert frame.image[1, 0, 0] == 2
    assert len(reads) == 2


def test_pages_are_of_one_version_of_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pages.tif"
    pages = np.zeros((4, 64, 64), np.uint8)
    decoded = []

    def decode(path: Path) -> Iterator[FileImage]:
        for image in decode_images(path):
            yield image
            decoded.append(image)
            if len(decoded) == 3:
                tifffile.imwrite(path, pages + 9, photometric="minisblack")

    tifffile.imwrite(path, pages, photometric="minisblack")
    monkeypatch.setattr(watch, "decode_images", decode)
    frames = Watched(tmp_path, pauses()).frames()
    greys = [int(frame.image.max()) for frame in frames if frame.image is not None]
    assert greys == [9, 9, 9, 9]


@pytest.mark.parametrize(("hours", "times"), [(0.5, 1), (1.1, 2)])
def test_a_deleted_file_is_forgotten_after_an_hour(
    hours: float, times: int, tmp_path: Path
) -> None:
    path = tmp_path / "1.png"

    def write_it() -> None:
        write(path, 1, 1_000_000.5)

    def wait() -> None:
        watched.clock.now += hours * 3600

    write_it()
    watched = Watched(tmp_path, [*pauses(), path.unlink, wait, *pauses(), write_it])
    assert watched.names() == ["1.png"] * times


def test_only_new_files_on_request(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    path = tmp_path / "half.png"
    first, second = chunks_of(path, png(7), 2)
    first()
    steps = [second, *pauses(), lambda: write(tmp_path / "2.png")]
    assert Watched(tmp_path, steps, new=True).names() == ["half.png", "2.png"]


def test_settle_is_the_time_without_a_change(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    for settle in (0.0, 0.5, 90.0):
        watched = Watched(tmp_path, pauses(1000), settle=settle)
        start = watched.clock.now
        next(iter(watched.camera))
        assert settle <= watched.clock.now - start < settle + 0.3


def test_each_file_settles_from_the_time_at_which_it_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing of a large folder takes longer than a file has to settle."""
    for index in range(5):
        write(tmp_path / f"{index}.png")
    watched = Watched(tmp_path, pauses())
    looked: dict[str, list[float]] = {}
    status_of = watch._status_of

    def slow(path: str) -> FileStatus | None:
        times = looked.setdefault(path, [])
        times.append(watched.clock.now)
        if len(times) == 1:
            watched.clock.now += 0.3
        return status_of(path)

    monkeypatch.setattr(watch, "_status_of", slow)
    assert len(watched.frames()) == 5
    for times in looked.values():
        assert times[1] - times[0] >= SETTLE


def test_every_file_arrives_while_another_thread_writes(tmp_path: Path) -> None:
    """With real time: slow writes, renames, replacements and deletions at the same time."""
    data = png(9)

    def produce() -> None:
        for index in range(12):
            path = tmp_path / f"part{index}.png"
            if index % 3 == 0:
                path = tmp_path / f"part{index}.png.part"
            with path.open("wb") as file:
                for start in range(0, len(data), 1000):
                    file.write(data[start : start + 1000])
                    file.flush()
            if index % 3 == 0:
                path.rename(tmp_path / f"part{index}.png")
            deleted = tmp_path / "deleted.png.tmp"
            deleted.write_bytes(data)
            deleted.unlink()

    writer = threading.Thread(target=produce)
    names = []
    with open_camera(f"folder://{tmp_path}?watch=1&settle=0.05") as camera:
        writer.start()
        for frame in camera:
            assert frame.fault is None
            names.append(Path(frame.source).name)
            if len(names) == 12:
                break
    writer.join()
    assert sorted(names) == sorted(f"part{index}.png" for index in range(12))


@pytest.mark.parametrize("end", ["stop", "close"])
def test_another_thread_ends_the_wait(end: str, tmp_path: Path) -> None:
    camera = open_camera(f"{tmp_path}?watch=1")
    waits = threading.Event()
    frames: list[Frame] = []

    def consume() -> None:
        waits.set()
        frames.extend(camera)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert waits.wait(10)
    getattr(camera, end)()
    consumer.join(10)
    assert not consumer.is_alive()
    assert frames == []


# ---------------------------------------------------------------- a folder that is away


def test_a_folder_that_comes_back_is_watched_on_and_nothing_is_judged_again(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    away = tmp_path / "away"
    write(folder / "1.png")

    def back() -> None:
        away.rename(folder)
        write(folder / "2.png")

    watched = Watched(folder, [*pauses(), lambda: folder.rename(away), *pauses(20), back])
    assert watched.names() == ["1.png", "2.png"]
    assert watched.camera.reconnects == 1


def test_a_folder_that_stays_away_is_an_error_after_about_a_minute(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    write(folder / "1.png")
    watched = Watched(folder, [*pauses(), lambda: shutil.rmtree(folder), *pauses(100)])
    start = watched.clock.now
    frames = iter(watched.camera)
    assert next(frames).fault is None
    with pytest.raises(CameraError) as caught:
        next(frames)
    message = (
        f"camera {folder}: the folder cannot be listed (No such file or directory); "
        f"given up after 30 attempts: check the disk or the network share"
    )
    assert str(caught.value) == message
    assert 45 < watched.clock.now - start < 75
    assert watched.camera.reconnects == 0


def test_an_unmounted_share_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To unmount leaves an empty folder on another device, and to mount may change the device."""
    folder = tmp_path / "share"
    hidden = tmp_path / "hidden"
    mounted = {"device": 1, "at": str(folder)}
    monkeypatch.setattr(watch, "_device_of", lambda path: mounted["device"])
    monkeypatch.setattr(watch, "_mount_of", lambda path: mounted["at"])
    write(folder / "1.png")

    def unmount() -> None:
        folder.rename(hidden)
        folder.mkdir()
        mounted.update(device=2, at="/")

    def mount() -> None:
        folder.rmdir()
        hidden.rename(folder)
        mounted.update(device=3, at=str(folder))
        write(folder / "2.png")

    watched = Watched(folder, [*pauses(), unmount, *pauses(20), mount])
    assert watched.names() == ["1.png", "2.png"]
    assert watched.camera.reconnects == 1
    watched = Watched(folder, [*pauses(), unmount, *pauses(100)])
    with pytest.raises(CameraError, match=f"nothing is mounted at {folder}"):
        watched.frames()


def test_the_mount_of_a_folder_is_found(tmp_path: Path) -> None:
    mount = Path(watch._mount_of(tmp_path))
    assert mount.is_mount()
    assert tmp_path.resolve().is_relative_to(mount)


# ---------------------------------------------------------------- large folders


def test_known_files_are_checked_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CHECKED", 10)
    monkeypatch.setattr(watch, "CHUNK", 16)
    for index in range(100):
        write(tmp_path / f"{index}.png", 1, 1_000_000.5)
    asked: list[str] = []
    counts: list[int] = []
    status_of = watch._status_of

    def counted(path: str) -> FileStatus | None:
        asked.append(path)
        return status_of(path)

    monkeypatch.setattr(watch, "_status_of", counted)

    def count() -> None:
        counts.append(len(asked))
        asked.clear()

    watched = Watched(tmp_path, [count] * 30, new=True)
    assert watched.names() == []
    assert counts[0] == 100
    # Eleven turns, each with about an eleventh of the files, and each file in one of them.
    assert max(counts[1:]) < 40
    assert sum(counts[1:12]) == 100

    path = tmp_path / "50.png"
    watched = Watched(tmp_path, [*pauses(), lambda: write(path, 2), *pauses(30)], new=True)
    assert watched.names() == ["50.png"]


def test_listings_take_a_tenth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path, pauses())
    starts = []

    def slow(root: Path) -> Iterator[os.DirEntry[str]]:
        starts.append(watched.clock.now)
        watched.clock.now += 0.2
        return iter(())

    monkeypatch.setattr(watch, "walk_entries", slow)
    assert watched.names() == []
    # The first one asks for the status of each file, and is not like the others.
    pauses_between = [round(later - start, 3) for start, later in pairwise(starts)]
    assert pauses_between[:4] == [0.4, 2.0, 2.0, 2.0]


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("{folder}?settle=1", "settle and new need watch=1$"),
        ("{folder}?new=1", "settle and new need watch=1"),
        ("{folder}?watch=1&settle=-1", "settle=-1 is not from 0 to 3600"),
        ("{folder}?watch=1&settle=nan", "settle=nan is not from 0 to 3600"),
        ("{folder}?watch=maybe", "watch=maybe: not true or false"),
        ("{folder}/1.png?watch=1", "watch=1 needs a folder; give that of the file"),
        ("folder:///dev/null?watch=1", "watch=1 needs a folder"),
        ("folder:///nowhere?watch=1", "no such file or folder; check the path"),
        ("{empty}", "no image in this folder; .*or wait for them with .watch=1"),
    ],
)
def test_a_wrong_option_is_explained(uri: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CameraError, match=message):
        open_camera(uri.format(folder=tmp_path, empty=tmp_path / "empty"))


def test_the_note_says_what_is_given_and_when(tmp_path: Path) -> None:
    camera = open_camera(f"{tmp_path}?watch=1")
    assert camera.notes() == [
        f"camera {tmp_path}: is watched; the images that are present come first, a new one 0.5 s "
        f"after its last change"
    ]
    camera = open_camera(f"folder://{tmp_path}?watch=1&settle=2&new=1")
    assert "that are present are left out, a new one 2 s after" in camera.notes()[0]


def test_the_bit_depth_reaches_the_frames(tmp_path: Path) -> None:
    image = np.full((8, 8), 4000, np.uint16)
    (tmp_path / "1.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (frame,) = Watched(tmp_path, [], bits=12).frames()
    assert frame.bit_depth == 12
