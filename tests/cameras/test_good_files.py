"""Unusual but good files are read exactly, or refused in one line that says what they are."""

from __future__ import annotations

import io
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.cameras import CameraError, Frame, open_camera
from flawline.cameras.decode import decode_image

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth colour image, RGB [48, 64, 3]."""
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, 255 - x - y], 2).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(folder: Path, data: bytes, name: str = "x.jpg") -> np.ndarray:
    path = folder / name
    path.write_bytes(data)
    return decode_image(path)


def bgr_of(data: bytes) -> np.ndarray:
    """The pixels as Pillow decodes them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., ::-1]


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"progressive": True, "subsampling": 0},
        {"optimize": True},
        {"keep_rgb": True},
        {"subsampling": 1},
        {"restart_marker_blocks": 3},
    ],
)
def test_colour_jpeg(tmp_path: Path, photo: np.ndarray, options: dict[str, object]) -> None:
    data = saved(Image.fromarray(photo), "JPEG", quality=95, **options)
    assert np.array_equal(read(tmp_path, data), bgr_of(data))


def test_zeros_after_the_end_of_a_jpeg_are_no_damage(tmp_path: Path, photo: np.ndarray) -> None:
    data = saved(Image.fromarray(photo), "JPEG", quality=95)
    assert np.array_equal(read(tmp_path, data + bytes(100)), bgr_of(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_grey_jpeg(tmp_path: Path, photo: np.ndarray, progressive: bool) -> None:
    data = saved(Image.fromarray(photo[..., 0]), "JPEG", progressive=progressive)
    assert np.array_equal(read(tmp_path, data), np.asarray(Image.open(io.BytesIO(data))))


def test_cmyk_jpeg(tmp_path: Path, photo: np.ndarray) -> None:
    image = Image.fromarray(photo).convert("CMYK")
    data = saved(image, "JPEG", quality=95)
    pixels = read(tmp_path, data)
    # Converters of CMYK round differently.
    assert np.abs(pixels.astype(int) - photo[..., ::-1]).max() <= 12


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_png(tmp_path: Path, photo: np.ndarray, bits: int) -> None:
    image = Image.fromarray(photo).quantize(1 << bits)
    data = saved(image, "PNG", bits=bits)
    assert np.array_equal(read(tmp_path, data, "x.png"), bgr_of(data))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_png_of_few_bits(tmp_path: Path, bits: int) -> None:
    values = np.arange(8 * 8).reshape(8, 8) % (1 << bits)
    rows = []
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        rows.append(b"\0" + int(text, 2).to_bytes(bits, "big"))
    header = b"\0\0\0\x08\0\0\0\x08" + bytes([bits, 0, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ):
        data += chunk(name, content)
    expected = values * (255 // ((1 << bits) - 1))
    assert np.array_equal(read(tmp_path, data, "x.png"), expected)


def chunk(name: bytes, content: bytes, wrong: int = 0) -> bytes:
    checksum = zlib.crc32(name + content) ^ wrong
    return len(content).to_bytes(4, "big") + name + content + checksum.to_bytes(4, "big")


def with_chunk(png: bytes, inserted: bytes) -> bytes:
    """Insert a chunk after the header of a PNG."""
    return png[:33] + inserted + png[33:]


def test_gamma_and_opaque_alpha_change_no_pixel(tmp_path: Path, photo: np.ndarray) -> None:
    data = saved(Image.fromarray(photo), "PNG")
    gamma = with_chunk(data, chunk(b"gAMA", (100_000).to_bytes(4, "big")))
    assert np.array_equal(read(tmp_path, gamma, "x.png"), photo[..., ::-1])
    opaque = saved(Image.fromarray(photo).convert("RGBA"), "PNG")
    assert np.array_equal(read(tmp_path, opaque, "x.png"), photo[..., ::-1])


def test_a_wrong_checksum_of_a_comment_changes_no_pixel(tmp_path: Path, photo: np.ndarray) -> None:
    data = saved(Image.fromarray(photo), "PNG")
    hurt = with_chunk(data, chunk(b"tEXt", b"Comment\0a", wrong=1))
    assert np.array_equal(read(tmp_path, hurt, "x.png"), photo[..., ::-1])


@pytest.mark.parametrize(("kind", "name"), [("PNG", "x.jpg"), ("BMP", "x.png"), ("TIFF", "x.bmp")])
def test_a_wrong_ending_does_not_matter(
    tmp_path: Path, photo: np.ndarray, kind: str, name: str
) -> None:
    data = saved(Image.fromarray(photo), kind)
    assert np.array_equal(read(tmp_path, data, name), photo[..., ::-1])


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    ],
)
def test_what_is_no_image_is_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CameraError, match="is not an image of a format that is read") as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (64, 20000), (20000, 64)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    height, width = size
    image = np.full((height, width, 3), 100, np.uint8)
    image[::7] = 140
    data = saved(Image.fromarray(image), kind)
    assert np.array_equal(read(tmp_path, data, "x.img"), bgr_of(data))


def video_frames(path: Path) -> list[Frame]:
    pytest.importorskip("av")
    with open_camera(str(path)) as camera:
        return list(camera)


def write_video(
    path: Path, image: np.ndarray, codec: str, pixel_format: str, count: int = 5, **options: str
) -> Path:
    """Write a video of equal frames from an RGB image."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = pixel_format
        if "sar" in path.stem:
            stream.sample_aspect_ratio = Fraction(2, 1)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


QUIET_H265 = {"x265-params": "log-level=none:crf=4"}


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("ten.mp4", "libx264", "yuv420p10le", {"crf": "4"}),
        ("ten.mkv", "libx265", "yuv420p10le", QUIET_H265),
        ("sixteen.mkv", "ffv1", "gray16le", {}),
        ("colour.mp4", "libx264", "yuv444p", {"crf": "4"}),
        ("full.mp4", "libx264", "yuvj420p", {"crf": "4"}),
        ("sar.mp4", "libx264", "yuv420p", {"crf": "4"}),
        ("alpha.mov", "png", "rgba", {}),
        ("grey.mkv", "ffv1", "gray", {}),
    ],
)
def test_a_good_video_shows_its_pixels(
    tmp_path: Path,
    photo: np.ndarray,
    name: str,
    codec: str,
    pixel_format: str,
    options: dict[str, str],
) -> None:
    frames = video_frames(write_video(tmp_path / name, photo, codec, pixel_format, **options))
    assert len(frames) == 5
    expected = photo[..., ::-1]
    if pixel_format.startswith("gray"):
        grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
        expected = np.repeat(grey[..., None], 3, 2)
    for frame in frames:
        assert frame.fault is None
        assert frame.image is not None
        assert np.abs(frame.image.astype(int) - expected).mean() < 6


def test_a_video_of_odd_size(tmp_path: Path) -> None:
    y, x = np.mgrid[:239, :319]
    image = np.stack([x // 2, y, (x + y) // 3], 2).astype(np.uint8)
    path = write_video(tmp_path / "odd.mkv", image, "libx264", "yuv444p", crf="4")
    for frame in video_frames(path):
        assert frame.image is not None
        assert frame.image.shape == (239, 319, 3)
        assert np.abs(frame.image[..., ::-1].astype(int) - image).mean() < 4


def test_a_size_that_changes_in_the_stream(tmp_path: Path, photo: np.ndarray) -> None:
    first = write_video(tmp_path / "a.ts", photo, "libx264", "yuv420p", crf="4")
    larger = cv2.resize(photo, (128, 96))
    second = write_video(tmp_path / "b.ts", larger, "libx264", "yuv420p", crf="4")
    (tmp_path / "c.ts").write_bytes(first.read_bytes() + second.read_bytes())
    shapes = []
    for frame in video_frames(tmp_path / "c.ts"):
        assert frame.image is not None, frame.fault
        shapes.append(frame.image.shape[:2])
    assert shapes == [(48, 64)] * 5 + [(96, 128)] * 5


def test_a_cover_image_is_no_video(tmp_path: Path, photo: np.ndarray) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=25)
        cover.height, cover.width = photo.shape[:2]
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width = photo.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(photo * 0, format="rgb24")))
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photo, format="rgb24")))
        container.mux(stream.encode(None))
    frames = video_frames(path)
    assert len(frames) == 5
    for frame in frames:
        assert frame.image is not None
        assert frame.image.mean() > 50
