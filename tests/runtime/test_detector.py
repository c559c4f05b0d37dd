"""Engines and verdicts; that every engine works is checked in tests/contract/test_engines.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import with_graph, write_tiny_bundle

from flawline.cameras import Frame
from flawline.runtime import engines
from flawline.runtime.bundle import Bundle, BundleError
from flawline.runtime.detector import Detector
from flawline.runtime.engines import (
    EngineError,
    EngineOptions,
    open_engine,
    open_reference,
    self_test,
)
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime, open_session
from flawline.runtime.frame_image import image_of
from flawline.runtime.verdict import Verdict


def opened(engine: type[OnnxRuntime], bundle: Bundle) -> OnnxRuntime:
    return engine.open(bundle, EngineOptions(precision="fp32"))


# ---------------------------------------------------------------- engines


def test_the_reference_engine_runs_any_graph(bundle: Bundle) -> None:
    assert engines.REFERENCE_ENGINE in engines.ENGINES
    image = bundle.golden().images[:1]
    for graph in (bundle.model(), bundle.model().read_bytes()):
        engine = open_reference(graph, bundle.map_size)
        score, anomaly_map = engine(image)
        assert score[0] == bundle.golden().scores[0]
        assert anomaly_map.shape[1:] == bundle.map_size
        assert engine.precision == "fp32"
        engine.close()


def test_an_engine_that_drifts_is_refused(bundle: Bundle) -> None:
    class Drifting(OnnxRuntime):
        def __call__(self, image: Any) -> Any:
            scores, maps = super().__call__(image)
            return scores + 0.5, maps

    with pytest.raises(
        EngineError, match=r"golden image 0 scores .* off by 0\.5, the tolerance is 0\.147"
    ):
        self_test(opened(Drifting, bundle), bundle)


def test_an_engine_whose_maps_are_not_finite_is_refused(bundle: Bundle) -> None:
    class Broken(OnnxRuntime):
        def __call__(self, image: Any) -> Any:
            scores, maps = super().__call__(image)
            return scores, maps * np.nan

    with pytest.raises(EngineError, match="golden image 0 has a map that is off by nan"):
        self_test(opened(Broken, bundle), bundle)


def test_a_verdict_that_flips_is_refused_within_any_tolerance(tmp_path: Path) -> None:
    class Low(OnnxRuntime):
        def __call__(self, image: Any) -> Any:
            scores, maps = super().__call__(image)
            return scores - 200, maps

    tolerant = write_tiny_bundle(tmp_path / "tolerant", score_tolerance=1e6)
    with pytest.raises(EngineError, match="so its verdict flips"):
        self_test(opened(Low, tolerant), tolerant)


def test_an_unknown_engine_and_a_precision_that_it_does_not_run_are_errors(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"known: tensorrt, .*onnxruntime"):
        open_engine(bundle, "abacus")
    with pytest.raises(EngineError, match=r"onnxruntime does not run int8; it runs fp32:"):
        open_engine(bundle, "onnxruntime", EngineOptions(precision="int8"))
    with pytest.raises(BundleError, match=r"holds no int8 graph; .*--precision int8"):
        bundle.model("int8")
    with pytest.raises(EngineError, match=r"--threads 0 is not at least 1; leave it out"):
        EngineOptions(threads=0)


def test_a_damaged_graph_is_an_error_with_its_remedy(bundle: Bundle) -> None:
    bundle = with_graph(bundle, "fp32", b"rubbish")
    with pytest.raises(EngineError, match=r"cannot load .*model\.onnx .*or build the bundle again"):
        open_engine(bundle, "onnxruntime")
    with pytest.raises(EngineError, match="cannot load this graph"):
        open_session(b"rubbish")


def test_onnxruntime_computes_on_the_cpu_alone(bundle: Bundle) -> None:
    """A provider that is not there would be replaced, with a warning."""
    assert open_session(bundle.model()).get_providers() == ["CPUExecutionProvider"]


def test_a_failure_of_onnxruntime_is_one_line(bundle: Bundle) -> None:
    class Failing:
        def run_with_iobinding(self, binding: object) -> None:
            raise RuntimeError("what happened\nin detail")

    engine = open_engine(bundle, "onnxruntime")
    engine._session = Failing()  # type: ignore[attr-defined]
    message = r"cannot run this graph \(what happened\); build the bundle again$"
    with pytest.raises(EngineError, match=message):
        engine(bundle.golden().images[:1])


def test_a_steady_stream_reuses_the_output_buffers(bundle: Bundle) -> None:
    engine = open_engine(bundle, "onnxruntime")
    image = bundle.golden().images[:1]
    scores, maps = engine(image)
    again = engine(image)
    assert again[0] is scores
    assert again[1] is maps


def test_auto_without_any_engine_lists_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "missing", "install {}".format)
    with pytest.raises(
        EngineError,
        match=r"no engine can be used on this machine; tensorrt: install tensorrt; .*openvino",
    ):
        engines.engines_of_machine()


# ---------------------------------------------------------------- verdicts


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    with Detector(bundle, "onnxruntime") as detector:
        yield detector


def test_verdicts_compare_with_the_threshold(detector: Detector) -> None:
    dark = detector(np.full((30, 30), 99, np.uint8))
    assert not dark.anomalous
    assert dark.score == 99
    bright = detector(np.full((90, 70, 3), 101, np.uint8))
    assert bright.anomalous
    assert bright.score == 101
    assert bright.milliseconds.keys() == {"prepare", "infer"}
    assert bright.anomaly_map is not None
    assert bright.anomaly_map.shape == (64, 64)


def test_a_detector_may_have_a_threshold_of_its_own(bundle: Bundle) -> None:
    with Detector(bundle, "onnxruntime", threshold=10.0) as strict:
        verdict = strict(np.full((30, 30), 99, np.uint8))
    assert verdict.anomalous
    assert verdict.threshold == 10
    assert bundle.calibration.threshold == 100


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_rejects_the_part(detector: Detector, value: float) -> None:
    class NotFinite(OnnxRuntime):
        def __call__(self, image: Any) -> Any:
            _, maps = super().__call__(image)
            return np.array([value], np.float32), maps

    detector.engine = opened(NotFinite, detector.bundle)
    verdict = detector(np.zeros((30, 30), np.uint8))
    assert verdict.anomalous
    assert "rejected" in (verdict.reason or "")


def test_painting_follows_the_map_and_ignores_the_values_of_good_parts(detector: Detector) -> None:
    image = np.full((100, 200, 3), 128, np.uint8)
    anomaly_map = np.full((64, 64), 50, np.float32)
    assert (detector.paint(image, anomaly_map) == image).all()
    anomaly_map[:32] = 500
    painted = detector.paint(image, anomaly_map)
    assert (painted[60:] == 128).all()
    assert (painted[:40] != 128).any(axis=(0, 1)).all()


# ---------------------------------------------------------------- frames of any kind

GREY = 99


def mono16(bit_depth: int) -> np.ndarray:
    """An image whose brightness is GREY of 255, stored with a bit depth."""
    return np.full((30, 40), GREY << (bit_depth - 8), np.uint16)


def judge(detector: Detector, image: Any, **fields: Any) -> Verdict:
    return detector.judge(Frame("test://", 0, image, **fields))


def is_rejected(verdict: Verdict, reason: str) -> bool:
    return (
        verdict.anomalous
        and math.isnan(verdict.score)
        and verdict.anomaly_map is None
        and not verdict.milliseconds
        and reason in (verdict.reason or "")
    )


@pytest.fixture
def detector12(tmp_path: Path) -> Iterator[Detector]:
    """A detector that was trained on images with 12 significant bits."""
    bundle = write_tiny_bundle(tmp_path / "deep", bit_depth=12)
    with Detector(bundle, "onnxruntime") as detector:
        yield detector


def test_a_mono12_frame_is_judged_by_the_bundles_bit_depth(detector12: Detector) -> None:
    assert judge(detector12, mono16(12)).score == GREY
    assert judge(detector12, mono16(12), bit_depth=12).score == GREY


def test_a_frame_of_eight_bits_is_judged_as_it_is(detector: Detector, detector12: Detector) -> None:
    image = np.full((30, 40, 3), GREY, np.uint8)
    assert judge(detector, image).score == GREY
    assert judge(detector12, image).score == GREY


def test_a_declared_bit_depth_is_used_on_a_bundle_of_eight_bits(detector: Detector) -> None:
    assert judge(detector, mono16(12), bit_depth=12).score == GREY
    assert judge(detector, mono16(16), bit_depth=16).score == GREY


def test_a_wrong_or_unknown_bit_depth_is_never_judged_darker(
    detector: Detector, detector12: Detector
) -> None:
    verdict = judge(detector12, mono16(12), bit_depth=16)
    assert is_rejected(verdict, "bit depth of 16, the detector was trained with 12")
    verdict = judge(detector, mono16(12))
    assert is_rejected(verdict, "bit depth is unknown; declare it in the camera's URI")
    verdict = judge(detector12, mono16(16))
    assert is_rejected(verdict, "does not fit in 12 bits")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "the source gave no image"),
        (np.zeros((4, 5), np.float32), "the pixels are float32"),
        (np.zeros((4, 5, 4), np.uint8), "[4, 5, 4]"),
        (np.zeros((0, 5), np.uint8), "empty"),
    ],
)
def test_a_frame_that_cannot_be_judged_rejects_the_part(
    detector: Detector, image: Any, reason: str
) -> None:
    assert is_rejected(judge(detector, image), reason)


def test_an_image_that_opencv_cannot_resize_rejects_the_part(detector: Detector) -> None:
    assert judge(detector, np.zeros((1, 40_000), np.uint8)).reason is None
    crop = replace(
        detector.bundle.manifest,
        geometry=replace(detector.bundle.manifest.geometry, kind="shorter-crop", shorter=64),
    )
    detector.bundle = replace(detector.bundle, manifest=crop)
    verdict = judge(detector, np.zeros((1, 40_000_000), np.uint8))
    assert is_rejected(verdict, "OpenCV")


def test_a_frame_with_a_fault_gives_no_image(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="torn"):
        image_of(Frame("test://", 0, None, fault="torn"), bundle.manifest)


def test_a_threshold_that_is_not_a_number_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="the threshold is not a number"):
        Detector(bundle, "onnxruntime", threshold=float("nan"))
