"""Images that are on the GPU already, and maps that stay there, on a driver of the host."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FP16, Install, engine_name, expected_result, random_images

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import EngineError, cuda, open_engine
from flawline.runtime.engines.cuda import dlpack
from flawline.runtime.engines.cuda.device_array import UINT8, DeviceArray
from flawline.runtime.engines.tensorrt import engine as engine_module
from flawline.runtime.engines.tensorrt.engine import TensorRt
from flawline.runtime.engines.tensorrt.lane import MOST_GRAPHS

pytest_plugins = ["fakes.fixtures"]
UPLOADS = b"cuMemcpyHtoDAsync_v2"


class Source:
    """Another program with a GPU library: its stream, and images that it uploads."""

    def __init__(self) -> None:
        self.cuda = cuda.open_libcuda()
        # The copies are made later.
        self._staged: list[Any] = []

    def upload(self, images: np.ndarray, offset: int = 0) -> Any:
        """Enqueue the upload of images; return their memory. They are there when it was done."""
        memory = self.cuda.shared_memory(images.nbytes + offset)
        staged = self.cuda.pinned(images.nbytes)
        staged[:] = images.reshape(-1)
        self.cuda.copy_in(memory.address + offset, staged)
        self._staged.append(staged)
        return memory

    def close(self) -> None:
        self.cuda.close()
        self._staged.clear()


class Interface:
    """An array with __cuda_array_interface__ alone, as of Numba."""

    def __init__(self, memory: Any, shape: tuple[int, ...], stream: int | None, **changes: Any):
        self.memory = memory
        fields = {
            "shape": shape,
            "typestr": "|u1",
            "data": (memory.address, True),
            "strides": None,
            "version": 3,
            "stream": stream,
        }
        self.__cuda_array_interface__ = {**fields, **changes}


class Shared:
    """An array with __dlpack__, as of PyTorch or CuPy; `released` says who released the memory."""

    def __init__(self, memory: Any, shape: tuple[int, ...], source: Source, **changes: Any) -> None:
        self.memory = memory
        self.shape = shape
        self.source = source
        self.device = changes.get("device", (dlpack.CUDA, 0))
        self.number = changes.get("number", (dlpack.UNSIGNED, 8))
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        # As PyTorch does with an event: `stream` waits for what was enqueued before.
        self.streams.append(stream)
        self.source.cuda.synchronize()
        return dlpack.share(self.memory.address, self.shape, self.number, self.device, self.memory)


Make = Callable[[Source, np.ndarray], Any]


def interface(source: Source, images: np.ndarray) -> Any:
    return Interface(source.upload(images), images.shape, source.cuda.stream)


def shared(source: Source, images: np.ndarray) -> Any:
    return Shared(source.upload(images), images.shape, source)


def assert_judged(engine: Any, given: Any, images: np.ndarray) -> None:
    score, anomaly_map = engine(given)
    np.testing.assert_allclose(score, expected_result(images)[0], rtol=1e-6)
    np.testing.assert_allclose(anomaly_map, expected_result(images)[1], rtol=1e-6)


def values_of(array: Any, count: int) -> np.ndarray:
    """Read float32 values from device memory, which is host memory here."""
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(array.address)).copy()


@pytest.mark.parametrize("make", [interface, shared])
@pytest.mark.parametrize("version", ["8.6", "10.13", "rtx1.7"])
def test_an_image_on_the_gpu_is_read_where_it_is(
    version: str, make: Make, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    engine: Any = open_engine(fp16_bundle, engine_name(version))
    source = Source()
    images = random_images(2, 1)
    given = make(source, images)
    before = driver.fake_calls(UPLOADS)
    for _ in range(4):
        # The third one launches the graph of the second.
        assert_judged(engine, given, images)
    assert driver.fake_calls(UPLOADS) == before
    assert engine.has_device_memory
    # One in host memory and one at another address, in turns.
    others = random_images(2, 2)
    also = make(source, others)
    for _ in range(3):
        assert_judged(engine, others, others)
        assert_judged(engine, also, others)
        assert_judged(engine, given, images)
    engine.close()
    source.close()
    del given, also, engine, source
    gc.collect()
    assert driver.fake_live() == 0


def test_the_library_lets_the_stream_of_the_engine_wait(
    fp16_bundle: Bundle, install: Install
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    source = Source()
    given = shared(source, random_images(1, 1))
    engine(given)
    (stream,) = given.streams
    assert stream not in (None, 0, source.cuda.stream)
    engine.close()
    source.close()


def test_the_memory_is_kept_until_the_result(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    source = Source()
    for make in (interface, shared):
        images = random_images(1, 4)
        before = driver.fake_calls(b"cuMemFree_v2")
        engine.submit(make(source, images))
        gc.collect()
        assert driver.fake_calls(b"cuMemFree_v2") == before
        score, _ = engine.result()
        np.testing.assert_allclose(score, expected_result(images)[0], rtol=1e-6)
        gc.collect()
        assert driver.fake_calls(b"cuMemFree_v2") == before + 1
    engine.close()
    source.close()


def test_graphs_are_kept_for_a_few_addresses(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    source = Source()
    images = [random_images(1, seed) for seed in range(MOST_GRAPHS + 3)]
    given = [shared(source, image) for image in images]
    for _ in range(3):
        for place, image in enumerate(images):
            assert_judged(engine, given[place], image)
            assert_judged(engine, given[place], image)
    captured = driver.fake_calls(b"cuStreamBeginCapture_v2")
    assert captured - driver.fake_calls(b"cuGraphExecDestroy") == MOST_GRAPHS
    engine.close()
    assert driver.fake_calls(b"cuGraphExecDestroy") == captured
    source.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s, m: Interface(m, (1, 64, 64, 3), None, typestr="<f4"),
            "not uint8; convert it first",
        ),
        (
            lambda s, m: Shared(m, (1, 64, 64, 3), s, number=(dlpack.FLOAT, 16)),
            "not uint8; convert it first",
        ),
        (
            lambda s, m: Interface(m, (1, 64, 64, 3), None, strides=(1, 3, 192, 1)),
            "not contiguous; copy it",
        ),
        (
            lambda s, m: Interface(m, (1, 64, 64, 3), None, data=(m.address + 64, False)),
            "not a multiple of 256; copy it",
        ),
        (
            lambda s, m: Interface(m, (1, 64, 64, 3), None, data=(4096, False)),
            "not in GPU memory; copy it",
        ),
        (
            lambda s, m: Shared(m, (1, 64, 64, 3), s, device=(dlpack.CUDA, 2)),
            "in the memory of GPU 2, and this engine runs on GPU 0",
        ),
        (
            lambda s, m: Shared(m, (1, 64, 64, 3), s, device=(10, 0)),
            "kind 10, and this engine reads CUDA's; copy it to the host first",
        ),
        (
            lambda s, m: Interface(m, (9, 64, 64, 3), None),
            "accepts batches of 1 to 8, not 9",
        ),
    ],
)
def test_an_image_that_does_not_fit_is_one_line(
    make: Callable[[Source, Any], Any], message: str, fp16_bundle: Bundle, install: Install
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    source = Source()
    images = random_images(1, 1)
    given = make(source, source.upload(images, offset=256))
    with pytest.raises(EngineError, match=re.escape(message)) as caught:
        engine(given)
    assert "\n" not in str(caught.value)
    # The engine can still be used.
    assert_judged(engine, images, images)
    engine.close()
    source.close()


def test_memory_of_another_gpu_and_another_shape_are_refused(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    source = Source()
    memory = source.upload(random_images(1, 1))
    with pytest.raises(ValueError, match=r"is \[1, 64, 32, 6\], and this graph takes"):
        engine(Interface(memory, (1, 64, 32, 6), None))  # type: ignore[arg-type]
    driver.fake_place(ctypes.c_uint64(memory.address), 1)
    with pytest.raises(EngineError, match="in the memory of GPU 1, and this engine runs on GPU 0"):
        engine(Interface(memory, (1, 64, 64, 3), None))  # type: ignore[arg-type]
    engine.close()
    source.close()


def test_a_library_that_does_not_share_its_array_is_one_line(
    fp16_bundle: Bundle, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    source = Source()
    given = shared(source, random_images(1, 1))

    def refuse(self: Any, *, stream: int | None = None) -> Any:
        raise BufferError("a gradient is needed\nand more")

    monkeypatch.setattr(Shared, "__dlpack__", refuse)
    with pytest.raises(EngineError, match=r"does not share it \(a gradient is needed\); copy it"):
        engine(given)
    engine.close()
    source.close()


# ---------------------------------------------------------------- maps that stay on the GPU


@pytest.mark.parametrize("version", ["10.13", "rtx1.7"])
def test_the_map_stays_on_the_gpu_for_other_libraries(
    version: str, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    engine: Any = open_engine(fp16_bundle, engine_name(version))
    engine.wants_map = False
    for seed in range(3):
        images = random_images(2, seed)
        _, empty = engine(engine.to_device(images))
        assert empty.shape == (2, 0, 0)
        anomaly_map = engine.device_map()
        taken = dlpack.take(anomaly_map.__dlpack__(stream=5, max_version=(1, 0)))
        assert taken.shape == anomaly_map.shape == (2, 64, 64)
        assert (taken.code, taken.bits, taken.strides) == (dlpack.FLOAT, 32, None)
        assert taken.address == anomaly_map.address
        expected = expected_result(images)[1]
        np.testing.assert_allclose(values_of(taken, 2 * 64 * 64), expected.reshape(-1), rtol=1e-6)
    stated = anomaly_map.__cuda_array_interface__
    assert stated == {
        "shape": (2, 64, 64),
        "typestr": "<f4",
        "data": (taken.address, False),
        "strides": None,
        "version": 3,
        "stream": None,
    }
    assert anomaly_map.__dlpack_device__() == (dlpack.CUDA, 0)
    engine.close()


def test_a_map_outlives_its_engine_until_the_last_reference(
    fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    images = random_images(1, 3)
    engine(images)
    kept = engine.device_map()
    # A capsule that no library takes holds the memory, too, until it is dropped.
    unused = kept.__dlpack__()
    taken = dlpack.take(kept.__dlpack__())
    engine.close()
    del engine
    gc.collect()
    assert driver.fake_live() == 1
    expected = expected_result(images)[1].reshape(-1)
    np.testing.assert_allclose(values_of(kept, 64 * 64), expected, rtol=1e-6)
    del kept, taken
    gc.collect()
    assert driver.fake_live() == 1
    del unused
    gc.collect()
    assert driver.fake_live() == 0
    assert not dlpack._shared


def test_a_map_that_is_not_there_is_an_error(fp16_bundle: Bundle, install: Install) -> None:
    install("10.13", outputs=["score"])
    engine = TensorRt.open(fp16_bundle, FP16)
    with pytest.raises(EngineError, match="there is no map on the GPU"):
        engine.device_map()
    engine(random_images(1, 1))
    with pytest.raises(EngineError, match="there is no map on the GPU"):
        engine.device_map()
    engine.close()


def test_a_copy_and_another_device_are_refused(fp16_bundle: Bundle, install: Install) -> None:
    install("10.13")
    engine = TensorRt.open(fp16_bundle, FP16)
    engine(random_images(1, 1))
    anomaly_map = engine.device_map()
    anomaly_map.__dlpack__(dl_device=(dlpack.CUDA, 0), copy=False)
    with pytest.raises(BufferError, match="shared, not copied"):
        anomaly_map.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="not on"):
        anomaly_map.__dlpack__(dl_device=(1, 0))
    engine.close()


# ---------------------------------------------------------------- several streams


@pytest.mark.parametrize("version", ["8.6", "10.13", "rtx1.7"])
def test_streams_have_batches_in_flight_with_memory_of_their_own(
    version: str, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    options = replace(FP16, streams=2)
    engine: Any = open_engine(fp16_bundle, engine_name(version), options)
    assert engine.description.endswith(", 2 streams")
    assert engine.in_flight == 2
    for seed in range(0, 12, 2):
        # No result is complete before its stream was synchronised.
        engine.submit(random_images(1, seed))
        engine.submit(random_images(3, seed + 1))
        with pytest.raises(RuntimeError, match="the results of 2 batches were not taken"):
            engine.submit(random_images(1, 0))
        for count, number in ((1, seed), (3, seed + 1)):
            score, anomaly_map = engine.result()
            images = random_images(count, number)
            np.testing.assert_allclose(score, expected_result(images)[0], rtol=1e-6)
            np.testing.assert_allclose(anomaly_map, expected_result(images)[1], rtol=1e-6)
            values = values_of(engine.device_map(), count * 64 * 64)
            np.testing.assert_allclose(values, expected_result(images)[1].reshape(-1), rtol=1e-6)
    with pytest.raises(RuntimeError, match="no batch was submitted"):
        engine.result()
    engine.submit(random_images(1, 1))
    with pytest.raises(RuntimeError, match="not taken"):
        engine(random_images(1, 1))
    engine.submit(random_images(1, 2))
    engine.close()
    engine.close()
    del engine, score, anomaly_map
    gc.collect()
    assert driver.fake_live() == 0


def test_a_stream_that_gets_no_memory_closes_the_others(
    fp16_bundle: Bundle, install: Install, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.13")
    opened = []

    def open_cuda() -> Any:
        opened.append(cuda.open_libcuda())
        if len(opened) == 3:
            driver.fake_fail(b"cuMemHostAlloc", 2)
        return opened[-1]

    monkeypatch.setattr(engine_module, "open_cuda", open_cuda)
    with pytest.raises(EngineError, match="OUT_OF_MEMORY"):
        TensorRt.open(fp16_bundle, replace(FP16, streams=3))
    assert len(opened) == 3
    gc.collect()
    assert driver.fake_live() == 0


# ---------------------------------------------------------------- DLPack itself


class OnHost:
    """Shares host memory, so that other libraries can be asked what they read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        address = self.values.ctypes.data
        return dlpack.share(address, self.values.shape, (dlpack.FLOAT, 32), (1, 0), self.values)


