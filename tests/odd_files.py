"""Image files of every kind, good and damaged, and what an independent decoder makes of them.

Everything follows from a seed. Pillow, tifffile with imagecodecs, and simplejpeg in its strict mode
are the independent decoders.
"""

from __future__ import annotations

import contextlib
import io
import random
import struct
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")
simplejpeg = pytest.importorskip("simplejpeg")

Array = np.ndarray


@dataclass(frozen=True)
class OddFile:
    """A file, the kind it was made as, and how it was damaged ("good" where it was not)."""

    kind: str
    damage: str
    suffix: str
    data: bytes


def random_image(rng: random.Random, channels: int, bits: int = 8) -> Array:
    """A smooth or a noisy image of a random small size, [h, w] or [h, w, channels]."""
    height = rng.choice([1, 2, 7, 16, 31, 48, 90])
    width = rng.choice([1, 3, 8, 17, 40, 64, 121])
    y, x = np.mgrid[:height, :width].astype(float)
    planes = []
    for _ in range(channels):
        plane = np.sin(x / rng.uniform(2, 30) + rng.random()) + np.cos(y / rng.uniform(2, 30))
        planes.append((plane + 2) / 4)
    image = np.stack(planes, 2)
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.randrange(1 << 30)).random(image.shape)
        image = 0.5 * image + 0.5 * noise
    largest = (1 << bits) - 1
    image = np.round(image * largest).astype(np.uint8 if bits == 8 else np.uint16)
    return image[..., 0] if channels == 1 else image


def _saved(image: Array, kind: str, mode: str | None = None, **options: object) -> bytes:
    pil = Image.fromarray(image)
    if mode is not None:
        pil = pil.convert(mode)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pil.save(file, kind, **options)
    return file.getvalue()


