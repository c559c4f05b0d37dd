"""Image files: decoded as they are, and never half or with a guessed brightness."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.cameras import CameraError
from flawline.cameras.decode import decode_image, list_images, read_image


def encoded(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def test_images_are_read_as_they_are(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(photo, ".png"))
    assert (read_image(path) == photo).all()
    path.write_bytes(encoded(photo[..., 0], ".png"))
    assert (read_image(path) == photo[..., 0]).all()


def test_opaque_alpha_is_dropped_and_any_other_refused(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.png"
    alpha = np.full((*photo.shape[:2], 1), 255, np.uint8)
    path.write_bytes(encoded(np.concatenate([photo, alpha], 2), ".png"))
    assert (read_image(path) == photo).all()
    alpha[0, 0] = 0
    path.write_bytes(encoded(np.concatenate([photo, alpha], 2), ".png"))
    with pytest.raises(CameraError, match="transparent"):
        read_image(path)


def test_sixteen_bits_need_a_bit_depth(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.png"
    twelve = photo[..., 0].astype(np.uint16) << 4
    path.write_bytes(encoded(twelve, ".png"))
    with pytest.raises(CameraError, match=r"16 bits.*--bits 12"):
        read_image(path)
    assert (read_image(path, bit_depth=12) == photo[..., 0]).all()
    assert (decode_image(path) == twelve).all()
    with pytest.raises(CameraError, match=r"x\.png: value \d+ does not fit in 10 bits"):
        read_image(path, bit_depth=10)


def test_floating_point_pixels_are_refused(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "x.tiff"
    path.write_bytes(encoded(photo.astype(np.float32), ".tiff"))
    with pytest.raises(CameraError, match=r"pixels are float32; save the image with 8 or 16 bits"):
        read_image(path)


def test_exif_rotation_is_applied(tmp_path: Path, photo: np.ndarray) -> None:
    pil = pytest.importorskip("PIL.Image")
    image = pil.fromarray(photo)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape[:2] == photo.shape[1::-1]


def _with_thumbnail(jpeg: bytes) -> bytes:
    """Put a whole second JPEG into an APP1 segment, as cameras embed previews."""
    segment = b"\xff\xe1" + (len(jpeg) + 2).to_bytes(2, "big") + jpeg
    return jpeg[:2] + segment + jpeg[2:]


def test_a_truncated_file_never_gets_a_grey_bottom(tmp_path: Path, photo: np.ndarray) -> None:
    jpeg = encoded(photo, ".jpg")
    truncated = {
        ".jpg": jpeg[: len(jpeg) // 2],
        ".jpeg": _with_thumbnail(jpeg)[:-200],
        ".png": encoded(photo, ".png")[:-50],
        ".bmp": encoded(photo, ".bmp")[:-50],
    }
    for suffix, data in truncated.items():
        path = tmp_path / f"x{suffix}"
        path.write_bytes(data)
        with pytest.raises(CameraError, match="truncated"):
            read_image(path)


def test_thumbnails_and_fill_bytes_do_not_make_a_jpeg_incomplete(
    tmp_path: Path, photo: np.ndarray
) -> None:
    jpeg = encoded(photo, ".jpg")
    (tmp_path / "thumbnail.jpg").write_bytes(_with_thumbnail(jpeg))
    (tmp_path / "filled.jpg").write_bytes(jpeg[:2] + b"\xff\xff" + jpeg[2:])
    for path in list_images(tmp_path):
        assert read_image(path).shape == photo.shape


@pytest.mark.parametrize(("data", "message"), [(b"", "empty"), (b"hello", "not an image")])
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(CameraError, match=message):
        read_image(path)
    with pytest.raises(CameraError, match="cannot be read"):
        read_image(tmp_path / "absent.png")


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".cache.png").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "PART.PNG").touch()
    assert list_images(tmp_path) == [tmp_path / "PART.PNG"]
