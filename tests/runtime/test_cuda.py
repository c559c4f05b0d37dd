"""The driver calls through every provider, on a driver that computes on the host."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import compile_cuda
from fakes.pycuda import fake_pycuda

from flawline.runtime.engines import EngineError, cuda
from flawline.runtime.engines.cuda import Cuda, CudaError, driver_missing, libcuda, open_cuda
from flawline.runtime.engines.cuda import driver as driver_provider

pytest_plugins = ["fakes.fixtures"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["open_libcuda", "open_pycuda"])
def opened(
    request: pytest.FixtureRequest, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cuda]:
    for name, module in fake_pycuda(driver._name).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cuda, "PROVIDERS", (getattr(cuda, request.param),))
    opened = open_cuda()
    yield opened
    opened.close()


def test_the_device_is_described(opened: Cuda) -> None:
    assert opened.device == "Fake GPU"
    assert opened.capability == (8, 6)
    assert opened.stream
    assert opened.provider


def test_copies_happen_when_the_stream_is_synchronised(opened: Cuda) -> None:
    source, target, address = opened.pinned(8), opened.pinned(8), opened.allocate(8)
    source[:] = range(8)
    target[:] = 0
    opened.copy_in(address, source)
    opened.copy_out(target, address)
    assert not target.any()
    opened.synchronize()
    assert target.tolist() == list(range(8))


def test_device_memory_goes_with_close_and_pinned_with_its_last_view(
    opened: Cuda, driver: Any
) -> None:
    pinned = opened.pinned(16)
    view = pinned[:4].view(np.float32)
    view[:] = 3
    opened.allocate(100)
    assert driver.fake_live() == 3, "and the stream"
    opened.close()
    assert driver.fake_live() == 1
    del pinned
    assert view.tolist() == [3]
    del view
    gc.collect()
    assert driver.fake_live() == 0


def test_too_little_memory_is_an_error_with_a_remedy(opened: Cuda, driver: Any) -> None:
    driver.fake_fail(b"cuMemAlloc_v2", 2)
    with pytest.raises(
        CudaError, match=r"cuMemAlloc.*out of memory.*; close other programs"
    ) as caught:
        opened.allocate(8)
    assert caught.value.status == 2
    assert isinstance(caught.value, EngineError)
    assert opened.allocate(8)


def test_shared_memory_goes_with_its_last_reference(opened: Cuda, driver: Any) -> None:
    memory = opened.shared_memory(100)
    assert memory.device == opened.number == 0
    assert opened.device_of(memory.address + 99) == 0
    opened.close()
    assert driver.fake_live() == 1
    del memory
    gc.collect()
    assert driver.fake_live() == 0


def test_an_address_tells_its_gpu_unless_it_is_not_cudas(opened: Cuda, driver: Any) -> None:
    address = opened.allocate(100)
    assert opened.device_of(address) == 0
    driver.fake_place(ctypes.c_uint64(address), 3)
    assert opened.device_of(address) == 3
    assert opened.device_of(np.zeros(4).ctypes.data) is None


def test_the_work_of_another_stream_is_waited_for(opened: Cuda) -> None:
    other = cuda.open_libcuda()
    source, target, address = other.pinned(8), opened.pinned(8), opened.allocate(8)
    source[:] = 7
    other.copy_in(address, source)
    opened.wait_for(other.stream)
    # The default streams of a process have numbers in place of addresses.
    for default in (1, 2):
        opened.wait_for(default)
    opened.copy_out(target, address)
    opened.synchronize()
    assert target.tolist() == [7] * 8
    other.close()


def test_a_graph_repeats_the_captured_work(driver: Any) -> None:
    opened = cuda.open_libcuda()
    source, target, address = opened.pinned(4), opened.pinned(4), opened.allocate(4)

    def enqueue(source: Any = source, target: Any = target) -> None:
        opened.copy_in(address, source)
        opened.copy_out(target, address)

    graph = opened.capture(enqueue)
    opened.synchronize()
    assert not target.any()
    for value in (1, 2):
        source[:] = value
        opened.launch(graph)
        opened.synchronize()
        assert target.tolist() == [value] * 4
    opened.drop(graph)
    opened.close()
    del source, target, enqueue
    assert driver.fake_live() == 0


def test_the_stream_is_usable_after_a_failed_capture(driver: Any) -> None:
    opened = cuda.open_libcuda()
    target, address = opened.pinned(4), opened.allocate(4)
    with pytest.raises(CudaError, match=r"cuMemcpyHtoDAsync: .*made-up"):
        # Pageable memory cannot be part of a graph.
        opened.capture(lambda: opened.copy_in(address, np.ones(4, np.uint8)))
    with pytest.raises(ZeroDivisionError):
        opened.capture(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    opened.copy_in(address, np.full(4, 7, np.uint8))
    opened.copy_out(target, address)
    opened.synchronize()
    assert target.tolist() == [7] * 4
    opened.close()
    del target
    assert driver.fake_live() == 0


def test_closing_and_freeing_the_last_view_are_possible_in_other_threads(driver: Any) -> None:
    opened = cuda.open_libcuda()
    opened.allocate(16)
    views = [opened.pinned(16)]
    for last in (opened.close, views.clear):
        thread = threading.Thread(target=last)
        thread.start()
        thread.join()
    assert driver.fake_live() == 0


def test_closing_after_a_failure_and_twice_is_quiet(driver: Any) -> None:
    opened = cuda.open_libcuda()
    opened.allocate(4)
    driver.fake_fail(b"cuMemFree_v2", 700)
    opened.close()
    opened.close()
    assert driver.fake_calls(b"cuStreamDestroy_v2") == 1


# ---------------------------------------------------------------- selection of a provider


def test_a_missing_driver_or_gpu_is_reported_with_a_remedy(
    driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert driver_missing() is None
    driver.fake_fail(b"cuInit", 100)
    assert "nvidia-smi" in (driver_missing() or "")
    driver.fake_fail(b"cuInit", 35)
    with pytest.raises(EngineError, match=r"cuInit.*; update the NVIDIA driver"):
        open_cuda()
    monkeypatch.setattr(libcuda, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    assert "choose another engine" in (driver_missing() or "")


def test_the_first_available_provider_is_used(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # They may have been imported before.
    for absent in ("cuda", "cuda.bindings", "cuda.bindings.driver", "pycuda"):
        monkeypatch.setitem(sys.modules, absent, None)
    opened = open_cuda()
    assert opened.provider == libcuda.PROVIDER
    opened.close()
    for name, module in fake_pycuda(driver._name).items():
        monkeypatch.setitem(sys.modules, name, module)
    opened = open_cuda()
    assert opened.provider == "pycuda 2026.1"
    assert not opened.has_graphs
    opened.close()


def test_the_provider_is_logged_once(
    driver: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda, "PROVIDERS", (cuda.open_libcuda,))
    cuda._log_provider.cache_clear()
    for _ in range(2):
        open_cuda().close()
    assert capsys.readouterr().err == "CUDA driver calls: libcuda via ctypes\n"


def test_cuda_bindings_for_a_newer_driver_are_skipped(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("CUdevice_attribute", "CUpointer_attribute", "CUstreamCaptureMode")
    driver_module = types.SimpleNamespace(**dict.fromkeys(kinds, int))
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver_module)
    monkeypatch.setattr(driver_provider, "version", lambda name: "13.5.0")
    driver.fake_driver(12060)
    assert cuda.open_cuda_bindings() is None
    driver.fake_driver(13000)
    with pytest.raises(AttributeError, match="cuInit"):
        cuda.open_cuda_bindings()


def test_cuda_bindings_make_the_same_calls(tmp_path: Path) -> None:
    """In a process of its own: they load libcuda.so.1 by that name."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        pytest.skip("needs cuda-bindings (pip install 'flawline[tensorrt]')")
    compile_cuda(tmp_path, "libcuda.so.1")
    code = """
import numpy as np
from flawline.runtime.engines.cuda import CudaError, open_cuda
cuda = open_cuda()
assert cuda.provider.startswith("cuda-bindings"), cuda.provider
assert (cuda.device, cuda.capability) == ("Fake GPU", (8, 6)), cuda.device
source, target, address = cuda.pinned(4), cuda.pinned(4), cuda.allocate(4)
graph = cuda.capture(lambda: (cuda.copy_in(address, source), cuda.copy_out(target, address)))
source[:] = 5
cuda.launch(graph)
cuda.synchronize()
assert target.tolist() == [5] * 4
cuda.drop(graph)
assert cuda.device_of(address) == cuda.number == 0
cuda.wait_for(1)
memory = cuda.shared_memory(8)
assert cuda.device_of(memory.address) == 0
mapped, address = cuda.mapped(8)
assert address == mapped.ctypes.data
assert not cuda.shares_host_memory
try:
    cuda.allocate(0)
except CudaError as error:
    print(error)
cuda.close()
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CUDA cuMemAlloc: CUDA_ERROR_")
    assert done.stderr.startswith("CUDA driver calls: cuda-bindings ")
    assert done.stderr.count("\n") == 1


def test_pycudas_context_is_popped_once_by_close_or_at_exit(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = fake_pycuda(driver._name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    at_exit: list[Any] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    monkeypatch.setattr("atexit.unregister", at_exit.remove)
    stack: list[Any] = modules["pycuda.driver"].stack
    opened = cuda.open_pycuda()
    assert opened is not None
    opened.make_current()
    assert (len(stack), at_exit) == (1, [opened.close])
    at_exit[0]()
    assert (stack, at_exit) == ([], [])
    at_exit.append(opened.close)
    opened.close()
    assert (stack, at_exit) == ([], [])
