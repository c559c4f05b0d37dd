"""The table of blend settings, and how a product is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawline.train import TrainError
from flawline.train.anomalies.blend import BlendSettings
from flawline.train.anomalies.products import (
    PRODUCT_SETTINGS,
    TEXTURE_SETTINGS,
    choose_product,
    guess_product,
    product_settings,
)

pytestmark = pytest.mark.torch  # of the training half, although it needs no torch


def test_the_table_is_that_of_the_authors() -> None:
    assert len(PRODUCT_SETTINGS) == 15 + 3 + 10
    table = {
        "bottle": (200, 60, 0.40, 0.40, 3, 0.70, 0.25),
        "capsule": (200, 60, 0.15, 0.40, 3, 0.70, 0.25),
        "hazelnut": (20, 20, 0.35, 0.35, 3, 0.70, 0.25),
        "metal_nut": (20, 20, 0.40, 0.40, 3, 0.50, 0.25),
        "pill": (20, 20, 0.20, 0.40, 3, 0.70, 0.25),
        "screw": (200, 60, 0.12, 0.12, 4, 0.50, 0.25),
        "toothbrush": (20, 20, 0.40, 0.20, 3, 0.25, 0.25),
        "zipper": (200, 60, 0.40, 0.20, 4, 0.70, 0.25),
        "btad_01": (200, 60, 0.40, 0.40, 3, 0.70, 0.25),
        "btad_03": (200, 60, 0.40, 0.40, 3, 0.70, 0.25),
    }
    for name, (background, threshold, height, width, patches, object_, overlap) in table.items():
        expected = BlendSettings(
            (0.03, height),
            (0.03, width),
            patches,
            (0.7, 1.3),
            background,
            threshold,
            object_,
            overlap,
        )
        assert PRODUCT_SETTINGS[name] == expected, name
    textures = {
        "carpet",
        "grid",
        "leather",
        "tile",
        "wood",
        "btad_02",
        *(f"dagm_class{k}" for k in range(1, 11)),
    }
    assert {name for name, how in PRODUCT_SETTINGS.items() if how == TEXTURE_SETTINGS} == textures
    assert BlendSettings((0.03, 0.4), (0.03, 0.4), 4, (0.5, 2.0)) == TEXTURE_SETTINGS
    assert PRODUCT_SETTINGS["cable"] == BlendSettings((0.05, 0.4), (0.05, 0.4), 3, (0.7, 1.3))
    assert PRODUCT_SETTINGS["transistor"] == BlendSettings((0.03, 0.4), (0.03, 0.4), 3, (0.7, 1.3))


@pytest.mark.parametrize("product", [None, "", "gearbox", "01"])
def test_an_unknown_product_is_a_texture(product: str | None) -> None:
    assert product_settings(product) == TEXTURE_SETTINGS
    assert product_settings("Bottle") == PRODUCT_SETTINGS["bottle"] != TEXTURE_SETTINGS


@pytest.mark.parametrize(
    ("folder", "product"),
    [
        ("bottle", "bottle"),
        ("mvtec_bottle", "bottle"),
        ("Class7", "dagm_class7"),
        ("BTech_Dataset_transformed/01", "btad_01"),
        ("parts/01", None),
        ("weave", None),
        ("bottles", None),
    ],
)
def test_the_name_of_the_folder_gives_the_product(
    folder: str, product: str | None, tmp_path: Path
) -> None:
    assert guess_product(tmp_path / folder) == product


def test_the_choice_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_product("screw", tmp_path / "bottle") == "screw"
    assert choose_product(None, tmp_path / "bottle") == "bottle"
    assert choose_product(None, tmp_path / "gear") is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "blend settings of screw"
    assert lines[1] == "blend settings of bottle, the name of the data folder; --product changes it"
    assert "no product-specific blend settings" in lines[2]


def test_an_unknown_product_on_the_command_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="--product gearbox is unknown; leave it out or take one"):
        choose_product("gearbox", tmp_path)