def _exif(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    return exif.tobytes()


def make_jpeg(rng: random.Random) -> bytes:
    options = {"quality": rng.randint(30, 100), "progressive": rng.random() < 0.4}
    if rng.random() < 0.3:
        options["exif"] = _exif(rng)
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = rng.randint(1, 9)
    if rng.random() < 0.3:
        options["optimize"] = True
    channels = rng.choice([1, 3])
    if channels == 3:
        options["subsampling"] = rng.choice([0, 1, 2])
    return _saved(random_image(rng, channels), "JPEG", **options)


def make_png(rng: random.Random) -> bytes:
    options = {"exif": _exif(rng)} if rng.random() < 0.3 else {}
    mode = rng.choice(["L", "RGB", "P", "1", "LA", "RGBA", "I;16"])
    if mode == "I;16":
        return _saved(random_image(rng, 1, 16), "PNG", **options)
    image = random_image(rng, 1 if mode in ("L", "1", "LA") else 3)
    return _saved(image, "PNG", mode, **options)


def make_webp(rng: random.Random) -> bytes:
    options = {"lossless": rng.random() < 0.6, "quality": rng.randint(40, 100)}
    if rng.random() < 0.4:
        options["exif"] = _exif(rng)
    return _saved(random_image(rng, 3), "WEBP", **options)


def make_bmp(rng: random.Random) -> bytes:
    mode = rng.choice(["L", "RGB", "P", "1"])
    image = random_image(rng, 1 if mode in ("L", "1") else 3)
    return _saved(image, "BMP", mode)


def make_pnm(rng: random.Random) -> bytes:
    return _saved(random_image(rng, rng.choice([1, 3])), "PPM")


def make_tiff(rng: random.Random) -> bytes:
    bits = rng.choice([8, 16])
    channels = rng.choice([1, 3])
    image = random_image(rng, channels, bits)
    options: dict[str, object] = {
        "byteorder": rng.choice("<>"),
        "compression": rng.choice([None, "zlib", "lzw", "packbits"]),
        "photometric": "rgb" if channels == 3 else rng.choice(["minisblack", "miniswhite"]),
        "bigtiff": rng.random() < 0.2,
        "metadata": None,
    }
    if options["compression"] in ("zlib", "lzw") and rng.random() < 0.5:
        options["predictor"] = 2
    if channels == 3:
        options["planarconfig"] = rng.choice(["contig", "separate"])
        if options["planarconfig"] == "separate":
            image = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    if rng.random() < 0.4:
        options["tile"] = (rng.choice([16, 32]), rng.choice([16, 48]))
    else:
        options["rowsperstrip"] = rng.choice([1, 5, 16, 200])
    if rng.random() < 0.3:
        options["extratags"] = [(274, 3, 1, rng.randint(1, 8), True)]
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


def make_unusual_tiff(rng: random.Random) -> bytes:
    """A TIFF that may be refused: other compressions, palettes, one bit, floating point, pages."""
    choice = rng.randrange(6)
    file = io.BytesIO()
    if choice == 0:
        name = rng.choice(["jpeg", "jpeg2000", "png", "webp", "zstd", "lzma"])
        image = random_image(rng, 3)
        tifffile.imwrite(file, image, compression=name, photometric="rgb", metadata=None)
    elif choice == 1:
        return _saved(random_image(rng, 3), "TIFF", "P")
    elif choice == 2:
        compression = rng.choice([None, "group3", "group4", "packbits", "tiff_lzw"])
        return _saved(random_image(rng, 1), "TIFF", "1", compression=compression)
    elif choice == 3:
        tifffile.imwrite(file, random_image(rng, 1).astype(np.float32), metadata=None)
    elif choice == 4:
        pages = np.stack([random_image(rng, 1)] * rng.randint(2, 4))
        tifffile.imwrite(file, pages, photometric="minisblack")
    else:
        return _saved(random_image(rng, 3), "TIFF", rng.choice(["CMYK", "RGBA", "LAB", "YCbCr"]))
    return file.getvalue()


def make_pages(rng: random.Random) -> bytes:
    """A TIFF of two to five pages of their own sizes and compressions, maybe with thumbnails."""
    file = io.BytesIO()
    bigtiff = rng.random() < 0.2
    with tifffile.TiffWriter(file, byteorder=rng.choice("<>"), bigtiff=bigtiff) as writer:
        for _ in range(rng.randint(2, 5)):
            channels = rng.choice([1, 3])
            image = random_image(rng, channels, rng.choice([8, 16]))
            writer.write(
                image,
                photometric="rgb" if channels == 3 else "minisblack",
                compression=rng.choice([None, "zlib", "lzw", "packbits"]),
                rowsperstrip=rng.choice([5, 200]),
                contiguous=False,
                metadata=None,
            )
            if rng.random() < 0.2 and image.shape[0] > 1:
                writer.write(image[::2, ::2].copy(), subfiletype=1, contiguous=False, metadata=None)
    return file.getvalue()


def make_volume(rng: random.Random) -> bytes:
    """A TIFF of two to four slices with the metadata of ImageJ, OME or tifffile."""
    first = random_image(rng, 1, rng.choice([8, 16]))
    slices = np.stack([np.roll(first, number, 0) for number in range(rng.randint(2, 4))])
    options: dict[str, object] = {"photometric": "minisblack"}
    metadata = rng.choice(["imagej", "ome", "shaped"])
    if metadata != "shaped":
        options[metadata] = True
    if metadata != "ome":
        options["truncate"] = rng.random() < 0.5
    file = io.BytesIO()
    tifffile.imwrite(file, slices, **options)
    return file.getvalue()


def make_animation(rng: random.Random) -> bytes:
    """An animated PNG, WebP or GIF of two to four frames, each of another image."""
    kind = rng.choice(["PNG", "WEBP", "GIF"])
    first = random_image(rng, 3)
    others = []
    for number in range(rng.randint(1, 3)):
        others.append(Image.fromarray(np.roll(first, 1 + number, 0) ^ np.uint8(number + 1)))
    return _saved(first, kind, save_all=True, append_images=others)


KINDS: dict[str, tuple[Callable[[random.Random], bytes], str]] = {
    "JPEG": (make_jpeg, ".jpg"),
    "PNG": (make_png, ".png"),
    "WebP": (make_webp, ".webp"),
    "BMP": (make_bmp, ".bmp"),
    "PNM": (make_pnm, ".ppm"),
    "TIFF": (make_tiff, ".tif"),
    "unusual TIFF": (make_unusual_tiff, ".tiff"),
    "pages": (make_pages, ".tif"),
    "volume": (make_volume, ".tif"),
    "animation": (make_animation, ".png"),
}
# These must be read where they are not damaged.
COMMON = ("JPEG", "PNG", "WebP", "BMP", "PNM", "TIFF", "pages", "volume")


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _hole(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice([1, 8, 64, 512])
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(size, len(data) - start)) + data[start + size :]


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _remove(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 2, 16, 300]) :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.choice([1, 2, 16])) + data[start:]


def _end_marker(rng: random.Random, data: bytes) -> bytes:
    return _cut(rng, data) + b"\xff\xd9"


def _next_file(rng: random.Random, data: bytes) -> bytes:
    return _cut(rng, data) + data


DAMAGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "good": lambda rng, data: data,
    "cut": _cut,
    "hole": _hole,
    "flipped bits": _flip,
    "removed": _remove,
    "inserted": _insert,
    "end marker": _end_marker,
    "next file": _next_file,
}


def make_file(seed: int) -> OddFile:
    """Make the file of a seed."""
    rng = random.Random(seed)
    kind = rng.choice(list(KINDS))
    damage = rng.choice(list(DAMAGES))
    create, suffix = KINDS[kind]
    data = DAMAGES[damage](rng, create(rng))
    return OddFile(kind, damage, suffix, data)


