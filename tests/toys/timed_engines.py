"""Engines that can be used without a further library, for tests of the automatic choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flawline.runtime.bundle import Bundle
from flawline.runtime.engines import ENGINES, Engine, EngineError, EngineOptions
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Image, Map


@contextmanager
def listed_alone(monkeypatch: pytest.MonkeyPatch, **classes: str) -> Iterator[None]:
    """List these engines of this file, by the names of their classes, and no others.

    What a test changes about the list ends with the block, too.
    """
    listed = dict(ENGINES)
    ENGINES.clear()
    ENGINES.update({name: f"{__name__}:{kind}" for name, kind in classes.items()})
    try:
        yield
    finally:
        monkeypatch.undo()
        # The order decides which engine is the first.
        ENGINES.clear()
        ENGINES.update(listed)


class First(OnnxRuntime):
    """The first of a list."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    @classmethod
    def missing(cls) -> str | None:
        return None

    @classmethod
    def installed(cls) -> str:
        return "1.0"


class Second(First):
    """Also runs a lossy precision that needs no graph, whose scores are a little higher."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    drift: ClassVar[float] = 0.05

    def __call__(self, image: Image) -> tuple[Map, Map]:
        scores, maps = super().__call__(image)
        if self.precision == "bf16":
            scores = scores + self.drift
        return scores, maps


class Absent(First):
    """Cannot be used on this machine."""

    @classmethod
    def missing(cls) -> str | None:
        return "pip install absent"


class Elsewhere(Absent):
    """Compiles a plan that runs on another machine."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    compiles = True

    @classmethod
    def build(
        cls, bundle: Bundle, precision: str, build_options: Any = None, cache: Path | None = None
    ) -> Path:
        return bundle.model()


class Broken(First):
    """Is installed and cannot be opened."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> Engine:  # type: ignore[override]
        raise EngineError("the CPU is too old; choose another engine")
