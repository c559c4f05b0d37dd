"""A folder of images, or a single image; with `watch=1`, also images that are added later.

/data/images   /data/part.png   folder:///data/images?bits=12   /data/images?watch=1&settle=2
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from flawline.cameras import Camera, CameraError, CameraOptions, Frame
from flawline.cameras.clock import Clock
from flawline.cameras.decode import (
    IMAGE_SUFFIXES,
    FileImage,
    count_images,
    decode_images,
    has_image_content,
    is_image,
    list_images_and_unread,
)
from flawline.cameras.listing import LeftOut, count_of, is_unread
from flawline.cameras.watch import DEFAULT_SETTLE_S, FolderWatch
from flawline.options import option

LONGEST_SETTLE_S = 3600


@dataclass(frozen=True)
class FolderOptions(CameraOptions):
    """Options of the `folder` scheme."""

    bits: int | None = option(None, "significant bits of 16-bit images, 8 to 16")
    watch: bool = option(False, "wait for further images, after those that are present")
    settle: float | None = option(
        None,
        f"with watch, seconds without a change after which a file is read, 0 to {LONGEST_SETTLE_S};"
        f" {DEFAULT_SETTLE_S} if not given",
    )
    new: bool = option(False, "with watch, leave out the images that are present at the start")

    def __post_init__(self) -> None:
        if not self.watch and (self.new or self.settle is not None):
            raise ValueError("settle and new need watch=1")
        if self.settle is not None and not 0 <= self.settle <= LONGEST_SETTLE_S:
            raise ValueError(f"settle={self.settle:g} is not from 0 to {LONGEST_SETTLE_S}")
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise ValueError(f"bits={self.bits} is not a whole number from 8 to 16")


class Folder(Camera):
    """The images of a folder and its subfolders, in the order of their paths, or a single image.

    No image is dropped. Each page of a TIFF file is a frame. A file or page that cannot be decoded,
    another file with several images, and one of a format that is not read are frames with a fault.

    With `watch`, the camera waits for more: see `flawline.cameras.watch`.
    """

    Options: ClassVar[type[FolderOptions]] = FolderOptions
    usage: ClassVar[str] = "/data/images, folder:///data/images?watch=1"

    def __init__(
        self, path: str, options: FolderOptions | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__()
        self._options = options or FolderOptions()
        root = Path(path)
        self._root = root
        self.source = path
        self._left_out = LeftOut()
        self._watch: FolderWatch | None = None
        self._paths: list[Path] = []
        if not root.exists():
            raise CameraError(f"camera {path}: there is no such file or folder; check the path")
        self._is_folder = not root.is_file()
        if self._options.watch:
            self._watch = self._open_watch(clock)
        else:
            self._paths = self._list()

    def _list(self) -> list[Path]:
        """List the images once, so that files that are added later do not change the order."""
        if not self._is_folder:
            return [self._root]
        # A part whose image is not read must be rejected, and not left out.
        paths = list_images_and_unread(self._root, self._left_out)
        if not paths:
            raise CameraError(
                f"camera {self._root}: there is no image in this folder; choose one with files "
                f"named {' '.join(IMAGE_SUFFIXES)}, or wait for them with ?watch=1"
            )
        return paths

    def _open_watch(self, clock: Clock | None) -> FolderWatch:
        if not self._root.is_dir():
            raise CameraError(f"camera {self._root}: watch=1 needs a folder; give that of the file")
        settle = DEFAULT_SETTLE_S
        if self._options.settle is not None:
            settle = self._options.settle
        return FolderWatch(self._root, settle, self._options.new, self._returned, clock)

    def _returned(self) -> None:
        self.reconnects += 1

    @property
    def endless(self) -> bool:
        return self._options.watch

    @classmethod
    def accepts_path(cls, path: Path) -> bool:
        if path.is_dir():
            return True
        return path.is_file() and (is_image(path) or is_unread(path) or has_image_content(path))

    @classmethod
    def example(cls, folder: Path) -> str:
        """Write two images into `folder` and return its URI."""
        for index in range(2):
            grey = np.full((48, 64), 40 + index, np.uint8)
            cv2.imwrite(str(folder / f"{index}.png"), grey)
        return f"folder://{folder}"

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Write a damaged image into `folder` and return its URI."""
        (folder / "damaged.png").write_bytes(b"not an image")
        return f"folder://{folder}"

    def notes(self) -> list[str]:
        if self._watch is not None:
            return [f"camera {self._root}: {self._watch.describe()}"]
        if not self._is_folder:
            return []
        unread = self._left_out.unread.total()
        read = count_of(len(self._paths) - unread, "image file")
        left_out = ", ".join(self._left_out.describe()) or "nothing"
        note = f"camera {self._root}: {read}; left out: {left_out}"
        if unread:
            note += "; each image that is not read is a frame that rejects its part"
        return [note]

    def files(self) -> list[Path]:
        return list(self._paths)

    def frame_count(self) -> int | None:
        if self._watch is not None:
            return None
        return sum(count_images(path) for path in self._paths)

    def stop(self) -> None:
        super().stop()
        if self._watch is not None:
            self._watch.stop()

    def __iter__(self) -> Iterator[Frame]:
        images = self._listed_images()
        if self._watch is not None:
            images = self._watch.images()
        for index, image in enumerate(images):
            if self._stopped:
                return
            yield self._frame(index, image)
            if self._stopped:
                return

    def _listed_images(self) -> Iterator[FileImage]:
        for path in self._paths:
            if self._stopped:
                return
            yield from decode_images(path)

    def _frame(self, index: int, read: FileImage) -> Frame:
        bit_depth = None
        # 8-bit files in the same folder keep their own bit depth.
        if read.image is not None and read.image.dtype == np.uint16:
            bit_depth = self._options.bits
        return Frame(
            read.source,
            index,
            read.image,
            fault=read.fault,
            bit_depth=bit_depth,
            file=read.path,
        )
