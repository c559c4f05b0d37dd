"""A bundle that an older version wrote is read, and judges as it did. Its files never change."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flawline.runtime.bundle import add_model, read_bundle, write_calibration
from flawline.runtime.detector import Detector
from flawline.runtime.manifest import SCHEMA

SCHEMA_1 = Path(__file__).resolve().parents[1] / "golden" / "bundle-schema1"


@pytest.mark.parametrize(("grey", "anomalous"), [(20, False), (100, False), (101, True)])
def test_it_judges_as_on_the_day_it_was_written(grey: int, anomalous: bool) -> None:
    with Detector(read_bundle(SCHEMA_1), "onnxruntime") as detector:
        verdict = detector(np.full((30, 40, 3), grey, np.uint8))
    assert verdict.score == grey
    assert verdict.threshold == 100
    assert verdict.anomalous is anomalous


def test_its_bit_depth_was_in_the_provenance() -> None:
    assert read_bundle(SCHEMA_1).manifest.bit_depth == 12


def test_its_golden_data_and_threshold_are_unchanged() -> None:
    old = read_bundle(SCHEMA_1)
    assert old.calibration.threshold == 100
    assert old.calibration.interval == (0.002, 0.02)
    assert old.manifest.fp32_islands == ("/tail",)
    assert old.golden().scores == pytest.approx([247.333, 249.333], abs=1e-3)


def test_what_is_written_into_it_is_of_the_present_schema(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SCHEMA_1, tmp_path / "copy"))
    old = read_bundle(copy)
    write_calibration(old, replace(old.calibration, threshold=3.5))
    assert json.loads((copy / "calibration.json").read_bytes())["schema"] == SCHEMA
    assert read_bundle(copy).calibration.threshold == 3.5
    add_model(old, "int8", old.model().read_bytes())
    assert json.loads((copy / "manifest.json").read_bytes())["schema"] == SCHEMA
    assert read_bundle(copy).manifest == old.manifest
