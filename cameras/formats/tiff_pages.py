"""The pages of a TIFF file: found one by one, so that a file with many pages takes little memory.

tifffile ends a damaged chain of pages without an error, and so hides the pages behind the damage.
Here the chain is followed to its end, and every image that the file declares must be found.
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from flawline.cameras.formats import DecodeError, damaged
from flawline.cameras.formats.tiff_volumes import declared_images, place_slices

# Bits of the subfile type: a smaller version of another page, and a transparency mask.
REDUCED = 1
MASK = 4
# The kind of pixels of a mask, which have one bit in most files.
TRANSPARENCY = 4
# As in tifffile: a directory with more entries than this is damaged.
MOST_TAGS = 4096

# tifffile logs what it repairs; this keeps Python from printing it where no log is set up.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_tiff(stream: BinaryIO) -> Any:
    """Open a TIFF file as a tifffile.TiffFile, also if its first page is damaged."""
    # Imported here because no other format needs it.
    import tifffile

    try:
        return tifffile.TiffFile(stream)
    except Exception as error:
        # tifffile raises many kinds of errors for a damaged file, as it expects none. It reads the
        # first page at once; here it opens a header without pages, and gets the file afterwards.
        stream.seek(0)
        header = stream.read(16)
        size = 8 if header[2:4] in (b"+\0", b"\0+") else 4
        if len(header) < 2 * size:
            raise damaged("TIFF", str(error) or type(error).__name__) from error
        try:
            file = tifffile.TiffFile(io.BytesIO(header[:size] + bytes(size)))
        except tifffile.TiffFileError as header_error:
            raise damaged("TIFF", str(header_error)) from header_error
        file._fh = tifffile.FileHandle(stream)
        return file


def find_images(file: Any) -> Iterator[tuple[Any, int] | DecodeError]:
    """Yield each image of a tifffile.TiffFile: its page, and how far its pixels lie behind it.

    The second value, in bytes, is other than 0 for the slices of a volume that has one page. A page
    that is damaged, or a volume that is not read, gives a DecodeError instead. Smaller versions of
    another page, transparency masks and pages that only a tag refers to are no images. Raises
    DecodeError where the pages end before all images are found.
    """
    tally = _Tally()
    for number, (offset, is_last) in enumerate(_directories(file)):
        declared = 0
        try:
            page = _load(file, offset, number)
            area = page.imagewidth * page.imagelength
            if _is_mask(page):
                continue
            if page.subfiletype & REDUCED:
                tally.largest_reduced = max(tally.largest_reduced, area)
                continue
            tally.largest = max(tally.largest, area)
            declared = declared_images(page, is_first=number == 0)
            tally.declared += declared
            is_alone = is_last and tally.found == 0
            shifts = place_slices(page, declared, is_alone)
        except DecodeError as error:
            tally.found += max(declared, 1)
            yield error
        except Exception as error:
            # tifffile raises many kinds of errors for a damaged page, as it expects none.
            tally.found += 1
            yield damaged("TIFF", str(error) or type(error).__name__)
        else:
            tally.found += len(shifts)
            for shift in shifts:
                yield page, shift
    tally.check()


def _is_mask(page: Any) -> bool:
    # A flipped bit declares any page a mask, so a mask must also have the pixels of one.
    has_pixels_of_mask = page.bitspersample == 1 or page.photometric == TRANSPARENCY
    return bool(page.subfiletype & MASK) and has_pixels_of_mask


class _Tally:
    """What was found in a file, compared at its end with what the file declares."""

    def __init__(self) -> None:
        self.found = 0
        self.declared = 0
        self.largest = 0
        self.largest_reduced = 0

    def check(self) -> None:
        if self.found == 0:
            raise damaged("TIFF", "it holds no image")
        if self.found < self.declared:
            raise damaged("TIFF", f"it declares {self.declared} images and holds {self.found}")
        # A flipped bit makes a page one that is left out.
        if self.largest_reduced >= self.largest > 0:
            raise damaged("TIFF", "a page is declared a smaller version and is not smaller")


def _directories(file: Any) -> Iterator[tuple[int, bool]]:
    """Yield the offset of the directory of each page, and whether it is the last.

    Raises DecodeError where the chain leads out of the file or back into itself.
    """
    layout = file.tiff
    handle = file.filehandle
    seen: set[int] = set()
    offset = _number(handle, layout.offsetsize, layout.offsetformat, layout.offsetsize)
    while offset:
        if offset in seen:
            raise damaged("TIFF", "its chain of pages does not end")
        seen.add(offset)
        count = _number(handle, offset, layout.tagnoformat, layout.tagnosize)
        if not 0 < count <= MOST_TAGS:
            raise damaged("TIFF", f"a page has {count} entries")
        place = offset + layout.tagnosize + count * layout.tagsize
        following = _number(handle, place, layout.offsetformat, layout.offsetsize)
        yield offset, following == 0
        offset = following


def _number(handle: Any, offset: int, code: str, size: int) -> int:
    if offset + size > handle.size:
        raise damaged("TIFF", "its chain of pages leads out of the file")
    handle.seek(offset)
    (value,) = struct.unpack(code, handle.read(size))
    return int(value)


def _load(file: Any, offset: int, number: int) -> Any:
    import tifffile

    if number == 0:
        # tifffile has read the first page already, unless it is damaged.
        with suppress(IndexError):
            return file.pages.first
    file.filehandle.seek(offset)
    return tifffile.TiffPage(file, index=number)
