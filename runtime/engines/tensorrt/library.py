"""The two libraries, TensorRT and TensorRT-RTX: how they are found, loaded and report errors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from flawline.extras import install_command, pip_command
from flawline.runtime.console import first_line
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.tensorrt.api import Module


@dataclass(frozen=True)
class Library:
    """A library and the engine that is named after it.

    Plans of a `portable` library are built without a GPU, for a list of compute capabilities, and
    compiled to the end when they are loaded. `remedies` has pairs of a file that the library may
    fail to find, and what to do about it.
    """

    engine: str
    module: str
    install: str
    portable: bool = False
    remedies: tuple[tuple[str, str], ...] = ()

    def missing(self) -> str | None:
        """Say how to install the library; None if it is installed."""
        spec = find_spec(self.module)
        # A leftover folder imports as an empty namespace package; its spec has no origin.
        if spec is None or spec.origin is None:
            return self.install
        return None

    def load(self) -> Module:
        """Import the library. Raises EngineError if it is not installed or cannot be loaded."""
        install = self.missing()
        if install is not None:
            raise EngineError(f"engine {self.engine}: {install}")
        try:
            return import_module(self.module)
        except (ImportError, OSError) as error:
            reason = first_line(error)
            raise EngineError(
                f"engine {self.engine} cannot be loaded ({reason}); {self._remedy(reason)}"
            ) from error

    def _remedy(self, reason: str) -> str:
        for file, remedy in self.remedies:
            if file in reason:
                return remedy
        return "install it again"


TENSORRT = Library(
    engine="tensorrt",
    module="tensorrt",
    install="it is part of JetPack (a virtual environment needs --system-site-packages); "
    f"elsewhere: {pip_command('install', 'tensorrt')}",
    # A part of JetPack 6 that some boards come without. JetPack 7.2 has no such file: its own
    # TensorRT needs none, while that of an older container does.
    remedies=(
        (
            "libnvdla_compiler.so",
            "on JetPack 6: sudo apt install nvidia-l4t-dla-compiler; on JetPack 7.2, which has no "
            "such file, use its own TensorRT, also in a container",
        ),
    ),
)
TENSORRT_RTX = Library(
    engine="tensorrt-rtx",
    module="tensorrt_rtx",
    install=install_command("rtx"),
    portable=True,
)


class ErrorLog:
    """The errors that the library has reported since the last `clear()`."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def clear(self) -> None:
        """Forget the errors of an earlier operation."""
        self.messages.clear()

    def first(self) -> str:
        """Return the first line of the first error, which is usually the cause of the others."""
        if not self.messages:
            return "the library gives no reason"
        return first_line(self.messages[0])


@functools.cache
def logger(trt: Module) -> ErrorLog:
    """Return the process's only logger, which TensorRT accepts as its ILogger.

    There is one because TensorRT keeps using the first logger that it was given.
    """

    class Logger(ErrorLog, trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # TensorRT's classes require that their own __init__ is called explicitly.
            ErrorLog.__init__(self)
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(text)

    return Logger()
