"""Volumes in TIFF files: how many images a page declares, and where slices without pages are."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from flawline.cameras.formats import damaged, several

# MetaMorph stores as many planes as this tag has values.
PLANES_TAG = 33629
OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")
OME_SIZE = re.compile(r"\bSize([ZCT])\s*=\s*[\"'](\d+)[\"']")
# OME metadata may describe images in other files, which are frames of their own.
OME_OTHER_FILES = ("FileName=", "MetadataFile")


def declared_images(page: Any, *, is_first: bool) -> int:
    """Return how many images the description of a tifffile.TiffPage declares; 0 for none.

    ImageJ and OME describe the whole file in its first page, tifffile each series in its own.
    """
    counts = [0, _shaped_images(page)]
    if is_first:
        counts += [_imagej_images(page), _ome_images(page)]
    return max(counts)


def place_slices(page: Any, declared: int, is_alone: bool) -> list[int]:
    """Return how many bytes behind the pixels of a page each of its images lies: [0] for one image.

    The slices of a volume follow each other without pages where tifffile says so, and in a file of
    ImageJ with one page. Raises DecodeError for a volume whose slices are not read.
    """
    layers = page.imagedepth
    planes = page.tags.get(PLANES_TAG)
    if page.is_stk and planes is not None:
        layers = max(layers, planes.count)
    if layers > 1:
        raise several("TIFF", max(layers, declared))
    is_volume = _shape_is_truncated(page) or (is_alone and _imagej_images(page) > 1)
    if declared <= 1 or not is_volume:
        return [0]
    if not page.is_contiguous:
        raise several("TIFF", declared)
    start = page.dataoffsets[0]
    end = start + declared * page.nbytes
    if end > page.parent.filehandle.size or start <= page.offset < end:
        raise damaged("TIFF", f"it declares {declared} images and holds fewer")
    return [number * page.nbytes for number in range(declared)]


def _imagej_images(page: Any) -> int:
    for line in (page.imagej_description or "").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "images" and value.strip().isdecimal():
            return int(value)
    return 0


def _shape_metadata(page: Any) -> dict[str, Any]:
    """Return what tifffile wrote in the description of a page; empty where it is of another."""
    description = page.shaped_description
    if description is None:
        return {}
    try:
        metadata = json.loads(description)
    except ValueError:
        # An older form has the shape only, and is never written for slices without pages.
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _shape_is_truncated(page: Any) -> bool:
    return bool(_shape_metadata(page).get("truncated"))


def _shaped_images(page: Any) -> int:
    shape = _shape_metadata(page).get("shape")
    own = list(page.shape)
    # An image that was cropped may still have the description of the whole one.
    if not isinstance(shape, list) or not own or shape[-len(own) :] != own:
        return 0
    sizes = [size for size in shape[: -len(own)] if isinstance(size, int) and size > 0]
    return math.prod(sizes)


def _ome_images(page: Any) -> int:
    """Return the planes that OME-XML declares, if all of them are in this file."""
    if not page.is_ome:
        return 0
    xml = page.description
    if any(text in xml for text in OME_OTHER_FILES):
        return 0
    count = 0
    for pixels in OME_PIXELS.findall(xml):
        sizes = {axis: int(size) for axis, size in OME_SIZE.findall(pixels)}
        channels = -(-sizes.get("C", 1) // page.samplesperpixel)
        count += sizes.get("Z", 1) * sizes.get("T", 1) * channels
    return count
