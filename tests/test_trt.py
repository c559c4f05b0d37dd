"""TensorRT and TensorRT-RTX on a driver that computes on the host, and the real TensorRT-RTX builder where it is."""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import shutil
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes import compile_cuda
from fakes.tensorrt import API, pretend

from runtime import cuda, libcuda
from runtime.bundle import Bundle, BundleError, add_model
from runtime.cuda import CudaError
from runtime.engine import EngineError, EngineOptions, open_engine
from runtime.infer_stream import list_available
from runtime.plan import PLAN, RECORD, BuildOptions
from runtime.trt import KERNELS, TensorRt, TensorRtRtx
from runtime.trt_build import build, parse

VERSIONS = API["versions"]
CLASSIC = [v for v in VERSIONS if not v.startswith("rtx")]
FP16 = EngineOptions(precision="fp16")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def driver(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fresh driver, which runtime.cuda finds in place of libcuda."""
    library = Path(shutil.copy(compiled, tmp_path / "libfakecuda.so"))
    monkeypatch.setattr(libcuda, "LIBRARY", str(library))
    monkeypatch.setattr(cuda, "PROVIDERS", (cuda._libcuda,))
    return ctypes.CDLL(str(library))


Install = Callable[..., Any]


@pytest.fixture
def install(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make `version` the TensorRT that is imported; what it was asked for is in the Behaviour returned."""

    def install(version: str, **changes: Any) -> Any:
        trt = pretend(version, Path(driver._name), **changes)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        return trt.behaviour

    return install


@pytest.fixture
def parts(tmp_path: Path) -> Bundle:
    """A bundle with an FP16 graph and an island."""
    return add_model(write_tiny_bundle(tmp_path / "parts", fp32_islands=("/head",)), "fp16", tiny_model())


def name_of(version: str) -> str:
    return "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"


def expected(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heat = images.astype(np.float32).mean(-1)
    return heat.max((1, 2)), heat


def pictures(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


def assert_right(engine: TensorRt, n: int, seed: int) -> None:
    images = pictures(n, seed)
    score, heat = engine(images)
    np.testing.assert_allclose(score, expected(images)[0], rtol=1e-6)
    np.testing.assert_allclose(heat, expected(images)[1], rtol=1e-6)


def plan_folder(folder: Path) -> Path:
    (record,) = folder.glob(f"*/{RECORD}")
    return record.parent


# ---------------------------------------------------------------- running


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_loads_and_passes_the_self_test(
    version: str, parts: Bundle, install: Install, driver: Any
) -> None:
    behaviour = install(version)
    engine = open_engine(parts, name_of(version))
    assert engine.description == f"{name_of(version)} {version.removeprefix('rtx')}.0 Fake GPU fp16"
    for n, seed in ((1, 1), (1, 2), (1, 3), (8, 4), (8, 5), (3, 6)):
        assert_right(engine, n, seed)  # type: ignore[arg-type]
    (built,) = behaviour.builds
    assert built["batches"] == [1, 1, 8]
    assert built["cleared"] == ["TF32"]
    engine.close()


@pytest.mark.parametrize("version", CLASSIC)
def test_a_graph_is_recorded_after_warming_up_and_anew_for_another_batch(
    version: str, parts: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    engine = TensorRt.open(parts, FP16)

    seen, counted = [], (b"cuStreamBeginCapture_v2", b"cuGraphLaunch", b"cuGraphExecDestroy")
    for i, n in enumerate((1, 1, 1, 2, 2, 2, 1)):
        assert_right(engine, n, i)
        seen.append(tuple(driver.fake_calls(c) for c in counted))
    assert seen == [(0, 0, 0), (1, 1, 0), (1, 2, 0), (1, 2, 1), (2, 3, 1), (2, 4, 1), (2, 4, 2)]
    engine.close()


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_a_model_that_cannot_be_recorded_runs_without_a_graph(
    function: str, parts: Bundle, install: Install, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3")
    engine = TensorRt.open(parts, FP16)
    assert_right(engine, 1, 0)
    driver.fake_fail(function.encode(), 900)
    for seed in range(3):
        assert_right(engine, 1, seed)
    assert capsys.readouterr().err.count("no CUDA graph") == 1
    assert driver.fake_calls(b"cuGraphLaunch") == 0
    engine.close()


@pytest.mark.parametrize("version", ["8.6", "11.4", "rtx1.7"])
def test_no_frame_allocates_and_closing_gives_everything_back(
    version: str, parts: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    engine: Any = open_engine(parts, name_of(version))

    def allocations() -> int:
        return sum(driver.fake_calls(c) for c in (b"cuMemAlloc_v2", b"cuMemHostAlloc"))

    before, first = allocations(), engine(pictures(1, 0))
    for seed in range(5):
        again = engine(pictures(1, seed))
        assert again[0] is first[0]
        assert again[1] is first[1]
    engine(pictures(8, 0))
    engine(pictures(8, 0))
    assert allocations() == before == 6
    score, _ = engine(pictures(2, 3))
    engine.close()
    np.testing.assert_allclose(score, expected(pictures(2, 3))[0], rtol=1e-6)  # pinned memory outlives the engine
    del engine, first, again, score, _
    assert driver.fake_live_allocations() == 0


@pytest.mark.parametrize("version", ["10.3", "rtx1.7"])
def test_the_map_is_copied_only_when_wanted(version: str, parts: Bundle, install: Install, driver: Any) -> None:
    install(version)
    engine: Any = open_engine(parts, name_of(version))
    engine.wants_map = False
    for _ in range(3):
        score, heat = engine(pictures(2, 5))
        assert heat.shape == (2, 0, 0)
    before = driver.fake_calls(b"cuMemcpyDtoHAsync_v2")
    engine(pictures(2, 6))
    copies = driver.fake_calls(b"cuMemcpyDtoHAsync_v2") - before
    assert copies == (1 if version == "rtx1.7" else 0), "a graph holds the copy of the score"
    np.testing.assert_allclose(score, expected(pictures(2, 6))[0], rtol=1e-6)
    engine.wants_map = True
    assert_right(engine, 2, 7)
    engine.close()


def test_a_graph_without_a_map_gives_an_empty_one(parts: Bundle, install: Install) -> None:
    install("10.3", outputs=["score"])
    engine = TensorRt.open(parts, FP16)
    score, heat = engine(pictures(2, 1))
    np.testing.assert_allclose(score, expected(pictures(2, 1))[0], rtol=1e-6)
    assert heat.shape == (2, 0, 0)
    engine.close()


def test_what_is_no_batch_of_this_plan_is_refused(parts: Bundle, install: Install) -> None:
    install("10.3")
    engine = TensorRt.open(parts, FP16)
    with pytest.raises(EngineError, match=r"takes batches of 1 to 8, not 9; build it with --max-batch 9$"):
        engine(pictures(9, 0))
    with pytest.raises(EngineError, match=r"takes batches of 1 to 8, not 0$"):
        engine(pictures(0, 0))
    with pytest.raises(ValueError, match=r"\(1, 64, 64, 1\) is not \(1, 64, 64, 3\)"):
        engine(pictures(1, 0)[..., :1])
    assert_right(engine, 1, 0)
    engine.close()


def test_an_engine_may_be_used_from_another_thread(parts: Bundle, install: Install) -> None:
    install("10.3")
    engine, failed = TensorRt.open(parts, FP16), []

    def use() -> None:
        try:
            for seed in range(3):
                assert_right(engine, 1, seed)
        except BaseException as error:
            failed.append(error)

    assert_right(engine, 1, 9)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert not failed
    assert_right(engine, 1, 9)
    engine.close()


def test_a_failing_gpu_is_one_line_with_what_to_do(parts: Bundle, install: Install, driver: Any) -> None:
    install("10.3")
    engine = TensorRt.open(parts, FP16)
    driver.fake_fail(b"cuStreamSynchronize", 700)
    with pytest.raises(CudaError, match=r"cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS .*; check the GPU") as caught:
        engine(pictures(1, 0))
    assert caught.value.status == 700
    driver.fake_fail(b"cuCtxSetCurrent", 700)
    engine.close()
    driver.fake_fail(b"cuMemAlloc_v2", 2)
    with pytest.raises(CudaError, match=r"OUT_OF_MEMORY \(out of memory\); .*smaller --max-batch"):
        TensorRt.open(parts, FP16)
    assert driver.fake_live_allocations() == 3  # the first engine's pinned buffers, which `engine` still holds


def test_no_room_for_a_context_is_told(parts: Bundle, install: Install, driver: Any) -> None:
    install("10.3", refuse_context=True)
    with pytest.raises(EngineError, match=r"no room to run .*; free GPU memory"):
        TensorRt.open(parts, FP16)
    assert driver.fake_live_allocations() == 0


def test_a_plan_of_something_else_is_refused(parts: Bundle, install: Install) -> None:
    install("10.3", outputs=["score", "boxes"])
    with pytest.raises(EngineError, match="takes or gives image, score, boxes, which is no bundle's graph; delete it"):
        TensorRt.open(parts, FP16)


def test_the_driver_is_looked_for_before_tensorrt_is_touched(
    parts: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Crashing(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name}: TensorRT 8 would have crashed")

    trt = Crashing("tensorrt")
    trt.__spec__ = ModuleSpec("tensorrt", None, origin="crashing")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(libcuda, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(EngineError, match=r"engine tensorrt: there is no NVIDIA driver here .*--engine onnxruntime"):
        open_engine(parts, "tensorrt")
    with pytest.raises(EngineError, match="there is no NVIDIA driver here"):
        TensorRt.open(parts, FP16)


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, driver: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "--system-site-packages" in (TensorRt.missing() or "")
    assert TensorRtRtx.missing() == "pip install 'flawline[rtx]'"
    empty = types.ModuleType("tensorrt")  # what an empty folder of that name imports as
    empty.__spec__ = ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", empty)
    assert "JetPack" in (TensorRt.missing() or "")


def test_auto_prefers_tensorrt_then_tensorrt_rtx(parts: Bundle, install: Install, monkeypatch: Any) -> None:
    install("rtx1.7")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    engine = open_engine(parts)
    assert engine.description.startswith("tensorrt-rtx")
    engine.close()
    install("10.3")
    engine = open_engine(parts)
    assert engine.description.startswith("tensorrt 10.3")
    engine.close()


def test_the_listing_says_what_no_gpu_has_run(install: Install) -> None:
    install("10.3")
    lines = {line.split()[0]: line for line in list_available().splitlines()}
    assert "ready (untested on a GPU: " in lines["tensorrt"]
    assert "untested" not in lines["onnxruntime"]


# ---------------------------------------------------------------- building


@pytest.mark.parametrize("version", CLASSIC)
def test_types_come_from_the_graph_where_networks_are_typed_and_from_flags_before(
    version: str, parts: Bundle, install: Install
) -> None:
    behaviour = install(version)
    build(parts, "tensorrt")
    (built,) = behaviour.builds
    if version.startswith("8"):
        assert built["onnx"] == "model.onnx"
        assert built["typing"] == ["EXPLICIT_BATCH"]
        assert sorted(built["flags"]) == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
        assert built["held"] == {"/head/Pow": "FLOAT"}
    else:
        assert built["onnx"] == "model.fp16.onnx"
        assert "STRONGLY_TYPED" in built["typing"]
        assert (built["flags"], built["held"]) == ([], {})


def test_fp32_is_fp32_and_int8_may_use_fp16(parts: Bundle, install: Install) -> None:
    behaviour = install("8.6")
    build(parts, "tensorrt", "fp32")
    build(add_model(parts, "int8", tiny_model()), "tensorrt", "int8")
    fp32, int8 = behaviour.builds
    assert (fp32["onnx"], fp32["flags"], fp32["held"]) == ("model.onnx", ["OBEY_PRECISION_CONSTRAINTS"], {})
    assert int8["onnx"] == "model.int8.onnx"
    assert sorted(int8["flags"]) == ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
    assert int8["held"] == {"/head/Pow": "FLOAT"}


def test_an_island_that_is_nowhere_is_refused(tmp_path: Path, install: Install) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", fp32_islands=("/head/Pow", "/he", "/body"))
    behaviour = install("8.6")
    with pytest.raises(EngineError, match="FP32 islands /he name no layer"):
        build(bundle, "tensorrt")
    behaviour.layers.append(("/he", "FLOAT"))
    build(bundle, "tensorrt")
    assert behaviour.builds[0]["held"] == {"/body/Conv": "FLOAT", "/head/Pow": "FLOAT", "/he": "FLOAT"}


def test_a_bundle_without_the_precision_says_how_to_add_it(bundle: Bundle, install: Install) -> None:
    install("10.3")
    with pytest.raises(BundleError, match="holds no fp16 graph; add it"):
        open_engine(bundle, "tensorrt")


def test_what_the_builder_is_asked_for(parts: Bundle, install: Install) -> None:
    behaviour = install("10.3")
    build(parts, "tensorrt", options=BuildOptions(opt_batch=2, max_batch=4, level=5, workspace_mib=512))
    (built,) = behaviour.builds
    assert built["batches"] == [1, 2, 4]
    assert built["builder_optimization_level"] == 5
    assert built["pools"] == {"WORKSPACE": 512 << 20}
    install("8.5")
    with pytest.raises(EngineError, match=r"TensorRT 8\.5\.0 has no optimisation levels; leave --builder-level out"):
        build(parts, "tensorrt", options=BuildOptions(level=5))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"opt_batch": 9}, "--opt-batch 9 is not between 1 and --max-batch 8"),
        ({"level": 6}, "--builder-level 6"),
        ({"workspace_mib": 0}, "--workspace-mib 0"),
        ({"dla": 0}, "add --max-batch 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(asked: dict[str, int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        BuildOptions(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_a_dla_is_used_where_there_is_one(version: str, parts: Bundle, install: Install) -> None:
    asked = BuildOptions(dla=1, max_batch=1)
    behaviour = install(version, dla_cores=1)
    with pytest.raises(EngineError, match="finds 1 DLA cores here; leave --dla out"):
        build(parts, "tensorrt", options=asked)
    behaviour.dla_cores = 2
    build(parts, "tensorrt", options=asked)
    (built,) = behaviour.builds
    assert (built["default_device_type"], built["DLA_core"], built["batches"]) == ("DLA", 1, [1, 1, 1])
    assert "GPU_FALLBACK" in built["flags"]
    assert ("FP16" in built["flags"]) == (version == "10.3")
    engine = TensorRt.open(parts, FP16)
    assert behaviour.contexts[-1]._engine._dla == 1
    assert len(behaviour.builds) == 1
    engine.close()


def test_a_graph_or_a_plan_that_the_builder_refuses_is_one_line(parts: Bundle, install: Install) -> None:
    install("10.3", refuse_build=True)
    with pytest.raises(EngineError, match=r"cannot build .*model.fp16.onnx \(no tactic for /body/Conv\); free GPU mem"):
        build(parts, "tensorrt")
    assert not list(parts.path.glob("engines/*/*"))
    with pytest.raises(EngineError, match=r"does not take .* \(no importer for Rubbish\); build the bundle again"):
        build(add_model(parts, "fp16", b"rubbish"), "tensorrt")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_ctrl_c_ends_the_build(
    parts: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.3")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    build(parts, "tensorrt")
    assert "tensorrt: Building 50 %" in terminal.getvalue()

    def interrupt(text: str) -> int:
        if "50 %" in text:
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(terminal, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(parts, "tensorrt", options=BuildOptions(max_batch=2))


# ---------------------------------------------------------------- plans that are kept


def opened(bundle: Bundle, version: str, options: EngineOptions = FP16) -> None:
    engine = open_engine(bundle, name_of(version), options)
    assert_right(engine, 1, 0)  # type: ignore[arg-type]
    engine.close()


@pytest.mark.parametrize("version", ["8.6", "10.3", "rtx1.7"])
def test_a_plan_is_built_once(
    version: str, parts: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install(version)
    opened(parts, version)
    told = capsys.readouterr().err
    assert "building the fp16 plan, as there is none yet" in told
    opened(parts, version)
    assert len(behaviour.builds) == 1
    assert capsys.readouterr().err == ""
    assert list(parts.path.rglob("*.tmp")) == []


def change_record(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_bytes())
    (folder / RECORD).write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / PLAN).write_bytes(b"PLA"), r"is damaged: its sha256 is not that of engine\.json"),
        (lambda folder: (folder / PLAN).unlink(), "cannot be read"),
        (lambda folder: (folder / RECORD).write_text("{"), "cannot be read"),
        (lambda folder: (folder / RECORD).write_text("[]"), "cannot be read"),
        (lambda folder: change_record(folder, schema=2), "has schema 2, this version reads 1"),
        (lambda folder: change_record(folder, options={"max_batch": 0}), "cannot be read"),
    ],
)
def test_a_plan_that_is_not_whole_is_built_again(
    spoil: Callable[[Path], Any], why: str, parts: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("10.3")
    opened(parts, "10.3")
    folder = plan_folder(parts.path / "engines")
    spoil(folder)
    capsys.readouterr()
    opened(parts, "10.3")
    assert f"as that in {folder} {why}".replace("\\", "") in capsys.readouterr().err
    assert len(behaviour.builds) == 2
    opened(parts, "10.3")
    assert len(behaviour.builds) == 2


def test_another_version_or_model_builds_again_with_what_was_asked_for(
    parts: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3")
    build(parts, "tensorrt", options=BuildOptions(max_batch=16))
    behaviour = install("10.13")
    opened(parts, "10.13")
    assert "was built by version 10.3.0, here is 10.13.0" in capsys.readouterr().err
    assert behaviour.builds[-1]["batches"] == [1, 1, 16]
    opened(add_model(parts, "fp16", tiny_model() + b"\0"), "10.13")
    assert "belongs to another model: the bundle was built again" in capsys.readouterr().err
    assert len(behaviour.builds) == 2


def test_other_islands_are_another_model_where_they_decide_the_types(tmp_path: Path, install: Install) -> None:
    behaviour = install("8.6")
    opened(write_tiny_bundle(tmp_path / "b", fp32_islands=("/head",)), "8.6")
    changed = write_tiny_bundle(tmp_path / "other", fp32_islands=("/body",))
    shutil.copytree(tmp_path / "b" / "engines", changed.path / "engines")
    opened(changed, "8.6")
    assert [b["held"] for b in behaviour.builds] == [{"/head/Pow": "FLOAT"}, {"/body/Conv": "FLOAT"}]


def test_a_plan_of_another_gpu_is_left_alone(
    parts: Bundle, install: Install, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("10.3")
    opened(parts, "10.3")
    driver.fake_device(b"Other GPU (rev. 2)", 8, 9)
    capsys.readouterr()
    opened(parts, "10.3")
    assert "is for Fake GPU 8.6, here is Other GPU (rev. 2) 8.9" in capsys.readouterr().err
    assert sorted(p.name for p in (parts.path / "engines").iterdir()) == [
        "tensorrt-fp16-fake-gpu-sm86",
        "tensorrt-fp16-other-gpu-rev-2-sm89",
    ]
    driver.fake_device(b"Fake GPU", 8, 6)
    opened(parts, "10.3")
    assert len(behaviour.builds) == 2


def test_other_options_build_again_and_opening_takes_what_is_there(
    parts: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("10.3")
    asked = BuildOptions(max_batch=2)
    assert build(parts, "tensorrt", options=asked) == build(parts, "tensorrt", options=asked)
    assert len(behaviour.builds) == 1
    capsys.readouterr()
    build(parts, "tensorrt", options=replace(asked, level=4))
    assert "was built with other options (level None, asked for 4)" in capsys.readouterr().err
    opened(parts, "10.3")
    assert len(behaviour.builds) == 2


def test_a_plan_that_does_not_load_is_built_again_once(
    parts: Bundle, install: Install, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, why in (("10.3", "Version tag does not match"), ("rtx1.7", "MALFORMED_ENGINE, VERSION_MISMATCH")):
        behaviour = install(version)
        plan = build(parts, name_of(version))
        plan.write_bytes(b"NOPE")
        change_record(plan.parent, plan=hashlib.sha256(b"NOPE").hexdigest())
        capsys.readouterr()
        opened(parts, version)
        assert f"as that in {plan.parent} does not load ({why})" in capsys.readouterr().err
        assert len(behaviour.builds) == 2
        behaviour.refuse_plans = True
        with pytest.raises(EngineError, match=r"does not load .*model\.plan .*; choose another --engine"):
            open_engine(parts, name_of(version))
        assert len(behaviour.builds) == 3
    assert driver.fake_live_allocations() == 0


def test_a_bundle_that_cannot_be_written_wants_an_engine_cache(parts: Bundle, tmp_path: Path, install: Install) -> None:
    behaviour = install("10.3")
    (parts.path / "engines").write_text("in the way")
    with pytest.raises(EngineError, match=r"plans cannot be kept in .*; choose --engine-cache DIR, or free the disk"):
        opened(parts, "10.3")
    assert behaviour.builds == [], "minutes of building would be lost"
    cached = EngineOptions(precision="fp16", cache=tmp_path / "cache")
    other = add_model(write_tiny_bundle(tmp_path / "b" / "parts", fp32_islands=()), "fp16", tiny_model())
    for bundle in (parts, other, parts, other):
        opened(bundle, "10.3", cached)
    assert len(behaviour.builds) == 2
    assert len(list((tmp_path / "cache").glob(f"parts-*/*/{PLAN}"))) == 2


def test_a_full_disk_is_told(parts: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    install("10.3")
    monkeypatch.setattr("runtime.plan.write_atomically", full)
    with pytest.raises(EngineError, match=r"No space left on device\); .*free the disk"):
        build(parts, "tensorrt")


def test_timings_are_kept_and_a_foreign_one_is_begun_anew(
    parts: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("10.3")
    build(parts, "tensorrt", options=BuildOptions(max_batch=1))
    (timings,) = parts.path.glob("engines/*/timings-10.3.0.bin")
    build(parts, "tensorrt", options=BuildOptions(max_batch=2))
    timings.write_bytes(b"of another GPU")
    build(parts, "tensorrt", options=BuildOptions(max_batch=3))
    assert [b["timings"] for b in behaviour.builds] == [b"", b"TIMINGS", b""]

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.trt_build.write_atomically", full)
    build(parts, "tensorrt", options=BuildOptions(max_batch=4))
    assert "timings are not kept" in capsys.readouterr().err


# ---------------------------------------------------------------- TensorRT-RTX


def test_rtx_records_by_itself_and_keeps_its_kernels(
    parts: Bundle, install: Install, driver: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("rtx1.7")
    opened(parts, "rtx1.7")
    assert behaviour.contexts[-1]._config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert driver.fake_calls(b"cuStreamBeginCapture_v2") == 0
    kernels = plan_folder(parts.path / "engines") / KERNELS
    assert kernels.read_bytes() == b"KERNELS"
    opened(parts, "rtx1.7")
    assert behaviour.contexts[-1]._config._kernels._loaded == b"KERNELS"
    kernels.write_bytes(b"of another driver")

    def full(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("runtime.trt.write_atomically", full)
    opened(parts, "rtx1.7")
    assert "kernels are not kept" in capsys.readouterr().err


def test_rtx_builds_anywhere_for_the_machines_that_are_named(
    parts: Bundle, install: Install, driver: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = install("rtx1.7")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(libcuda, "LIBRARY", "/nowhere/libcuda.so.1")
        plan = build(parts, "tensorrt-rtx", options=BuildOptions(capabilities=(120, 86, 89)))
        assert TensorRtRtx.missing() == cuda.driver_missing() is not None
    assert plan.parent.name == "tensorrt-rtx-fp16-sm86-89-120"
    assert behaviour.builds[0]["capabilities"] == ["SM86", "SM89", "SM120"]
    driver.fake_device(b"NVIDIA RTX 4000", 8, 9)
    opened(parts, "rtx1.7")
    assert len(behaviour.builds) == 1
    driver.fake_device(b"NVIDIA A100", 8, 0)
    capsys.readouterr()
    opened(parts, "rtx1.7")
    assert "is for compute capability 8.6, 8.9, 12.0, here is compute capability 8.0" in capsys.readouterr().err
    assert behaviour.builds[1]["capabilities"] == ["SM80", "SM86", "SM89", "SM120", "SM121"]


def test_rtx_builds_for_turing_alone_and_refuses_what_it_does_not_know(
    parts: Bundle, install: Install, driver: Any
) -> None:
    behaviour = install("rtx1.7")
    driver.fake_device(b"NVIDIA T4", 7, 5)
    opened(parts, "rtx1.7")
    assert behaviour.builds[0]["capabilities"] == ["SM75"]
    driver.fake_device(b"NVIDIA H100", 9, 0)
    with pytest.raises(EngineError, match=r"compute capability 90, only 75, 80, .*; choose another --engine"):
        open_engine(parts, "tensorrt-rtx")
    with pytest.raises(EngineError, match="does not know compute capability 87"):
        build(parts, "tensorrt-rtx", options=BuildOptions(capabilities=(86, 87)))
    install("10.3")
    with pytest.raises(EngineError, match="builds for this machine's GPU only; leave --sm out"):
        build(parts, "tensorrt", options=BuildOptions(capabilities=(86,)))


def typed_model() -> bytes:
    """Convolution in FP16, squares and their sum in FP32: what an exported graph with an island looks like."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], name="/input/Cast", to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["half"], ["planes"], name="/input/Transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["features"], name="/body/Conv", pads=[1] * 4),
        helper.make_node("Cast", ["features"], ["wide"], name="/head/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "wide"], ["squares"], name="/head/Mul"),
        helper.make_node("ReduceSum", ["squares", "channels"], ["map"], name="/head/ReduceSum", keepdims=0),
        helper.make_node("ReduceMax", ["map"], ["score"], name="/head/ReduceMax", axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "typed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 64, 64, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 64, 64]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1], np.int64), "channels")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    return serialized


def test_nvidias_builder_takes_the_graph_with_its_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (pip install 'flawline[rtx]')")
    bundle = add_model(write_tiny_bundle(tmp_path / "b"), "fp16", typed_model())
    builder, network, parser = parse(trt, bundle.model("fp16"), typed=True)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = {layer.name: layer.get_output(0).dtype.name for layer in layers}
    assert types["/body/Conv"] == "HALF"
    assert {types[f"/head/{n}"] for n in ("Mul", "ReduceSum", "ReduceMax")} == {"FLOAT"}
    del layers, network, parser, builder

    options = BuildOptions(capabilities=(86, 89, 120), max_batch=4, level=3)
    plan = build(bundle, "tensorrt-rtx", "fp16", options)
    record = json.loads((plan.parent / RECORD).read_bytes())
    assert record["identity"]["version"] == trt.__version__
    assert record["identity"]["capabilities"] == [86, 89, 120]
    assert plan.stat().st_size > 10_000
    built = plan.read_bytes()
    plan.unlink()
    assert build(bundle, "tensorrt-rtx", "fp16", options).read_bytes() == built
    told = capsys.readouterr().err.splitlines()
    assert [("building the fp16 plan" in line) or ("built in" in line) for line in told] == [True] * 4
    with pytest.raises(EngineError, match=r"TensorRT 1\..* does not take .*model\.int8\.onnx \(.*\); build the bundle"):
        build(add_model(bundle, "int8", b"rubbish"), "tensorrt-rtx", "int8")
