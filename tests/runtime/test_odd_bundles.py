"""A damaged bundle is refused in one line, unless the damage changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("cryptography", reason="needs the sign extra")

from conftest import SIZE, tiny_model, write_tiny_bundle
from odd_bundles import Kind, OddBundle, Originals, make_bundle, rehash, write_originals
from odd_graphs import external_graph, graph
from odd_npz import ODD_ARCHIVES

from flawline import FlawlineError
from flawline.runtime.audit.bundle_log import is_logged, warn_of_outside_change
from flawline.runtime.audit.check import check_log
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.engines.auto import Machine, select_engine
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime, open_session
from flawline.runtime.manifest import SCHEMA
from flawline.runtime.undo import undo_calibration

OPTIONS = EngineOptions(threads=1)
LONGEST_MESSAGE = 1000
# Of the largest memory of the process, while it reads 2,000 bundles of 50 KB.
MOST_GROWTH_KIB = 300 << 10
PROBES = np.random.default_rng(7).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)


class Case(NamedTuple):
    """A file that was damaged first, whether the bundle had to be signed, and what became of it."""

    file: str
    signed: bool
    result: str


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return write_originals(tmp_path_factory.mktemp("originals"))


class Other(OnnxRuntime):
    """A second engine, so that `auto` reads the recorded choice."""


MACHINE = Machine({"onnxruntime": OnnxRuntime, "openvino": Other}, {})


def outcome(odd: OddBundle) -> str:
    """Say what became of a damaged bundle, and fail if that is wrong."""
    note = str(odd)
    try:
        bundle = read_bundle(odd.path, odd.trusted)
        detector = Detector(bundle, "onnxruntime", OPTIONS)
    except FlawlineError as error:
        assert_one_line(str(error), note)
        result = "refused"
    else:
        with detector:
            result = judged(odd, detector)
    # What a stream and other commands read besides the bundle.
    for work in (
        lambda: warn_of_outside_change(odd.path),
        lambda: is_logged(odd.path),
        lambda: check_log(odd.path / "audit.jsonl"),
        lambda: undo_calibration(odd.path),
    ):
        try:
            work()
        except FlawlineError as error:
            assert_one_line(str(error), note)
    return result


def judged(odd: OddBundle, detector: Detector) -> str:
    """Check a detector that was opened with a damaged bundle; say what differs."""
    note = str(odd)
    bundle = detector.bundle
    try:
        select_engine(bundle, OPTIONS, MACHINE)
    except FlawlineError as error:
        assert_one_line(str(error), note)
    if odd.trusted is not None:
        assert bundle.manifest_sha256 == odd.original.manifest_sha256, note
    if not odd.rehashed or odd.trusted is not None:
        assert not odd.changed, note
    edited = any(it.kind is Kind.EDITOR and it.file == "manifest.json" for it in odd.damages)
    if edited:
        # A value that fits is another bundle, which must work like any.
        for image in PROBES:
            detector(image)
        return "another bundle"
    assert bundle.manifest == odd.original.manifest, note
    for image in PROBES:
        verdict = detector(image)
        expected = image.astype(np.float32).mean(-1)
        assert abs(verdict.score - expected.max()) < 0.01, note
        if odd.original.has_map:
            np.testing.assert_allclose(verdict.anomaly_map, expected, atol=0.01, err_msg=note)
    if bundle.calibration == odd.original.calibration:
        return "unchanged"
    assert any(it.file == "calibration.json" for it in odd.damages), note
    content = (odd.path / "calibration.json").read_bytes()
    assert_valid_calibration(content, detector.threshold, note)
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


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The graphs that ONNX Runtime is given."""
    graphs = []
    real = onnxruntime.InferenceSession

    def open_graph(graph: bytes, *words: Any, **options: Any) -> Any:
        graphs.append(graph)
        return real(graph, *words, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_graph)
    return graphs


def outcomes(
    seeds: range,
    folder: Path,
    originals: Originals,
    loaded: list[bytes],
    capfd: pytest.CaptureFixture[str],
) -> Counter[Case]:
    counts: Counter[Case] = Counter()
    for seed in seeds:
        odd = make_bundle(seed, folder, originals)
        loaded.clear()
        try:
            result = outcome(odd)
        except Exception as error:
            pytest.fail(f"{odd}: {type(error).__name__}: {error}")
        captured = capfd.readouterr()
        assert not captured.out, odd
        assert "Traceback" not in captured.err, (str(odd), captured.err)
        for line in captured.err.splitlines():
            assert line.isprintable(), (str(odd), line)
        for given in loaded:
            # A library need not withstand every file.
            assert hashlib.sha256(given).hexdigest() in hashes_of(odd), odd
        counts[Case(odd.damages[0].file, odd.trusted is not None, result)] += 1
    return counts


def hashes_of(odd: OddBundle) -> list[str]:
    """The hashes in the manifest of a bundle; those of the original if it had to be signed."""
    if odd.trusted is not None:
        return list(odd.original.sha256.values())
    return list(json.loads((odd.path / "manifest.json").read_bytes())["files"].values())


@pytest.mark.usefixtures("fast_disk")
def test_damaged_bundles_are_refused(
    tmp_path: Path,
    originals: Originals,
    loaded: list[bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    counts = outcomes(range(100), tmp_path / "odd", originals, loaded, capfd)
    assert sum(counts.values()) == 100
    # Other encodings of JSON, unused bytes of a graph and most files beside it do not matter.
    refused = sum(count for case, count in counts.items() if case.result == "refused")
    assert refused >= 70, counts
    assert any(case.signed for case in counts)


@pytest.mark.slow
@pytest.mark.usefixtures("fast_disk")
def test_many_damaged_bundles_are_refused(
    tmp_path: Path,
    originals: Originals,
    loaded: list[bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = outcomes(range(100, 2100), tmp_path / "odd", originals, loaded, capfd)
    with capfd.disabled():
        for case, count in sorted(counts.items()):
            signed = "signed" if case.signed else ""
            print(f"{case.file:<28}{signed:<8}{case.result:<26}{count}")
    assert sum(counts.values()) == 2000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < MOST_GROWTH_KIB, f"memory grew by {grown} KiB"


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
