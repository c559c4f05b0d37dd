"""A damaged bundle is refused in one line, unless the damage changes nothing."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the train extra")

from conftest import SIZE, tiny_model, write_tiny_bundle
from odd_bundles import OddBundle, Originals, make_bundle, rehash, write_originals
from odd_graphs import external_graph, graph
from odd_npz import ODD_ARCHIVES

from flawline import FlawlineError
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.engines.onnxruntime_cpu import open_session
from flawline.runtime.manifest import SCHEMA

OPTIONS = EngineOptions(threads=1)
LONGEST_MESSAGE = 1000
PROBES = np.random.default_rng(7).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return write_originals(tmp_path_factory.mktemp("originals"))


def outcome(odd: OddBundle) -> str:
    """Say what became of a damaged bundle, and fail if that is wrong."""
    note = f"{odd.file}, {odd.damage}, rehashed {odd.rehashed}"
    try:
        detector = Detector(read_bundle(odd.path), "onnxruntime", OPTIONS)
    except FlawlineError as error:
        assert_one_line(str(error), note)
        return "refused"
    with detector:
        assert detector.bundle.manifest == odd.original.manifest, note
        for image in PROBES:
            verdict = detector(image)
            expected = image.astype(np.float32).mean(-1)
            assert abs(verdict.score - expected.max()) < 0.01, note
            if odd.original.has_map:
                np.testing.assert_allclose(verdict.anomaly_map, expected, atol=0.01, err_msg=note)
    if detector.bundle.calibration == odd.original.calibration:
        return "unchanged"
    assert odd.file == "calibration.json", note
    assert_valid_calibration((odd.path / odd.file).read_bytes(), detector.threshold, note)
    return "another valid calibration"


def assert_one_line(text: str, note: str = "") -> None:
    assert len(text.splitlines()) == 1, (note, text)
    assert text.isprintable(), (note, text)
    assert len(text) < LONGEST_MESSAGE, (note, text)
    _reason, _, remedy = text.partition("; ")
    assert remedy, (note, text)


def assert_valid_calibration(data: bytes, threshold: float, note: str) -> None:
    """A changed digit of calibration.json, which may be edited, leaves a valid one."""
    content = json.loads(data)
    assert content["threshold"] == threshold, note
    assert 0 < content["false_alarm_rate"] < 1, note
    low, high = content["interval"]
    assert 0 <= low <= high <= 1, note
    assert abs(threshold - 50) <= 10_000, note
    assert content["schema"] in (1, SCHEMA), note


def outcomes(seeds: range, folder: Path, originals: Originals) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        odd = make_bundle(seed, folder, originals)
        name = f"{odd.file}{' rehashed' if odd.rehashed else ''}"
        counts[name, outcome(odd)] += 1
    return counts


def test_damaged_bundles_are_refused(tmp_path: Path, originals: Originals) -> None:
    counts = outcomes(range(100), tmp_path / "odd", originals)
    assert sum(counts.values()) == 100
    # Other encodings of a JSON file and unused bytes of a graph change nothing.
    refused = sum(count for (_, result), count in counts.items() if result == "refused")
    assert refused >= 85, counts


@pytest.mark.slow
def test_many_damaged_bundles_are_refused(tmp_path: Path, originals: Originals) -> None:
    counts = outcomes(range(100, 2100), tmp_path / "odd", originals)
    for (name, result), count in sorted(counts.items()):
        print(f"{name:<26}{result:<26}{count}")
    assert sum(counts.values()) == 2000


def test_the_originals_are_opened(originals: Originals) -> None:
    for bundle in originals.bundles:
        with Detector(read_bundle(bundle.path), "onnxruntime", OPTIONS):
            pass


def test_the_graph_that_the_odd_ones_are_made_from_is_opened(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", graph(factor=1.0))
    with Detector(bundle, "onnxruntime", OPTIONS):
        pass


@pytest.mark.parametrize("name", ODD_ARCHIVES)
def test_golden_data_of_another_kind_are_refused_without_their_memory(
    name: str, tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.path / "golden.npz"
    path.write_bytes(ODD_ARCHIVES[name](path.read_bytes()))
    rehash(bundle.path, path.name)
    tracemalloc.start()
    try:
        with pytest.raises((BundleError, EngineError)) as caught:
            Detector(read_bundle(bundle.path), "onnxruntime", OPTIONS)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert_one_line(str(caught.value))


def test_an_odd_graph_is_refused_for_its_reason(tmp_path: Path, originals: Originals) -> None:
    reasons = {
        "outputs exchanged": "inputs and outputs",
        "float input": "inputs and outputs",
        "four colours": "image has the shape",
        "weights in another file": "keeps weights in other files, which have no hash",
        "weights outside": "keeps weights in other files",
        "other values": "fails the self-test",
        "future operators": "cannot load",
    }
    for name, reason in reasons.items():
        bundle = write_tiny_bundle(tmp_path / name)
        bundle.model().write_bytes(originals.graphs[name])
        np.ones(1, np.float32).tofile(bundle.path / "weights.bin")
        rehash(bundle.path, "model.onnx")
        with pytest.raises((BundleError, EngineError), match=reason):
            Detector(read_bundle(bundle.path), "onnxruntime", OPTIONS)


def test_changed_weights_that_would_run_are_refused(tmp_path: Path) -> None:
    """ONNX Runtime loads the changed graph, which scores every part a third of what it should."""
    bundle = write_tiny_bundle(tmp_path / "b", graph(factor=1.0))
    data = bundle.model().read_bytes()
    one, third = np.array([1.0, 1 / 3], "<f4")
    assert data.count(one.tobytes()) == 1
    changed = data.replace(one.tobytes(), third.tobytes())
    bundle.model().write_bytes(changed)
    image = np.full((1, SIZE, SIZE, 3), 90, np.uint8)
    scores, _ = open_session(bundle.model()).run(None, {"image": image})
    assert scores[0] == pytest.approx(30)
    with pytest.raises(BundleError, match=r"model\.onnx is not the file that was built") as caught:
        read_bundle(bundle.path)
    assert_one_line(str(caught.value))


def test_weights_in_a_constant_of_a_branch_are_found(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    from flawline.runtime.graph_signature import read_signature

    tensor = onnx.load_model_from_string(external_graph("w.bin")).graph.initializer[0]
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    value = helper.make_tensor_value_info("c", 1, [1])
    branch = helper.make_graph([constant], "branch", [], [value])
    node = helper.make_node("If", ["yes"], ["c"], then_branch=branch, else_branch=branch)
    model = onnx.load_model_from_string(tiny_model())
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert not read_signature(path.read_bytes()).has_external_data
    model.graph.node.append(node)
    path.write_bytes(model.SerializeToString())
    assert read_signature(path.read_bytes()).has_external_data


def test_the_signature_of_a_graph_is_that_of_onnx(tmp_path: Path) -> None:
    import onnx

    from flawline.runtime.graph_signature import read_signature

    path = tmp_path / "model.onnx"
    path.write_bytes(graph(factor=2.0))
    signature = read_signature(path.read_bytes())
    model = onnx.load(str(path))
    found = [(value.name, value.element_type) for value in signature.inputs + signature.outputs]
    values = (*model.graph.input, *model.graph.output)
    assert found == [(value.name, value.type.tensor_type.elem_type) for value in values]
    assert signature.inputs[0].shape == (None, SIZE, SIZE, 3)
    assert signature.outputs[0].shape == (None,)


@pytest.mark.parametrize(
    "threshold", [1e299, -1e299, 1e30, 10_051.0, -9_951.0, float("nan"), float("inf")]
)
def test_an_implausible_threshold_is_refused(threshold: float, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.path / "calibration.json"
    content: dict[str, Any] = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, "threshold": threshold}))
    with pytest.raises(BundleError, match=r"threshold|not a number") as caught:
        read_bundle(bundle.path)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize("threshold", [10_049.0, -9_949.0, 0.0, 100.5])
def test_a_threshold_far_from_the_good_scores_is_accepted(threshold: float, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.path / "calibration.json"
    content: dict[str, Any] = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, "threshold": threshold}))
    assert read_bundle(bundle.path).calibration.threshold == threshold