def test_other_libraries_read_what_is_shared() -> None:
    values = np.random.default_rng(1).random((2, 3, 5)).astype(np.float32)
    read = np.from_dlpack(OnHost(values))
    np.testing.assert_array_equal(read, values)
    assert len(dlpack._shared) == 1
    del read
    gc.collect()
    assert not dlpack._shared


def test_what_other_libraries_share_is_read() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    taken = dlpack.take(values[:, 1:].__dlpack__())
    assert taken.address == values.ctypes.data + 4
    assert taken.shape == (2, 2, 4)
    assert taken.strides == (12, 4, 1)
    assert (taken.code, taken.bits) == (dlpack.UNSIGNED, 8)
    with pytest.raises(ValueError, match="PyCapsule"):
        dlpack.take(object())
    used = values.__dlpack__()
    kept = dlpack.take(used)
    with pytest.raises(ValueError, match="PyCapsule"):
        dlpack.take(used)
    del kept


def test_torch_reads_and_shares() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).random((4, 6)).astype(np.float32)
    tensor = torch.from_dlpack(OnHost(values))
    np.testing.assert_array_equal(tensor.numpy(), values)
    taken = dlpack.take(tensor.__dlpack__())
    assert taken.address == values.ctypes.data
    del taken, tensor
    gc.collect()
    assert not dlpack._shared


