"""The detector as an application uses it: a path, an array, an image of the anomaly map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import write_tiny_bundle

from flawline import FlawlineError
from flawline.runtime import Detector, read_bundle
from flawline.runtime.bundle import Bundle

IMAGE = np.full((30, 40, 3), 99, np.uint8)


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    with Detector(bundle.path, "onnxruntime") as detector:
        yield detector


def test_a_bundle_is_given_by_its_folder_or_as_it_was_read(bundle: Bundle) -> None:
    scores = []
    for given in (bundle.path, str(bundle.path), read_bundle(bundle.path)):
        with Detector(given, "onnxruntime") as detector:
            assert detector.bundle == bundle
            scores.append(detector(IMAGE).score)
    assert scores == [99, 99, 99]


def test_a_folder_that_is_no_bundle_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match="there is no such folder; ") as raised:
        Detector(tmp_path / "missing")
    assert "\n" not in str(raised.value)


def test_an_image_file_is_read_judged_and_painted(detector: Detector, tmp_path: Path) -> None:
    bright = IMAGE.copy()
    bright[5:25, 5:25] = 250
    cv2.imwrite(str(tmp_path / "part.png"), bright)
    image = detector.read_image(str(tmp_path / "part.png"))
    assert (image == bright).all()
    verdict = detector(image)
    assert verdict.name == "anomalous"
    painted = detector.paint(image, verdict.anomaly_map)
    assert painted.shape == image.shape
    assert painted.dtype == np.uint8
    assert (painted != image).any()


def test_a_damaged_file_is_an_error_that_says_why(detector: Detector, tmp_path: Path) -> None:
    data = cv2.imencode(".png", IMAGE)[1].tobytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("cut.png", "missing.png"):
        with pytest.raises(FlawlineError, match=name) as raised:
            detector.read_image(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_deep_file_is_scaled_as_in_the_training(detector: Detector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((30, 40), 99 << 4, np.uint16))
    bundle = write_tiny_bundle(tmp_path / "twelve", bit_depth=12)
    with Detector(bundle, "onnxruntime") as detector12:
        assert (detector12.read_image(tmp_path / "deep.png") == 99).all()
    assert (detector.read_image(tmp_path / "deep.png", bit_depth=12) == 99).all()
    with pytest.raises(FlawlineError, match=r"16 bits per pixel .*; declare .* bit_depth=12$"):
        detector.read_image(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (None, "NoneType"),
        ("part.png", "str"),
        ([[1, 2], [3, 4]], "list"),
        (IMAGE.astype(np.float32), r"float32 \[30, 40, 3\]"),
        (np.zeros((30, 40, 4), np.uint8), r"uint8 \[30, 40, 4\]"),
        (IMAGE[None], r"uint8 \[1, 30, 40, 3\]"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(detector: Detector, image: Any, got: str) -> None:
    pattern = rf"^expected .*uint8 \[h, w, 3\] or \[h, w\], got {got}$"
    with pytest.raises(ValueError, match=pattern):
        detector(image)
    anomaly_map = detector(IMAGE).anomaly_map
    with pytest.raises(ValueError, match=pattern):
        detector.paint(image, anomaly_map)


def test_what_is_no_map_is_named_in_one_line(detector: Detector) -> None:
    with pytest.raises(ValueError, match=r"^expected an anomaly map \[64, 64\], got \[30, 40\]$"):
        detector.paint(IMAGE, np.zeros((30, 40), np.float32))
    with pytest.raises(ValueError, match=r"no anomaly map: the image could not be judged$"):
        detector.paint(IMAGE, None)


def test_a_bundle_without_maps_paints_nothing(detector: Detector) -> None:
    manifest = replace(detector.bundle.manifest, outputs=("score",))
    detector.bundle = replace(detector.bundle, manifest=manifest)
    with pytest.raises(ValueError, match=r"built for the score alone$"):
        detector.paint(IMAGE, np.zeros((0, 0), np.float32))
