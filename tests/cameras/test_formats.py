"""Each image format: what OpenCV reads wrong is read right or refused."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.cameras import CameraError, open_camera
from flawline.cameras.decode import decode_image
from flawline.cameras.formats import DECODERS, DecodeError, jpeg, libjpeg, webp
from flawline.cameras.formats.lzw import decode_lzw

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
tifffile = pytest.importorskip("tifffile")


def decoded(tmp_path: Path, data: bytes) -> np.ndarray:
    path = tmp_path / "file"
    path.write_bytes(data)
    return decode_image(path)


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(CameraError) as caught:
        decoded(tmp_path, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tiff(image: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, metadata=None, **options)
    return file.getvalue()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 16}, {"tile": (16, 32)}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planar_tiff_of_16_bits_is_exact(
    tmp_path: Path, photo: np.ndarray, order: str, layout: dict, compression: str | None
) -> None:
    rgb = photo[..., ::-1].astype(np.uint16) << 8
    planes = np.ascontiguousarray(np.moveaxis(rgb, 2, 0))
    data = tiff(
        planes,
        photometric="rgb",
        planarconfig="separate",
        byteorder=order,
        compression=compression,
        **layout,
    )
    assert np.array_equal(decoded(tmp_path, data), photo.astype(np.uint16) << 8)


@pytest.mark.parametrize("bits", [8, 16])
def test_min_is_white_is_inverted(tmp_path: Path, photo: np.ndarray, bits: int) -> None:
    grey = photo[..., 0].astype(f"u{bits // 8}")
    data = tiff(grey, photometric="miniswhite")
    assert np.array_equal(decoded(tmp_path, data), np.iinfo(grey.dtype).max - grey)


@pytest.mark.parametrize("compression", ["jpeg2000", "png", "webp", "zstd", "lzma"])
def test_other_tiff_compressions_are_refused(
    tmp_path: Path, photo: np.ndarray, compression: str
) -> None:
    pytest.importorskip("imagecodecs")
    data = tiff(photo, photometric="rgb", compression=compression)
    assert "compression is not read; save it uncompressed, with LZW or with ZIP" in refusal(
        tmp_path, data
    )


def test_packed_tiff_of_12_bits_keeps_its_values(tmp_path: Path, photo: np.ndarray) -> None:
    twelve = photo[:, :119, 0].astype(np.uint16) << 4 | 5
    height, width = twelve.shape
    # One more sample makes a whole number of bytes per row.
    padded = np.pad(twelve, ((0, 0), (0, 1)))
    bits = np.unpackbits(padded.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=2)
    rows = np.packbits(bits[..., 4:].reshape(height, -1), axis=1)
    row = (width * 12 + 7) // 8
    wide = tiff(np.ascontiguousarray(rows[:, :row]), photometric="minisblack")
    data = bytearray(wide)
    for tag, old, new in ((256, row, width), (258, 8, 12)):
        for kind, code in ((3, "<HHIH"), (4, "<HHII")):
            entry = struct.pack(code, tag, kind, 1, old)
            if entry in data:
                place = data.index(entry)
                data[place : place + len(entry)] = struct.pack(code, tag, kind, 1, new)
    assert np.array_equal(decoded(tmp_path, bytes(data)), twelve)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_of_every_format(
    tmp_path: Path, photo: np.ndarray, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    data = saved(Image.fromarray(photo), kind, exif=exif.tobytes(), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decoded(tmp_path, data), np.asarray(upright)[..., ::-1])


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "GIF"])
def test_several_images_in_a_file_are_refused_with_their_count(
    tmp_path: Path, photo: np.ndarray, kind: str
) -> None:
    pages = []
    for number in range(4):
        pages.append(Image.fromarray(np.roll(photo, 9 * number, 0)))
    data = saved(pages[0], kind, save_all=True, append_images=pages[1:])
    assert "holds 4 images" in refusal(tmp_path, data)


def test_damage_in_the_scan_of_a_jpeg_is_a_fault(tmp_path: Path, photo: np.ndarray) -> None:
    whole = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    cut = whole[: len(whole) * 6 // 10]
    hole = bytearray(whole)
    hole[len(whole) // 2 : len(whole) // 2 + 512] = bytes(512)
    for data in (cut + whole, cut + b"\xff\xd9", bytes(hole)):
        assert "the JPEG is damaged" in refusal(tmp_path, data)
    assert decoded(tmp_path, whole).shape == photo.shape


def test_random_bytes_in_the_scan_of_a_jpeg_are_found_as_often_as_a_strict_decoder_does(
    tmp_path: Path, photo: np.ndarray
) -> None:
    """OpenCV and PIL take all of these files, with most of their pixels wrong."""
    simplejpeg = pytest.importorskip("simplejpeg")
    whole = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    scan = whole.index(b"\xff\xda") + 14
    path = tmp_path / "damaged.jpg"
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        start = int(rng.integers(scan, len(whole) - 42))
        # Without markers, which would be found by that alone.
        damaged[start : start + 40] = rng.integers(0, 255, 40, np.uint8).tobytes()
        assert cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR) is not None
        path.write_bytes(damaged)
        expected = ours = ""
        try:
            simplejpeg.decode_jpeg(bytes(damaged))
        except ValueError as error:
            expected = str(error)
        try:
            decode_image(path)
        except CameraError as error:
            ours = str(error)
            assert ours.endswith("; remove the file or copy it again")
        assert bool(ours) == bool(expected), seed
        refused += bool(ours)
    # In the others, the code of libjpeg is in step again, with the right number of blocks.
    assert refused >= 36


def test_a_progressive_jpeg_without_its_last_scans_is_truncated(
    tmp_path: Path, photo: np.ndarray
) -> None:
    whole = saved(Image.fromarray(photo), "JPEG", progressive=True)
    scans = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    # A scan may start with its own Huffman table, so the cut is made before that.
    cut = whole[: whole.rindex(b"\xff\xc4", 0, scans[-1])] + b"\xff\xd9"
    assert "truncated" in refusal(tmp_path, cut)
    assert decoded(tmp_path, whole).shape == photo.shape


def test_jpeg_is_refused_where_libjpeg_reports_nothing(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert libjpeg.reports_are_recorded()
    monkeypatch.setattr(jpeg, "reports_are_recorded", lambda: False)
    data = cv2.imencode(".jpg", photo)[1].tobytes()
    assert "save the image as PNG" in refusal(tmp_path, data)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits"])
def test_damage_in_a_strip_of_a_tiff_is_a_fault(
    tmp_path: Path, photo: np.ndarray, compression: str
) -> None:
    pytest.importorskip("imagecodecs")
    whole = tiff(photo, photometric="rgb", compression=compression, rowsperstrip=16)
    assert np.array_equal(decoded(tmp_path, whole), photo[..., ::-1])
    hole = bytearray(whole)
    hole[len(whole) // 3 : len(whole) // 3 + 512] = bytes(512)
    assert "the TIFF is damaged" in refusal(tmp_path, bytes(hole))


def test_lzw_fills_its_table_and_starts_again() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    noise = np.random.default_rng(0).integers(0, 40, 60_000, np.uint8).tobytes()
    for text in (noise, bytes(70_000), b"ab" * 5, b"\xff"):
        assert decode_lzw(imagecodecs.lzw_encode(text), len(text)) == text
    with pytest.raises(ValueError, match="ends early"):
        decode_lzw(imagecodecs.lzw_encode(noise)[:-9], len(noise))
    with pytest.raises(ValueError, match="clear code"):
        decode_lzw(b"\0\0\0", 3)


def bmp(rows: bytes, width: int, height: int, bits: int, **header: object) -> bytes:
    masks = header.get("masks", b"")
    offset = 54 + len(masks)
    size = offset + len(rows) + header.get("claim", 0)
    start = b"BM" + struct.pack("<IHHI", size, 0, 0, offset)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, header.get("kind", 0), len(rows), 0, 0, 0, 0
    )
    return start + info + masks + rows


def test_bmp_without_alpha_and_with_a_wrong_file_size(tmp_path: Path, photo: np.ndarray) -> None:
    height, width = photo.shape[:2]
    unused = np.zeros((height, width, 1), np.uint8)
    four = np.concatenate([photo, unused], 2)[::-1].tobytes()
    three = photo[::-1].tobytes()
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    for data in (
        bmp(four, width, height, 32, kind=3, masks=masks),
        bmp(four, width, height, 32),
        bmp(three, width, height, 24, claim=2),
        bmp(three, width, height, 24, claim=-100),
    ):
        assert np.array_equal(decoded(tmp_path, data), photo)
    assert "truncated" in refusal(tmp_path, bmp(three[:-1], width, height, 24))


def test_pgm_of_12_bits_keeps_its_values(tmp_path: Path, photo: np.ndarray) -> None:
    twelve = photo[..., 0].astype(np.uint16) << 4
    height, width = twelve.shape
    header = b"P5\n# a comment\n%d %d\n4095\n" % (width, height)
    pixels = twelve.astype(">u2").tobytes()
    assert np.array_equal(decoded(tmp_path, header + pixels), twelve)
    assert "truncated" in refusal(tmp_path, header + pixels[:-1])
    assert "holds 2 images" in refusal(tmp_path, (header + pixels) * 2)


def test_every_decoder_refuses_what_is_only_its_first_bytes() -> None:
    from flawline.cameras.formats import find_decoder

    for start in DECODERS:
        data = start + b"\0\0\0\0WEBP"
        decoder = find_decoder(data)
        assert decoder is not None
        with pytest.raises((DecodeError, ValueError)):
            decoder(data)


def test_images_that_are_not_read_are_frames_with_a_fault(
    tmp_path: Path, photo: np.ndarray
) -> None:
    cv2.imwrite(str(tmp_path / "b.pgm"), photo[..., 0])
    for name in ("c.ppm", "d.jpe", "e.dib"):
        cv2.imwrite(str(tmp_path / name), photo)
    (tmp_path / "d.jpe").rename(tmp_path / "d.jfif")
    for name in ("f.jp2", "g.avif", "h.AVIF"):
        (tmp_path / name).write_bytes(b"\0\0\0\x0cjP  ")
    (tmp_path / "notes.txt").touch()
    frames = list(open_camera(str(tmp_path)))
    assert [Path(frame.source).name for frame in frames if frame.fault] == [
        "f.jp2",
        "g.avif",
        "h.AVIF",
    ]
    assert len(frames) == 7
    (note,) = open_camera(str(tmp_path)).notes()
    assert note == (
        f"camera {tmp_path}: 4 image files; left out: 3 images of formats that are not read "
        f"(2 .avif, 1 .jp2; save them as PNG), 1 other file (1 .txt); "
        f"each image that is not read is a frame that rejects its part"
    )
    assert open_camera(str(tmp_path / "b.pgm")).notes() == []


def test_an_image_without_a_known_ending_is_an_image(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "part.0001"
    path.write_bytes(cv2.imencode(".png", photo)[1].tobytes())
    (frame,) = open_camera(str(path))
    assert frame.image is not None
    assert np.array_equal(frame.image, photo)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "the camera is empty"),
        ("0", "for a USB camera give usb://0$"),
        ("usb:2", "for a USB camera give usb://2$"),
        ("/dev/null", "is a device, and no camera; for a USB camera give usb://0 or /dev/video0$"),
        (
            "http://10.0.0.1/line.mjpg",
            "is unknown; known: folder.*; of network streams, those of rtsp://",
        ),
        ("v4l2:///dev/video0", "give usb://0"),
        ("genicam://1", r"give gige://SERIAL\?cti=FILE, or basler://SERIAL"),
        ("pylon://1", "give basler://SERIAL"),
        ("nothing://1", "'nothing' is unknown; known: folder, video, usb, .*synthetic"),
    ],
)
def test_what_is_no_file_is_explained(uri: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(uri)


def test_a_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CameraError, match="is a pipe, which is not read; write the images"):
        open_camera(str(tmp_path / "pipe"))


def test_webp_is_refused_where_opencv_hides_its_damage(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webp, "_animations_are_decoded", lambda: False)
    data = cv2.imencode(".webp", photo)[1].tobytes()
    assert "update OpenCV to 4.11 or later" in refusal(tmp_path, data)