def test_a_device_array_says_its_type() -> None:
    class Memory:
        address = 512
        device = 1

    array = DeviceArray(Memory(), (2, 3), UINT8)  # type: ignore[arg-type]
    assert array.__dlpack_device__() == (dlpack.CUDA, 1)
    taken = dlpack.take(array.__dlpack__())
    assert (taken.address, taken.shape, taken.code, taken.bits) == (512, (2, 3), 1, 8)


# ---------------------------------------------------------------- a GPU without its own memory

COPIES = (b"cuMemcpyHtoDAsync_v2", b"cuMemcpyDtoHAsync_v2", b"cuMemAlloc_v2")


@pytest.mark.parametrize("streams", [None, 2])
@pytest.mark.parametrize("version", ["8.6", "10.13", "rtx1.7"])
def test_a_gpu_that_shares_the_memory_of_the_host_copies_nothing(
    version: str, streams: int | None, fp16_bundle: Bundle, install: Install, driver: Any
) -> None:
    install(version)
    driver.fake_integrated()
    options = replace(FP16, streams=streams)
    engine: Any = open_engine(fp16_bundle, engine_name(version), options)
    for seed, count in enumerate((1, 1, 1, 3, 3, 8)):
        images = random_images(count, seed)
        assert_judged(engine, images, images)
        values = values_of(engine.device_map(), count * 64 * 64)
        np.testing.assert_allclose(values, expected_result(images)[1].reshape(-1), rtol=1e-6)
    assert [driver.fake_calls(name) for name in COPIES] == [0, 0, 0]
    assert driver.fake_calls(b"cuMemHostAlloc") == 3 * (streams or 1)
    # An image of another library is still read where it is.
    images = random_images(1, 9)
    source = Source()
    assert_judged(engine, shared(source, images), images)
    source.close()
    kept = engine.device_map()
    engine.close()
    del engine
    gc.collect()
    assert driver.fake_live() == 1
    expected = expected_result(images)[1].reshape(-1)
    np.testing.assert_allclose(values_of(kept, 64 * 64), expected, rtol=1e-6)
    del kept
    gc.collect()
    assert driver.fake_live() == 0


def test_mapped_memory_needs_its_flag(driver: Any) -> None:
    opened = cuda.open_libcuda()
    assert not opened.shares_host_memory
    memory, address = opened.mapped(100)
    assert memory.nbytes == 100
    assert address
    with pytest.raises(EngineError, match="cuMemHostGetDevicePointer"):
        opened._call("cuMemHostGetDevicePointer", opened.pinned(10).ctypes.data, 0)  # type: ignore[attr-defined]
    opened.close()