def independent_pixels(data: bytes) -> Array:
    """Decode by another library: BGR or mono, upright. Raises an exception of that library."""
    if data[:2] in (b"II", b"MM"):
        return _tiff_pixels(data)
    if data.startswith(b"\xff\xd8"):
        # Pillow accepts damage, so this raises for it.
        try:
            simplejpeg.decode_jpeg(data, "BGR", strict=True)
        except ValueError as error:
            # Not about the pixels.
            if "JFIF revision" not in str(error):
                raise
    with Image.open(io.BytesIO(data)) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError("several images")
        image.load()
        # Where the EXIF block itself is damaged, there is no orientation.
        with contextlib.suppress(SyntaxError):
            image = ImageOps.exif_transpose(image)
        return _as_bgr(image)


def _as_bgr(image: Image.Image) -> Array:
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode == "L" and "transparency" not in image.info:
        return np.asarray(image)
    rgba = np.asarray(image.convert("RGBA"))
    if rgba[..., 3].min() < 255:
        raise ValueError("transparent")
    return rgba[..., 2::-1]


def independent_images(data: bytes, wanted: Iterable[int]) -> tuple[int, dict[int, Array]]:
    """Count the images of a file by another library, and decode those of the given numbers.

    The count may be too low where the chain of pages, or a volume, is damaged.
    """
    if data[:2] not in (b"II", b"MM"):
        return 1, {number: independent_pixels(data) for number in wanted}
    pages = _pages(data)
    images = {}
    for number in wanted:
        if number < len(pages):
            page = pages[number]
            assert page is not None, "a page that tifffile does not read"
            images[number] = page_pixels(page)
        else:
            images[number] = _slice(data, pages[0], number)
    readable = [page for page in pages if page is not None]
    return len(readable), images


def _slice(data: bytes, page: tifffile.TiffPage, number: int) -> Array:
    """A slice of a volume that has one page, which is not compressed."""
    start = page.dataoffsets[0] + number * page.nbytes
    samples = data[start : start + page.nbytes]
    pixel_type = page.dtype.newbyteorder(page.parent.byteorder)
    return np.frombuffer(samples, pixel_type).reshape(page.shape)


def _pages(data: bytes) -> list[tifffile.TiffPage | None]:
    """Each page as the first one of a file of its own, because tifffile stops at a damaged one.

    Smaller versions of a page are left out. A page that tifffile does not read is None.
    """
    pages: list[tifffile.TiffPage | None] = []
    headers = set()
    # A damaged chain of pages may have no end.
    while data[:16] not in headers:
        headers.add(data[:16])
        try:
            page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
            has_pixels_of_mask = page.bitspersample == 1 or page.photometric == 4
            is_mask = page.subfiletype & 4 and has_pixels_of_mask
            if not page.subfiletype & 1 and not is_mask:
                pages.append(page)
        except Exception:
            # tifffile raises many kinds of errors for a damaged page.
            pages.append(None)
        try:
            data = _without_first_page(data)
        except (struct.error, ValueError, OverflowError):
            break
    return pages


def _without_first_page(data: bytes) -> bytes:
    """Make the header of a TIFF file refer to its second page."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    size, entry, number, place = (8, 20, "Q", "Q") if is_big else (4, 12, "H", "I")
    (offset,) = struct.unpack_from(order + place, data, size)
    (entries,) = struct.unpack_from(order + number, data, offset)
    start = offset + struct.calcsize(number) + entries * entry
    following = data[start : start + size]
    # As in tifffile: more entries are damage, and so the place of the next page is unknown.
    if not 0 < entries <= 4096 or len(following) < size or not any(following):
        raise ValueError("there is no second page")
    return data[:size] + following + data[2 * size :]


def _tiff_pixels(data: bytes) -> Array:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > 1:
            raise ValueError("several images")
        return page_pixels(file.pages[0])


def page_pixels(page: tifffile.TiffPage) -> Array:
    """Decode a page by tifffile: BGR or mono, upright."""
    pixels = page.asarray()
    tag = page.tags.get(274)
    photometric = int(page.photometric)
    if photometric == 3:
        pixels = np.moveaxis(page.colormap >> 8, 0, -1).astype(np.uint8)[pixels]
    elif page.planarconfig == 2 and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if photometric == 0:
        pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.ndim == 3:
        pixels = pixels[..., 2::-1]
    return _turned(pixels, int(tag.value) if tag is not None else 1)


def _turned(pixels: Array, orientation: int) -> Array:
    turns = {
        2: lambda a: np.fliplr(a),
        3: lambda a: np.rot90(a, 2),
        4: lambda a: np.flipud(a),
        5: lambda a: np.fliplr(np.rot90(a, -1)),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.fliplr(np.rot90(a, 1)),
        8: lambda a: np.rot90(a, 1),
    }
    turn = turns.get(orientation)
    return pixels if turn is None else turn(pixels)
