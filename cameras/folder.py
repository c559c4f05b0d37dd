"""A folder of images, or a single image.

/data/images   /data/part.png   folder:///data/images?bits=12
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from flawline.cameras import Camera, CameraError, CameraOptions, Frame
from flawline.cameras.decode import (
    IMAGE_SUFFIXES,
    FileImage,
    decode_images,
    has_image_content,
    is_image,
    list_images_and_unread,
)
from flawline.cameras.listing import LeftOut, count_of, is_unread
from flawline.options import option


@dataclass(frozen=True)
class FolderOptions(CameraOptions):
    """Options of the `folder` scheme."""

    bits: int | None = option(None, "significant bits of 16-bit images, 8 to 16")

    def __post_init__(self) -> None:
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise ValueError(f"bits={self.bits} is not a whole number from 8 to 16")


class Folder(Camera):
    """The images of a folder and its subfolders, in the order of their paths, or a single image.

    No image is dropped. Each page of a TIFF file is a frame. A file or page that cannot be decoded,
    another file with several images, and one of a format that is not read are frames with a fault.
    """

    Options: ClassVar[type[FolderOptions]] = FolderOptions
    usage: ClassVar[str] = "/data/images"

    def __init__(self, path: str, options: FolderOptions | None = None) -> None:
        super().__init__()
        self._bits = (options or FolderOptions()).bits
        # Listed once, so that files that are added while the stream runs do not change the order.
        root = Path(path)
        self._root = root
        self._left_out = LeftOut()
        self._is_folder = False
        if not root.exists():
            raise CameraError(f"camera {path}: there is no such file or folder; check the path")
        if root.is_file():
            self._paths = [root]
        else:
            # A part whose image is not read must be rejected, and not left out.
            self._paths = list_images_and_unread(root, self._left_out)
            self._is_folder = True
        if not self._paths:
            raise CameraError(
                f"camera {path}: there is no image in this folder; "
                f"choose one with files named {' '.join(IMAGE_SUFFIXES)}"
            )

    @classmethod
    def accepts_path(cls, path: Path) -> bool:
        if path.is_dir() or is_image(path) or is_unread(path):
            return True
        return path.is_file() and has_image_content(path)

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
        if not self._is_folder:
            return []
        unread = self._left_out.unread.total()
        read = count_of(len(self._paths) - unread, "image file")
        left_out = ", ".join(self._left_out.describe()) or "nothing"
        note = f"camera {self._root}: {read}; left out: {left_out}"
        if unread:
            note += "; each image that is not read is a frame that rejects its part"
        return [note]

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for path in self._paths:
            if self._stopped:
                return
            for image in decode_images(path):
                yield self._frame(index, image)
                index += 1
                if self._stopped:
                    return

    def _frame(self, index: int, read: FileImage) -> Frame:
        bit_depth = None
        # 8-bit files in the same folder keep their own bit depth.
        if read.image is not None and read.image.dtype == np.uint16:
            bit_depth = self._bits
        return Frame(read.source, index, read.image, fault=read.fault, bit_depth=bit_depth)
