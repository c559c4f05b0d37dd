"""The fakes as fixtures: `pytest_plugins = ["fakes.fixtures"]`."""

from __future__ import annotations

import ctypes
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model, write_tiny_bundle

from fakes import Install, compile_cuda
from fakes.tensorrt import fake_tensorrt
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.engines import cuda
from flawline.runtime.engines.cuda import libcuda


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def driver(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A driver in its initial state, which is loaded in place of libcuda."""
    library = Path(shutil.copy(compiled, tmp_path / "libfakecuda.so"))
    monkeypatch.setattr(libcuda, "LIBRARY", str(library))
    return ctypes.CDLL(str(library))


@pytest.fixture
def install(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make `version` the TensorRT that is imported; the result controls what it does."""
    monkeypatch.setattr(cuda, "PROVIDERS", (cuda.open_libcuda,))

    def install(version: str, **settings: Any) -> Any:
        trt = fake_tensorrt(version, Path(driver._name), **settings)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        return trt.control

    return install


@pytest.fixture
def fp16_bundle(tmp_path: Path) -> Bundle:
    """A bundle with an FP16 graph and an FP32 island."""
    bundle = write_tiny_bundle(tmp_path / "parts", fp32_islands=("/head",))
    return add_model(bundle, "fp16", tiny_model())
