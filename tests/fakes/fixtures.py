"""The stand-ins as fixtures: `pytest_plugins = ["fakes.fixtures"]`."""

from __future__ import annotations

import ctypes
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model, write_tiny_bundle

from fakes import Install, compile_cuda
from fakes.tensorrt import pretend
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.engines.cuda import driver as cuda
from flawline.runtime.engines.cuda import libcuda


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def driver(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fresh driver, which runtime.cuda finds in place of libcuda."""
    library = Path(shutil.copy(compiled, tmp_path / "libfakecuda.so"))
    monkeypatch.setattr(libcuda, "LIBRARY", str(library))
    return ctypes.CDLL(str(library))


@pytest.fixture
def install(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make `version` the TensorRT that is imported; what it was asked for is in the Behaviour returned."""
    monkeypatch.setattr(cuda, "PROVIDERS", (cuda._libcuda,))

    def install(version: str, **changes: Any) -> Any:
        trt = pretend(version, Path(driver._name), **changes)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        return trt.behaviour

    return install


@pytest.fixture
def parts(tmp_path: Path) -> Bundle:
    """A bundle with an FP16 graph and an island."""
    return add_model(
        write_tiny_bundle(tmp_path / "parts", fp32_islands=("/head",)), "fp16", tiny_model()
    )
