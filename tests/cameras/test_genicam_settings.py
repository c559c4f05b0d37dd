"""Options of machine-vision cameras, written to the features of a simulated camera."""

from __future__ import annotations

import numpy as np
import pytest

from flawline.cameras import CameraError
from flawline.cameras.genicam_settings import GenicamOptions, Settings


class Features:
    """A camera whose features can all be written."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def has(self, name: str) -> bool:
        return name in self.values

    def read(self, name: str) -> str:
        return self.values[name]

    def write(self, name: str, value: str) -> None:
        self.values[name] = value

    def execute(self, name: str) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("BayerRG8", "rggb"), ("BayerGR8", "grbg"), ("BayerGB8", "gbrg"), ("BayerBG8", "bggr")],
)
def test_a_mosaic_is_given_as_it_is_on_request(name: str, pattern: str) -> None:
    mosaic = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    features = Features(PixelFormat="Mono8")
    options = GenicamOptions(pixel_format=name, mosaic=pattern)
    pixel_format = Settings(features, options, "SIM").apply()
    assert features.values["PixelFormat"] == name
    assert (pixel_format.image(mosaic.ravel(), 8, 6) == mosaic).all()
    converted = Settings(features, GenicamOptions(), "SIM").apply()
    assert converted.image(mosaic.ravel(), 8, 6).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("name", "reason"), [("BayerGB8", "which is gbrg"), ("Mono8", "which is no mosaic")]
)
def test_another_pattern_than_the_one_that_was_named_is_refused(name: str, reason: str) -> None:
    features = Features(PixelFormat=name)
    settings = Settings(features, GenicamOptions(mosaic="rggb"), "SIM")
    with pytest.raises(CameraError, match=f"SIM: mosaic=rggb: gives {name}, {reason}; choose"):
        settings.apply()


def test_a_pattern_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="mosaic must be one of rggb, grbg, gbrg, bggr"):
        GenicamOptions(mosaic="RG")
