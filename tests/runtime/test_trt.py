"""TensorRT and TensorRT-RTX run plans on a driver that computes on the host."""

from __future__ import annotations

import re
import sys
import threading
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import (
    FP16,
    Install,
    assert_result,
    build_plan,
    engine_name,
    expected_result,
    random_images,
)
from fakes.tensorrt_api import CLASSIC, VERSIONS

from flawline.extras import install_command
from flawline.runtime.available import list_available
from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineError, cuda, open_engine
from flawline.runtime.engines.cuda import CudaError, libcuda
from flawline.runtime.engines.tensorrt.engine import TensorRt, TensorRtRtx

pytest_plugins = ["fakes.fixtures"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_loads_and_passes_the_self_test(
    version: str, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    control = install(version)
    engine = open_engine(fp16_bundle, engine_name(version))
    number = version.removeprefix("rtx")
    assert engine.description == (
        f"{engine_name(version)} {number}.0 Fake GPU fp16 ({libcuda.PROVIDER})"
    )
    for n, seed in ((1, 1), (1, 2), (1, 3), (8, 4), (8, 5), (3, 6)):
        assert_result(engine, n, seed)
    (context,), (built,) = control.contexts, control.builds
    assert context._batch == 3
    assert built["batches"] == [1, 1, 8]
    assert built["cleared"] == ["TF32"]
    engine.close()


@pytest.mark.parametrize("version", CLASSIC)
def test_a_graph_is_captured_after_warming_up_and_again_for_another_batch(
    version: str, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    engine = TensorRt.open(fp16_bundle, FP16)

    seen, counted = [], (b"cuStreamBeginCapture_v2", b"cuGraphLaunch", b"cuGraphExecDestroy")
    for i, n in enumerate((1, 1, 1, 2, 2, 2, 1)):
        assert_result(engine, n, i)
        seen.append(tuple(driver.fake_calls(c) for c in counted))
    assert seen == [(0, 0, 0), (1, 1, 0), (1, 2, 0), (1, 2, 1), (2, 3, 1), (2, 4, 1), (2, 4, 2)]
    engine.close()


@pytest.mark.parametrize(
    "function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_a_model_that_cannot_be_captured_runs_without_a_graph(
    function: str,
    fp16_bundle: Bundle,
    install: Install,
    driver: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install("10.3")
    engine = TensorRt.open(fp16_bundle, FP16)
    assert_result(engine, 1, 0)
    driver.fake_fail(function.encode(), 900)
    for seed in range(3):
        assert_result(engine, 1, seed)
    assert capsys.readouterr().err.count("no CUDA graph") == 1
    assert driver.fake_calls(b"cuGraphLaunch") == 0
    engine.close()


@pytest.mark.parametrize("version", ["8.6", "11.4", "rtx1.7"])
def test_no_frame_allocates_and_closing_frees_everything(
    version: str, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    engine: Any = open_engine(fp16_bundle, engine_name(version))

    def allocations() -> int:
        return sum(driver.fake_calls(c) for c in (b"cuMemAlloc_v2", b"cuMemHostAlloc"))

    before, first = allocations(), engine(random_images(1, 0))
    for seed in range(5):
        again = engine(random_images(1, seed))
        assert again[0] is first[0]
        assert again[1] is first[1]
    engine(random_images(8, 0))
    engine(random_images(8, 0))
    assert allocations() == before == 6
    score, _ = engine(random_images(2, 3))
    engine.close()
    # Pinned memory outlives the engine.
    np.testing.assert_allclose(score, expected_result(random_images(2, 3))[0], rtol=1e-6)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine(random_images(1, 0))
    del engine, first, again, score, _
    assert driver.fake_live() == 0


@pytest.mark.parametrize("version", ["10.3", "rtx1.7"])
def test_the_map_is_copied_only_when_wanted(
    version: str, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    engine: Any = open_engine(fp16_bundle, engine_name(version))
    engine.wants_map = False
    for _ in range(3):
        score, anomaly_map = engine(random_images(2, 5))
        assert anomaly_map.shape == (2, 0, 0)
    before = driver.fake_calls(b"cuMemcpyDtoHAsync_v2")
    engine(random_images(2, 6))
    copies = driver.fake_calls(b"cuMemcpyDtoHAsync_v2") - before
    assert copies == (1 if version == "rtx1.7" else 0), "a graph holds the copy of the score"
    np.testing.assert_allclose(score, expected_result(random_images(2, 6))[0], rtol=1e-6)
    engine.wants_map = True
    assert_result(engine, 2, 7)
    engine.close()


def test_a_graph_without_a_map_gives_an_empty_one(fp16_bundle: Bundle, install: Install) -> None:
    install("10.3", outputs=["score"])
    engine = TensorRt.open(fp16_bundle, FP16)
    score, anomaly_map = engine(random_images(2, 1))
    np.testing.assert_allclose(score, expected_result(random_images(2, 1))[0], rtol=1e-6)
    assert anomaly_map.shape == (2, 0, 0)
    engine.close()


def test_a_graph_of_one_batch_size_has_no_profile(fp16_bundle: Bundle, install: Install) -> None:
    control = install("10.3", batch=1)
    engine = TensorRt.open(fp16_bundle, FP16)
    assert "batches" not in control.builds[0]
    for seed in range(3):
        assert_result(engine, 1, seed)
    assert engine.largest_batch == 1
    with pytest.raises(EngineError, match=r"accepts batches of 1 to 1, not 2"):
        engine(random_images(2, 0))
    engine.close()


def test_a_batch_that_the_plan_does_not_accept_is_refused(
    fp16_bundle: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = install("10.3")
    engine = TensorRt.open(fp16_bundle, FP16)
    assert engine.largest_batch == 8
    assert engine.gains_from_batches
    with pytest.raises(
        EngineError, match=r"accepts batches of 1 to 8, not 9; build it with --max-batch 9$"
    ):
        engine(random_images(9, 0))
    with pytest.raises(
        EngineError, match=r"accepts batches of 1 to 8, not 0; give it a batch of 1 or more$"
    ):
        engine(random_images(0, 0))
    with monkeypatch.context() as refusing:
        refusing.setattr(type(control.contexts[-1]), "set_input_shape", lambda *_: False)
        with pytest.raises(
            EngineError, match=r"refuses a batch of 2; delete .*model\.plan to build it again"
        ):
            engine(random_images(2, 0))
    with pytest.raises(
        ValueError, match=r"is \[1, 64, 64, 1\], and this graph takes \[N, 64, 64, 3\]"
    ):
        engine(random_images(1, 0)[..., :1])
    assert_result(engine, 1, 0)
    with monkeypatch.context() as failing:
        failing.setattr(type(control.contexts[-1]), "execute_async_v3", lambda *_: False)
        with pytest.raises(
            EngineError, match=r"cannot run .*model\.plan; delete it to build it again"
        ):
            engine(random_images(2, 0))
    engine.close()


def test_an_engine_may_be_used_and_closed_from_another_thread(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install("10.3")
    engine, failed = TensorRt.open(fp16_bundle, FP16), []

    def use(engine: TensorRt) -> None:
        try:
            for seed in range(3):
                assert_result(engine, 1, seed)
        except BaseException as error:
            failed.append(error)

    assert_result(engine, 1, 9)
    thread = threading.Thread(target=use, args=(engine,))
    thread.start()
    thread.join()
    assert not failed
    assert_result(engine, 1, 9)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join()
    del engine, thread, closing
    assert driver.fake_live() == 0


def test_a_failing_gpu_is_one_line_with_a_remedy(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install("10.3")
    engine = TensorRt.open(fp16_bundle, FP16)
    driver.fake_fail(b"cuStreamSynchronize", 700)
    with pytest.raises(
        CudaError, match=r"cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS .*; check the GPU"
    ) as caught:
        engine(random_images(1, 0))
    assert caught.value.status == 700
    driver.fake_fail(b"cuCtxSetCurrent", 700)
    engine.close()
    driver.fake_fail(b"cuMemAlloc_v2", 2)
    with pytest.raises(CudaError, match=r"OUT_OF_MEMORY \(out of memory\); .*smaller --max-batch"):
        TensorRt.open(fp16_bundle, FP16)
    assert driver.fake_live() == 3  # the first engine's pinned buffers, which `engine` still holds


def test_too_little_memory_for_a_context_is_an_error(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install("10.3", refuse_context=True)
    with pytest.raises(EngineError, match=r"has no memory to run .*; free GPU memory"):
        TensorRt.open(fp16_bundle, FP16)
    assert driver.fake_live() == 0


def test_a_plan_with_other_tensors_is_refused(fp16_bundle: Bundle, install: Install) -> None:
    install("10.3", outputs=["score", "boxes"])
    with pytest.raises(
        EngineError,
        match="has the tensors image, score, boxes, which are not those of a bundle; delete it",
    ):
        TensorRt.open(fp16_bundle, FP16)


def test_the_driver_is_checked_before_tensorrt_is_used(
    fp16_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Crashing(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name}: TensorRT 8 would have crashed")

    trt = Crashing("tensorrt")
    trt.__spec__ = ModuleSpec("tensorrt", None, origin="crashing")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(libcuda, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    with pytest.raises(
        EngineError,
        match=r"engine tensorrt: there is no NVIDIA driver on this machine .*another engine",
    ):
        open_engine(fp16_bundle, "tensorrt")
    with pytest.raises(EngineError, match="there is no NVIDIA driver on this machine"):
        TensorRt.open(fp16_bundle, FP16)


def test_a_missing_library_is_named_with_what_to_install(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, driver: Any
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "--system-site-packages" in (TensorRt.missing() or "")
    assert TensorRtRtx.missing() == install_command("rtx")
    with pytest.raises(EngineError, match=r"engine tensorrt-rtx: .*pip install .*\[rtx\]"):
        build_plan(bundle, "tensorrt-rtx")
    empty = types.ModuleType("tensorrt")  # as an empty folder of that name imports
    empty.__spec__ = ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", empty)
    assert "JetPack" in (TensorRt.missing() or "")


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("libcublas.so.12", "install it again"),
        ("libnvdla_compiler.so", "on JetPack 6: sudo apt install nvidia-l4t-dla-compiler; .*"),
    ],
)
def test_a_library_that_does_not_load_is_one_line(
    fp16_bundle: Bundle,
    driver: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    remedy: str,
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(
        f"raise ImportError('{file}: not found\\nand more')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(cuda, "PROVIDERS", (cuda.open_libcuda,))
    pattern = rf"cannot be loaded \({re.escape(file)}: not found\); {remedy}$"
    with pytest.raises(EngineError, match=pattern):
        open_engine(fp16_bundle, "tensorrt")


def test_auto_prefers_tensorrt_then_tensorrt_rtx(
    fp16_bundle: Bundle, install: Install, monkeypatch: Any
) -> None:
    install("rtx1.7")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    engine = open_engine(fp16_bundle)
    assert engine.description.startswith("tensorrt-rtx")
    engine.close()
    install("10.3")
    engine = open_engine(fp16_bundle)
    assert engine.description.startswith("tensorrt 10.3")
    engine.close()


def test_the_listing_says_what_was_not_run_on_a_gpu(install: Install) -> None:
    install("10.3")
    lines = {line.split()[0]: line for line in list_available().splitlines()}
    assert "ready (untested on a GPU: " in lines["tensorrt"]
    assert "untested" not in lines["onnxruntime"]
