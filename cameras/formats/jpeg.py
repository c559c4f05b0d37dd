"""JPEG, decoded by OpenCV; a report of damage by libjpeg is an error."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import numpy.typing as npt

from flawline.cameras.formats import COPY_AGAIN, DecodeError, damaged, truncated
from flawline.cameras.formats.libjpeg import recorded_reports, reports_are_recorded
from flawline.cameras.formats.opencv import decode_by_opencv
from flawline.cameras.formats.orientation import exif_orientation, orient

# OpenCV applies EXIF itself in some of its modes. Here it is applied as for the other formats.
FLAG = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION

START = 0xD8
END = 0xD9
SCAN = 0xDA
HUFFMAN_TABLES = 0xC4
APP1 = 0xE1
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
# Within a scan, 0xFF is followed by 0x00 (a data byte), a restart marker, or 0xFF (filling).
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

END_OF_BLOCK = 0
# Zeros in a scan are coefficients of -1 where a table says so. So many of them are lost data.
LOST = bytes(16)

# The 64 coefficients of each block, and "not yet sent" for the position of their lowest bit.
COEFFICIENTS = 64
NOT_SENT = 255


def decode_jpeg(data: bytes) -> npt.NDArray[Any]:
    """Decode a JPEG file. Raises DecodeError for damage in any part of it, also in a scan."""
    orientation = check_segments(data)
    if not reports_are_recorded():
        raise DecodeError(
            "the OpenCV of this machine does not report damage in a JPEG; save the image as PNG"
        )
    with recorded_reports() as reports:
        image = decode_by_opencv(data, "JPEG", FLAG)
    if reports:
        raise damaged("JPEG", reports[0])
    return orient(image, orientation)


def jpeg_is_damaged(data: bytes) -> bool:
    """Tell whether a JPEG, such as a frame of a video, is damaged. Its pixels are not needed."""
    try:
        check_segments(data)
        with recorded_reports() as reports:
            decode_by_opencv(data, "JPEG", cv2.IMREAD_REDUCED_GRAYSCALE_8)
    except DecodeError:
        return True
    return bool(reports)


def check_segments(data: bytes) -> int:
    """Check the file from the first marker to the end marker; return the EXIF orientation.

    Raises DecodeError for damage.
    """
    orientation = 1
    progress: dict[int, list[int]] | None = None
    # Without tables, as some cameras send JPEG, those of the standard apply: zeros are not flat.
    zeros_are_flat: bool | None = None
    scans = []
    end = len(data)
    for marker, content, position in jpeg_segments(data):
        if marker == APP1 and content.startswith(b"Exif\0\0"):
            orientation = exif_orientation(content)
        elif marker == HUFFMAN_TABLES:
            zeros_are_flat = zeros_are_flat is not False and _zeros_are_flat(content)
        elif marker in PROGRESSIVE:
            progress = {}
        elif marker == SCAN:
            scans.append(position)
            if progress is not None:
                _record_scan(progress, content)
        elif marker == END:
            end = position
    if progress is not None:
        _require_all_coefficients(progress)
    elif len(scans) == 1 and not zeros_are_flat and data.find(LOST, scans[0], end) >= 0:
        raise damaged("JPEG", "a part of it is zero")
    return orientation


def _zeros_are_flat(tables: bytes) -> bool:
    """Tell whether zero bits stand for a flat block in every AC table of a Huffman segment.

    ITU-T T.81, section B.2.4.2: a table is its class, the numbers of codes of 1 to 16 bits, and the
    symbols in the order of their codes, of which the first is all zeros.
    """
    position = 0
    while position + 17 < len(tables):
        is_ac = tables[position] >> 4 == 1
        if is_ac and tables[position + 17] != END_OF_BLOCK:
            return False
        position += 17 + sum(tables[position + 1 : position + 17])
    return True


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker, content and position of every segment up to the end marker.

    Raises DecodeError where there is no marker, and where the end marker is missing.

    Cameras embed thumbnails in segments. These are whole JPEG files with markers of their own, so
    segments are skipped by their length and not searched.
    """
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            raise DecodeError(f"the JPEG is damaged (no marker at byte {position}); {COPY_AGAIN}")
        marker = data[position + 1]
        if marker == 0xFF:
            # A fill byte before the marker.
            position += 1
            continue
        if marker == END:
            yield marker, b"", position
            return
        if marker == START:
            raise damaged("JPEG", "a second image starts inside it")
        if position + 4 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        content = data[position + 4 : position + 2 + length]
        yield marker, content, position
        position += 2 + length
        if marker == SCAN:
            end = SCAN_END.search(data, position)
            if end is None:
                break
            position = end.start()
    raise truncated("JPEG")


def _record_scan(progress: dict[int, list[int]], header: bytes) -> None:
    """Record which coefficients of which components a scan of a progressive JPEG sends.

    ITU-T T.81, section B.2.3: the header ends with the first and last coefficient and the position
    of the lowest bit that is sent.
    """
    if not header or len(header) < 4 + 2 * header[0]:
        raise damaged("JPEG", "the header of a scan is too short")
    count = header[0]
    first, last, bits = header[1 + 2 * count : 4 + 2 * count]
    for number in range(count):
        component = header[1 + 2 * number]
        lowest = progress.setdefault(component, [NOT_SENT] * COEFFICIENTS)
        for coefficient in range(first, min(last, COEFFICIENTS - 1) + 1):
            lowest[coefficient] = bits & 15


def _require_all_coefficients(progress: dict[int, list[int]]) -> None:
    """Raise DecodeError where a progressive JPEG ends before its last scan.

    libjpeg decodes such a file to a blurred image without a report.
    """
    for lowest in progress.values():
        if any(lowest):
            raise truncated("JPEG")
