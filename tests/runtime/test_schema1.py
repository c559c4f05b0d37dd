"""A bundle that an older version wrote is read and judges the same for ever. Its files never change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flawline.runtime.bundle import read_bundle
from flawline.runtime.detector import Detector

SCHEMA_1 = Path(__file__).resolve().parents[1] / "golden" / "bundle-schema1"


@pytest.mark.parametrize(("grey", "anomalous"), [(20, False), (100, False), (101, True)])
def test_it_judges_as_on_the_day_it_was_written(grey: int, anomalous: bool) -> None:
    with Detector(read_bundle(SCHEMA_1), "onnxruntime") as detector:
        verdict = detector(np.full((30, 40, 3), grey, np.uint8))
    assert verdict.score == grey
    assert verdict.threshold == 100
    assert verdict.anomalous is anomalous
