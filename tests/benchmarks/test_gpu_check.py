"""The study of a GPU on a bundle, without torch; times are never asserted."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import write_tiny_bundle
from fakes import FP16, Install, expected_result, random_images
from test_commands import WITHOUT_EXTRAS, run_without_extras

from flawline.benchmarks.studies.gpu_check import calls, device_calls, measure, subject
from flawline.benchmarks.studies.gpu_check.__main__ import main
from flawline.benchmarks.studies.gpu_check.calls import PUBLISHED, Absent, open_engines
from flawline.benchmarks.studies.gpu_check.report import gpu_report
from flawline.extras import install_command
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.engines.tensorrt.engine import TensorRt
from flawline.runtime.golden import Golden

pytest_plugins = ["fakes.fixtures"]

STUDY = "benchmarks.studies.gpu_check"
IMAGES = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 100, np.uint8)])


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BATCHES", (1, 2))
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "WARM_UP", 0)


def golden_of(images: np.ndarray) -> Golden:
    """Images whose score is their mean grey level."""
    maps = images.astype(np.float32).mean(-1)
    return Golden(images, maps.mean((1, 2)), maps)


def means(images: np.ndarray) -> list[np.ndarray]:
    maps = images.astype(np.float32).mean(-1)
    return [maps.mean((1, 2)), maps]


def measured(
    call: Callable[[np.ndarray], Any], seconds: float = 60, spread: float = 1.0
) -> tuple[list[dict[str, Any]], list[Absent]]:
    deadline = time.monotonic() + seconds
    return measure.measure_calls({"a": call}, golden_of(IMAGES), spread, deadline)


# ---------------------------------------------------------------- on a bundle


def test_a_bundle_is_measured_without_torch_and_the_table_says_what_is_absent(
    bundle: Bundle, tmp_path: Path
) -> None:
    code = WITHOUT_EXTRAS.replace("def run(", SHORT + "def run(")
    words = ["--bundle", str(bundle.path), "--out", str(tmp_path / "out")]
    (done,) = run_without_extras([[STUDY, *words]], code)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("out/*/gpu-bundle.json")
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == done.stdout
    rows = [(row["call"], row["batch"]) for row in result["rows"]]
    descriptions = {name for name, _ in rows}
    assert any(re.fullmatch(r"onnxruntime [\d.]+ CPU fp32", name) for name in descriptions)
    assert {batch for _, batch in rows} == {1, 2}
    for row in result["rows"]:
        assert row["drift"] < 1e-4
        assert row["finite"]
        assert row["p50_ms"] > 0
    assert "PyTorch: PyTorch is not installed" in done.stdout
    assert "- openvino int8: the bundle has no int8 graph" in done.stdout
    assert "times published" not in done.stdout
    assert result["machine"]["cpu"]
    assert result["model"] == bundle.short_id


# Shortens the measurement in another process.
SHORT = """
from flawline.benchmarks.studies.gpu_check import measure
measure.BATCHES, measure.SECONDS, measure.WARM_UP = (1, 2), 0.0, 0
"""


def test_a_network_cannot_be_made_without_torch() -> None:
    (done,) = run_without_extras([[STUDY]])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "without --bundle, this study needs torch" in line
    assert line.endswith(install_command("train"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "b", "--backbone", "resnet18"], "unrecognized arguments: --backbone"),
        (["--checkpoint", "c.pt"], "--checkpoint needs the --bundle that was built from it"),
    ],
)
def test_a_network_and_a_bundle_are_not_mixed(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_an_engine_that_fails_the_self_test_is_absent_with_the_reason(bundle: Bundle) -> None:
    # Its golden scores are those of another graph.
    wrong = write_tiny_bundle(bundle.path.parent / "wrong", score_tolerance=1e-9)
    golden = wrong.golden()
    changed = Golden(golden.images, golden.scores + 1.0, golden.maps)
    with ExitStack() as stack:
        passed = open_engines(bundle, ["onnxruntime"], stack)
        failed = open_engines(_with_golden(wrong, changed), ["onnxruntime"], stack)
    assert len(passed.calls) == 1
    assert not failed.calls
    assert failed.absent[0].name == "onnxruntime fp32"
    assert "fails the self-test" in failed.absent[0].reason


def test_a_library_that_cannot_be_loaded_leaves_the_other_engines(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bundle: Bundle, options: object) -> None:
        raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.32' not found")

    class Broken(GraphEngine):
        open = staticmethod(broken)

    kinds = {"toy": Broken, "onnxruntime": OnnxRuntime}
    monkeypatch.setattr(calls, "unusable_here", lambda name: None)
    monkeypatch.setattr(calls, "engine_class", kinds.__getitem__)
    with ExitStack() as stack:
        opened = open_engines(bundle, ["toy", "onnxruntime"], stack)
    assert len(opened.calls) == 1
    assert "GLIBCXX_3.4.32" in dict(opened.absent)["toy fp32"]


def _with_golden(bundle: Bundle, golden: Golden) -> Bundle:
    class Changed(Bundle):
        def golden(self) -> Golden:
            return golden

    return Changed(**{field.name: getattr(bundle, field.name) for field in fields(bundle)})


def test_a_machine_on_which_nothing_runs_says_why(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subject, "ENGINES", {"onnxruntime": ""})
    monkeypatch.setattr(calls, "unusable_here", lambda name: "install it")
    assert main(["--bundle", str(bundle.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing can be measured on this machine; " in line
    assert "onnxruntime: install it" in line


# ---------------------------------------------------------------- engines of a GPU


def test_an_engine_of_a_gpu_runs_with_and_without_its_graph_up_to_its_largest_batch(
    install: Install,
    fp16_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install("10.13")
    monkeypatch.setattr(measure, "BATCHES", (1, 32))
    monkeypatch.setattr(subject, "ENGINES", {"tensorrt": ""})
    words = ["--bundle", str(fp16_bundle.path), "--engine-cache", str(tmp_path / "plans")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    page = capsys.readouterr().out
    (path,) = tmp_path.glob("out/*/gpu-parts.json")
    result = json.loads(path.read_text())
    names = [row["call"] for row in result["rows"]]
    for precision in ("fp16", "fp32"):
        ours = [name for name in names if f" {precision} " in name]
        assert len(ours) == 5, names
        assert ours[1].endswith(", CUDA graph")
        assert ours[2].endswith(", CUDA graph, score only")
        assert ours[3].endswith(", CUDA graph, image and map on the GPU")
        assert ours[4].endswith(", 2 streams, throughput")
    assert {row["batch"] for row in result["rows"]} == {1}
    too_large = [line for line in page.splitlines() if ", batch 32: " in line]
    assert len(too_large) == len(result["rows"])
    for line in too_large:
        assert line.endswith("accepts batches of 1 to 8, not 32; build it with --max-batch 32")
    assert len(list(tmp_path.glob("plans/**/model.plan"))) == 2
    assert not (fp16_bundle.path / "engines").exists()
    # As the driver names the GPU.
    assert result["device"] == "Fake GPU"
    assert path.parent.name == "fake-gpu"


class GraphEngine:
    """An engine that compiles for a GPU, with or without a CUDA graph."""

    compiles: ClassVar[bool] = True
    has_device_memory: ClassVar[bool] = False
    offers_streams: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    description = "toy fp32"

    def __init__(self, graph_enabled: bool) -> None:
        self.graph_enabled = graph_enabled
        self.uses_graph = True
        self.wants_map = True

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return [images.mean((1, 2, 3)), images if self.wants_map else images[:, :0]]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("graph_enabled", [False, True])
def test_every_engine_that_compiles_is_measured_with_its_graph_if_it_has_one(
    graph_enabled: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Toy(GraphEngine):
        @classmethod
        def open(cls, bundle: Bundle, options: object) -> GraphEngine:
            return GraphEngine(graph_enabled)

    monkeypatch.setattr(calls, "ENGINES", {"toy": "", "onnxruntime": ""})
    monkeypatch.setattr(calls, "unusable_here", lambda name: None)
    kinds = {"toy": Toy, "onnxruntime": OnnxRuntime}
    monkeypatch.setattr(calls, "engine_class", kinds.__getitem__)
    monkeypatch.setattr(calls, "self_test", lambda engine, bundle: 0.0)
    assert calls.gpu_engines() == ["toy"]
    with ExitStack() as stack:
        opened = open_engines(bundle, ["toy"], stack)
    expected = ["toy fp32"]
    if graph_enabled:
        expected += ["toy fp32, CUDA graph", "toy fp32, CUDA graph, score only"]
    assert list(opened.calls) == expected
    assert opened.on_gpu
    plain: Any = opened.calls["toy fp32"]
    assert not plain.uses_graph
    if graph_enabled:
        _, no_map = opened.calls[expected[-1]](np.ones((1, 2, 2, 3), np.uint8))
        assert no_map.size == 0


def test_images_on_the_gpu_are_uploaded_once_and_checked(
    install: Install, fp16_bundle: Bundle, driver: Any
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    images = random_images(2, 1)
    call = device_calls.OnDevice(engine)
    call(images)
    before = driver.fake_calls(b"cuMemcpyHtoDAsync_v2")
    for _ in range(3):
        score, no_map = call(images)
        np.testing.assert_allclose(score, expected_result(images)[0], rtol=1e-6)
        assert no_map.size == 0
    assert driver.fake_calls(b"cuMemcpyHtoDAsync_v2") == before
    others = random_images(2, 2)
    np.testing.assert_allclose(call(others)[0], expected_result(others)[0], rtol=1e-6)
    # The map is wanted again by the other rows of this engine.
    assert engine(images)[1].size
    engine.close()


def test_batches_in_flight_give_the_results_of_their_images(
    install: Install, fp16_bundle: Bundle, driver: Any
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, replace(FP16, streams=2))
    call = device_calls.InFlight(engine)
    for seed, count in enumerate((1, 1, 3)):
        images = random_images(count, seed)
        for _ in range(4):
            np.testing.assert_allclose(call(images)[0], expected_result(images)[0], rtol=1e-6)
    # The last call has left one behind.
    with pytest.raises(RuntimeError, match="not taken"):
        engine(images)
    engine.close()


class HostTensors:
    """An engine that takes tensors of torch in host memory, and says that it is a GPU."""

    def __init__(self, error: float) -> None:
        self.error = error
        self.given = False

    def __call__(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        self.given = not isinstance(images, np.ndarray)
        values = np.asarray(images, np.float32).mean(-1)
        scores = values.max((1, 2))
        if self.given and self.error < 0:
            scores = scores + 1.0
        self.values = values
        return scores, values

    def device_map(self) -> np.ndarray:
        return self.values + max(self.error, 0.0)


def test_other_results_of_images_on_the_gpu_are_an_error() -> None:
    torch = pytest.importorskip("torch")
    images = random_images(1, 1)
    exact = HostTensors(0.0)
    device_calls.compare_on_device(exact, images, torch.device("cpu"))
    assert exact.given
    with pytest.raises(EngineError, match=r"maps that torch reads on the GPU, call 1 are off by 5"):
        device_calls.compare_on_device(HostTensors(5.0), images, torch.device("cpu"))
    with pytest.raises(EngineError, match="scores of a tensor on the GPU, call 1 are off by 1"):
        device_calls.compare_on_device(HostTensors(-1.0), images, torch.device("cpu"))


def test_without_a_gpu_the_check_with_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    note = device_calls.check_with_torch(HostTensors(0.0), random_images(1, 1))
    assert note == "not checked with torch, which finds no GPU"
    monkeypatch.setattr(device_calls, "find_spec", lambda name: None)
    note = device_calls.check_with_torch(HostTensors(0.0), random_images(1, 1))
    assert note == "not checked with torch, which is not installed"


# ---------------------------------------------------------------- rows


def test_drift_is_that_of_every_image_at_every_batch_relative_to_the_spread() -> None:
    def call(images: np.ndarray) -> list[np.ndarray]:
        scores, maps = means(images)
        # Wrong for the second image of a batch.
        scores[1:] += 3.0
        return [scores, maps]

    rows, absent = measured(call, spread=2.0)
    assert not absent
    found = [(row["call"], row["batch"], row["drift"], row["finite"]) for row in rows]
    assert found == [("a", 1, 0.0, True), ("a", 2, 1.5, True)]


@pytest.mark.parametrize("output", [0, 1])
def test_values_that_are_not_finite_are_marked(output: int) -> None:
    def call(images: np.ndarray) -> list[np.ndarray]:
        outputs = means(images)
        outputs[output][:] = np.where(outputs[output] > 50, np.nan, outputs[output])
        return outputs

    rows, _ = measured(call)
    assert [row["finite"] for row in rows] == [False, False]
    about = {"method": "m", "backbone": "b", "input": "1x1", "weights": "w", "device": "d"}
    about |= {"machine": {"cpu": "c"}, "other_processes": None}  # type: ignore[dict-item]
    assert gpu_report(about, rows, []).count("| not finite |") == 2


def test_what_does_not_fit_into_the_time_is_named() -> None:
    rows, absent = measured(means, seconds=-1)
    assert rows == []
    assert [name for name, _ in absent] == ["a, batch 1", "a, batch 2"]
    assert "out of time" in absent[0].reason
    rows, absent = measured(means)
    assert [(row["call"], row["batch"]) for row in rows] == [("a", 1), ("a", 2)]
    assert not absent


def test_a_batch_without_enough_memory_leaves_the_other_rows() -> None:
    def call(images: np.ndarray) -> list[np.ndarray]:
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return means(images)

    rows, absent = measured(call)
    assert [row["batch"] for row in rows] == [1]
    ((name, reason),) = absent
    assert name == "a, batch 2"
    assert "too little memory" in reason


def test_an_unknown_error_of_a_call_is_a_bug() -> None:
    def call(images: np.ndarray) -> list[np.ndarray]:
        raise KeyError("x")

    with pytest.raises(KeyError):
        measured(call)


def test_speed_is_relative_to_the_published_pipeline_at_the_same_batch() -> None:
    about = {"method": "m", "backbone": "b", "input": "1x1", "weights": "random", "device": "d"}
    about |= {"machine": {"cpu": "c"}, "other_processes": 0.5}  # type: ignore[dict-item]
    times = {"p95_ms": 1, "p99_ms": 1, "images_per_s": 1, "drift": 0.0, "finite": True}
    rows = [
        {"call": PUBLISHED, "batch": 1, "p50_ms": 6.0, **times},
        {"call": "x", "batch": 1, "p50_ms": 2.0, **times},
        {"call": "x", "batch": 8, "p50_ms": 2.0, **times},
    ]
    page = gpu_report(about, rows, [Absent("y", "because")])
    lines = page.splitlines()
    assert "| x | 1 | 2.0 | 1 | 1 | 1 | 3.00 | 0.0e+00 |" in lines
    assert "| x | 8 | 2.0 | 1 | 1 | 1 | – | 0.0e+00 |" in lines
    assert "- y: because" in lines
    assert "Busy machine: other processes used 50% of the CPU." in page
