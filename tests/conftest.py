"""Shared fixtures.

Tests marked `torch` need the train extra; everything else must run on an edge install.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flawline.cameras import triggered
from flawline.export import local_engine, measured_choice
from flawline.runtime.bundle import Bundle, write_bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.console import Verbosity
from flawline.runtime.golden import Golden
from flawline.runtime.image import Geometry, prepare
from flawline.runtime.manifest import Manifest, Spread
from flawline.runtime.source_frame import SourceFrame

SHARED = Path(__file__).resolve().parents[2] / "shared"
SIZE = 64
# Of a test that is marked slow.
SLOW_LIMIT_S = 3600
# The frames that tests/golden/tiny-source.onnx takes.
SOURCE = SourceFrame(128, 192, "bayer-grbg")
# pylon reads it once: two emulated Basler cameras.
os.environ.setdefault("PYLON_CAMEMU", "2")
# gpiozero's pins that are not real.
os.environ.setdefault("GPIOZERO_PIN_FACTORY", "mock")
# A shell that starts the tests in the background has Ctrl-C ignored, which programs inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            if config.getoption("--slow"):
                item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))
            else:
                item.add_marker(pytest.mark.skip(reason="slow: runs in make test-slow"))


def shared(*parts: str) -> Path:
    """Return a file of the optional data next to the checkout; skip the test if it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the optional data {path}")
    return path


@pytest.fixture(autouse=True)
def _default_verbosity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test inherit the --quiet or --verbose of another one."""
    monkeypatch.setattr(Verbosity, "quiet", False)
    monkeypatch.setattr(Verbosity, "verbose", False)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting() -> Iterator[None]:
    """Time engines for milliseconds, and do not wait for the disk.

    Tests check no speed. Those of a disk that fails replace `os.fsync` themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(measured_choice, "SETTLE_S", 0.0)
        patch.setattr(measured_choice, "TURN_S", 0.002)
        patch.setattr(local_engine, "TIMED_SECONDS", 0.01)
        yield


@pytest.fixture
def patient_pulses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a software pulse wait for long, because this machine may be busy."""
    monkeypatch.setattr(triggered, "READY_S", 20.0)


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A smooth colour image with edges, uint8 [90, 120, 3], the same in every run."""
    y, x = np.mgrid[0:90, 0:120].astype(np.float32)
    waves = [
        127 + 60 * np.sin(x / a + y / b) + 50 * ((x + y) % 40 > 20)
        for a, b in ((9, 14), (21, 7), (5, 30))
    ]
    return np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)


def tiny_model(outputs: tuple[str, ...] = ("score", "map")) -> bytes:
    """Return an ONNX graph with the signature of a bundle: map = mean over colour, score = maximum.

    Its bytes are stored, because onnx is in the train extra; tests/golden/make_tiny.py wrote them.
    """
    name = "tiny.onnx" if "map" in outputs else "tiny-score.onnx"
    return (Path(__file__).parent / "golden" / name).read_bytes()


def write_tiny_bundle(path: Path, model: bytes | None = None, **changes: object) -> Bundle:
    """Write a bundle around `tiny_model`, with threshold 100 on the brightest pixel.

    `changes` replace fields of the manifest; with outputs ("score",), the golden data have no maps.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    maps = images.astype(np.float32).mean(-1)
    fields = {
        "method": "simplenet",
        "backbone": "resnet18",
        "geometry": Geometry("stretch", SIZE, SIZE),
        "score": Spread(50, 10, 30, 90),
        "map_peak": Spread(50, 10, 30, 90),
        "score_tolerance": 0.01,
        "map_tolerance": 0.01,
        "fp32_islands": (),
        "outputs": ("score", "map"),
        "provenance": {"data": "generated"},
        **changes,
    }
    manifest = Manifest(**fields)  # type: ignore[arg-type]
    scores = maps.max((1, 2))
    if manifest.outputs == ("score",):
        maps = np.empty((len(images), 0, 0), np.float32)
    calibration = Calibration(100.0, 0.01, (0.002, 0.02), 0.95, 200)
    models = {"fp32": model or tiny_model(manifest.outputs)}
    return write_bundle(path, manifest, calibration, models, Golden(images, scores, maps))


def with_graph(bundle: Bundle, precision: str, data: bytes) -> Bundle:
    """Write other data in the place of a graph, with the right hash."""
    path = bundle.model(precision)
    path.write_bytes(data)
    hashes = {**bundle.sha256, path.name: hashlib.sha256(data).hexdigest()}
    return dataclasses.replace(bundle, sha256=hashes)


def source_frames(count: int) -> np.ndarray:
    """Random frames of SOURCE, uint8 [count, h, w]: blocks of grey levels, so that scores vary."""
    rng = np.random.default_rng(3)
    height, width = SOURCE.shape
    blocks = rng.integers(0, 256, (count, height // 16, width // 16), dtype=np.uint8)
    return blocks.repeat(16, axis=1).repeat(16, axis=2)


def write_source_bundle(path: Path) -> Bundle:
    """Write the tiny bundle for frames of SOURCE, with threshold 100 on the brightest pixel."""
    manifest = dataclasses.replace(write_tiny_bundle(path).manifest, source=SOURCE)
    frames = source_frames(2)
    maps = []
    for frame in frames:
        maps.append(prepare(SOURCE.picture(frame), manifest.geometry).astype(np.float32).mean(-1))
    golden = Golden(frames, np.max(maps, (1, 2)), np.array(maps))
    calibration = Calibration(100.0, 0.01, (0.002, 0.02), 0.95, 200)
    model = (Path(__file__).parent / "golden" / "tiny-source.onnx").read_bytes()
    return write_bundle(path, manifest, calibration, {"fp32": model}, golden)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def torchvision_operators() -> Iterator[Any]:
    """Import torchvision's models with any build of torch; None without torchvision.

    torchvision registers operators that a CPU build of torch from another index lacks. Its models,
    and timm's, need none of them.
    """
    torch = pytest.importorskip("torch", reason="needs the train extra")
    library = torch.library.Library("torchvision", "FRAGMENT")
    models = None
    for _ in range(10):
        try:
            import torchvision.models as models

            break
        except ImportError:
            break
        except RuntimeError as error:
            name = str(error).split("torchvision::")[-1].split()[0]
            library.define(f"{name}(Tensor x) -> Tensor")
            for module in [m for m in sys.modules if m.startswith("torchvision")]:
                del sys.modules[module]
    yield models
    del library  # it must outlive the models


@pytest.fixture
def torchvision_models(torchvision_operators: Any) -> Any:
    """torchvision's models; skips the test where there are none."""
    if torchvision_operators is None:
        pytest.skip("needs torchvision")
    return torchvision_operators


def write_levels(root: Path, levels: Mapping[str, Iterable[int]], size: int) -> Path:
    """Write uniform images of the grey levels of each folder, each named by its level."""
    for folder, values in levels.items():
        (root / folder).mkdir(parents=True)
        for value in values:
            image = np.full((size, size, 3), value, np.uint8)
            path = root / folder / f"{value}.png"
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return root
