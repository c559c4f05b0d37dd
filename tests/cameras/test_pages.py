"""Files with several images: each page of a TIFF is a frame or a fault, other files are refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.cameras import CameraError, Frame, decode, open_camera
from flawline.cameras.decode import decode_image
from flawline.cameras.formats import tiff, tiff_pages

Image = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

GREY = {"photometric": "minisblack", "metadata": None}


@pytest.fixture
def stack(photo: np.ndarray) -> np.ndarray:
    """Five different grey images, [5, h, w]."""
    return np.stack([np.roll(photo[..., 0], 7 * number, 1) for number in range(5)])


def frames_of(path: Path) -> list[Frame]:
    with open_camera(str(path)) as camera:
        return list(camera)


def write_pages(path: Path, images: list[np.ndarray], **options: object) -> Path:
    with tifffile.TiffWriter(path) as file:
        for image in images:
            file.write(image, contiguous=False, **(GREY | options))
    return path


def offsets_of(path: Path) -> list[int]:
    """The places of the directories of a little-endian TIFF file."""
    data = path.read_bytes()
    offsets = []
    (offset,) = struct.unpack_from("<I", data, 4)
    while offset:
        offsets.append(offset)
        (offset,) = struct.unpack_from("<I", data, next_field(data, offset))
    return offsets


def next_field(data: bytes, offset: int) -> int:
    """The place at which a directory has the offset of the next one."""
    (count,) = struct.unpack_from("<H", data, offset)
    return offset + 2 + 12 * count


def overwrite(path: Path, place: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[place : place + len(content)] = content
    path.write_bytes(data)


def assert_pages(frames: list[Frame], expected: list[np.ndarray | str]) -> None:
    """Compare frames with the images, or with parts of the texts of their faults."""
    assert len(frames) == len(expected)
    for frame, wanted in zip(frames, expected, strict=True):
        if isinstance(wanted, str):
            assert frame.image is None
            assert wanted in (frame.fault or "")
            assert (frame.fault or "").startswith(f"{frame.source}: ")
            assert "\n" not in (frame.fault or "")
        else:
            assert np.array_equal(frame.image, wanted), frame.fault


def test_each_page_is_a_frame_that_names_it(tmp_path: Path, photo: np.ndarray) -> None:
    deep = photo[:30, :50, 0].astype(np.uint16) << 4
    expected = [photo, photo[::2], photo[..., 1], deep]
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(photo[..., ::-1], photometric="rgb", metadata=None)
        file.write(photo[::2, :, ::-1], photometric="rgb", compression="zlib", metadata=None)
        file.write(photo[..., 1], **GREY)
        file.write(deep, **GREY)
    for name in ("a.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), photo)
    frames = frames_of(tmp_path)
    assert_pages(frames, [photo, *expected, photo])
    assert [frame.index for frame in frames] == list(range(6))
    pages = [f"b.tif page {number}" for number in (1, 2, 3, 4)]
    assert [Path(frame.source).name for frame in frames] == ["a.png", *pages, "c.png"]
    (*_, declared) = open_camera(f"{tmp_path / 'b.tif'}?bits=12")
    assert declared.bit_depth == 12


def test_pages_that_opencv_wrote(tmp_path: Path, stack: np.ndarray) -> None:
    cv2.imwritemulti(str(tmp_path / "five.tif"), list(stack))
    assert_pages(frames_of(tmp_path / "five.tif"), list(stack))


def test_only_the_damaged_pages_are_faults(tmp_path: Path, stack: np.ndarray) -> None:
    path = write_pages(tmp_path / "x.tif", list(stack), compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages[2].dataoffsets[0]
        size = file.pages[2].databytecounts[0]
    overwrite(path, place + size // 2, bytes(200))
    assert_pages(frames_of(path), [*stack[:2], "the TIFF is damaged", *stack[3:]])


def test_only_the_pages_of_another_kind_are_faults(tmp_path: Path, stack: np.ndarray) -> None:
    images = [stack[0], stack[1].astype(np.float32), stack[2]]
    path = write_pages(tmp_path / "x.tif", images)
    assert_pages(frames_of(path), [stack[0], "pixels are float32", stack[2]])


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_damaged_directory_is_one_fault(tmp_path: Path, stack: np.ndarray, number: int) -> None:
    path = write_pages(tmp_path / "x.tif", list(stack))
    # The type of the width becomes a text. tifffile does not open a file with such a first page.
    entry = struct.pack("<HH", 256, 4)
    data = path.read_bytes()
    overwrite(path, data.index(entry, offsets_of(path)[number]) + 2, struct.pack("<H", 2))
    expected: list[np.ndarray | str] = list(stack)
    expected[number] = "the TIFF is damaged"
    assert_pages(frames_of(path), expected)


@pytest.mark.parametrize(
    ("target", "reason"),
    [(1 << 30, "leads out of the file"), (8, "does not end"), (200, "entries")],
)
def test_damage_that_hides_further_pages_is_a_fault(
    tmp_path: Path, stack: np.ndarray, target: int, reason: str
) -> None:
    path = write_pages(tmp_path / "x.tif", list(stack + 200))
    third = offsets_of(path)[2]
    place = next_field(path.read_bytes(), third)
    first = offsets_of(path)[0]
    # A directory in the middle of bright pixels has too many entries.
    overwrite(path, place, struct.pack("<I", first if target == 8 else target))
    if target == 200:
        overwrite(path, 200, b"\xff\xff")
    frames = frames_of(path)
    assert len(frames) == 4
    assert reason in (frames[3].fault or "")
    with pytest.raises(CameraError, match=reason):
        decode_image(path)


def test_smaller_versions_and_masks_are_no_pages(tmp_path: Path, stack: np.ndarray) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(stack[0, ::4, ::4], subfiletype=1, **GREY)
        file.write(stack[0], subifds=1, **GREY)
        file.write(stack[0, ::2, ::2], subfiletype=1, **GREY)
        file.write(stack[1], subfiletype=2, **GREY)
        file.write(stack[1] > 3, subfiletype=4, **GREY)
    frames = frames_of(path)
    assert_pages(frames, [stack[0], stack[1]])
    with tifffile.TiffWriter(path) as file:
        file.write(stack[0], **GREY)
        file.write(stack[0, ::2, ::2], subfiletype=1, **GREY)
    (frame,) = frames_of(path)
    assert frame.source == str(path)


def test_a_page_is_not_left_out_by_a_flipped_bit(tmp_path: Path, stack: np.ndarray) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(stack[0], **GREY)
        file.write(stack[1], subfiletype=1, **GREY)
    assert_pages(frames_of(path), [stack[0], "is not smaller"])
    # A mask has pixels of one bit.
    with tifffile.TiffWriter(path) as file:
        file.write(stack[0], **GREY)
        file.write(stack[1], subfiletype=2, **GREY)
    entry = struct.pack("<HHI", 254, 4, 1)
    overwrite(path, path.read_bytes().rindex(entry) + len(entry), struct.pack("<I", 4))
    assert_pages(frames_of(path), [stack[0], stack[1]])


@pytest.mark.parametrize("options", [{"imagej": True}, {"imagej": True, "truncate": True}])
def test_slices_of_imagej_are_frames(tmp_path: Path, stack: np.ndarray, options: dict) -> None:
    path = tmp_path / "x.tif"
    deep = stack.astype(np.uint16) << 4
    tifffile.imwrite(path, deep, **options)
    assert_pages(frames_of(path), list(deep))
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == (1 if "truncate" in options else 5)
    with pytest.raises(CameraError, match="holds 5 images"):
        decode_image(path)


@pytest.mark.parametrize("truncate", [False, True])
def test_slices_of_tifffile_are_frames(tmp_path: Path, stack: np.ndarray, truncate: bool) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", truncate=truncate)
    assert_pages(frames_of(path), list(stack))
    rgb = np.repeat(stack[..., None], 3, 3)
    tifffile.imwrite(path, rgb, photometric="rgb", truncate=truncate)
    assert_pages(frames_of(path), list(rgb))


def test_a_volume_in_one_page_is_refused_with_its_count(tmp_path: Path, stack: np.ndarray) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", volumetric=True, tile=(1, 16, 16))
    assert_pages(frames_of(path), ["holds 5 images"])


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}])
def test_fewer_pages_than_declared_are_a_fault(
    tmp_path: Path, stack: np.ndarray, options: dict
) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", byteorder=">", **options)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[2].offset
        file.filehandle.seek(offset)
        (count,) = struct.unpack(">H", file.filehandle.read(2))
    overwrite(path, offset + 2 + 12 * count, bytes(4))
    assert_pages(frames_of(path), [*stack[:3], "it declares 5 images and holds 3"])
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].offset
        count = len(file.pages[0].tags)
    overwrite(path, offset + 2 + 12 * count, bytes(4))
    if "imagej" not in options:
        assert_pages(frames_of(path), [stack[0], "it declares 5 images and holds 1"])
        return
    # ImageJ stores large volumes in the same way.
    assert_pages(frames_of(path), list(stack))


def test_pages_are_decoded_one_by_one(
    tmp_path: Path, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pages(tmp_path / "x.tif", list(stack))
    decoded = []
    loaded = []
    decode_page = tiff._decode_page
    load = tiff_pages._load
    monkeypatch.setattr(
        tiff, "_decode_page", lambda *args: decoded.append(args) or decode_page(*args)
    )
    monkeypatch.setattr(tiff_pages, "_load", lambda *args: loaded.append(args) or load(*args))
    with open_camera(str(path)) as camera:
        frames = iter(camera)
        next(frames)
        # One page is looked ahead, because a file with a single page has no numbers.
        assert (len(decoded), len(loaded)) == (1, 2)
        next(frames)
        assert (len(decoded), len(loaded)) == (2, 3)
        camera.stop()
        assert list(frames) == []


def test_a_large_file_is_not_loaded(
    tmp_path: Path, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pages(tmp_path / "x.tif", list(stack), compression="zlib")
    monkeypatch.setattr(decode, "LARGEST_LOADED", 0)
    monkeypatch.setattr(io, "BytesIO", None)
    assert_pages(frames_of(path), list(stack))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_is_one_fault_with_its_count(
    tmp_path: Path, photo: np.ndarray, kind: str
) -> None:
    pages = [Image.fromarray(np.roll(photo, 9 * number, 0)) for number in range(4)]
    path = tmp_path / f"x.{kind.lower()}"
    pages[0].save(path, kind, save_all=True, append_images=pages[1:])
    assert_pages(frames_of(path), ["holds 4 images, and each may show a part; save each as"])
