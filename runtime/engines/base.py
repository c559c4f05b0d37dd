"""What an engine is: the class that every engine derives from, its options and its error."""

from __future__ import annotations

import argparse
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flawline import FlawlineError
from flawline.runtime.bundle import ENGINE_CACHE, Bundle
from flawline.runtime.cores import MAX_THREADS_PER_CORE, allowed_cores, max_threads
from flawline.runtime.image import Image, Map


class EngineError(FlawlineError):
    """The engine cannot be used, or cannot run this bundle."""


class EngineUnavailable(EngineError):
    """An engine that was opened cannot compute now, and may be able to later.

    An example is an engine whose server was restarted. The images of the call have no result, so
    that their parts are rejected with this reason; a stream continues.
    """


@dataclass(frozen=True)
class EngineOptions:
    """Options of every engine.

    `threads` is the number of threads of a CPU engine, at most 4 for each core that this process
    may use; None uses these cores. `precision` is one of PRECISIONS,
    or "auto" for the engine's own default. `cache` is the folder for compiled plans and for the
    measured choice of an engine; None uses engines/ of the bundle. `streams` is the number of
    batches that the engine computes at the same time, each on its share of the threads; None
    computes one batch after the other, which gives each result soonest. `server` is the address of
    the server that an engine with `needs_server` sends images to, and None for all others.
    """

    threads: int | None = None
    precision: str = "auto"
    cache: Path | None = None
    streams: int | None = None
    server: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise EngineError(
                f"--threads {self.threads} is not at least 1; leave it out to use all"
            )
        if self.threads is not None and self.threads > max_threads():
            raise EngineError(
                f"--threads {self.threads} is more than {MAX_THREADS_PER_CORE} for each of the "
                f"{allowed_cores()} cores that this process may use; give at most {max_threads()}"
            )
        if self.streams is not None and self.streams < 1:
            raise EngineError(f"--streams {self.streams} is not at least 1; leave it out for none")


def cache_folder(bundle: Bundle, cache: Path | None) -> Path:
    """Return the folder for this bundle's plans and its measured choice.

    It is in the bundle, or if `cache` is given in that folder, which may serve several bundles.
    """
    if cache is None:
        return bundle.path / ENGINE_CACHE
    path = bundle.path.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    return cache / f"{path.name}-{digest[:8]}"


class Engine(ABC):
    """Runs the graph of a bundle on one device.

    Calling it turns uint8 [N, H, W, 3] BGR into scores float32 [N] and maps float32 [N, H, W]. The
    maps are [N, 0, 0] if the bundle was built for the score alone. Every N is accepted that the
    engine was built for.

    The returned arrays belong to the engine and may be overwritten by its next call: copy what is
    needed longer. An engine is not for use from several threads at once.
    """

    # The precisions of PRECISIONS that it runs; the first is its default.
    precisions: ClassVar[tuple[str, ...]]
    # The part that no test covers, for example "on a GPU"; None if there is none.
    untested: ClassVar[str | None] = None
    # True if it compiles plans, with `build`.
    compiles: ClassVar[bool] = False
    # True if a batch takes less time than its images one after the other, as on a GPU. A station
    # with several cameras then judges those frames together that wait at the same moment. With
    # False, the default, no frame waits for the others of its batch.
    gains_from_batches: ClassVar[bool] = False
    # True if it computes several batches at the same time, with `EngineOptions.streams`.
    offers_streams: ClassVar[bool] = False
    # True if it computes in a memory of its own, as a GPU does. A call then also takes an image in
    # that memory, and `wants_map` False leaves the maps there for `device_map`.
    has_device_memory: ClassVar[bool] = False
    # True if the graph runs in a server, whose address is `EngineOptions.server`. `auto` never
    # chooses such an engine. While the server does not answer, a call raises EngineUnavailable.
    needs_server: ClassVar[bool] = False
    # How the flags are written that the engine needs, for the list of all engines.
    usage: ClassVar[str] = ""

    # Its name in ENGINES, which `open_engine` sets.
    name: str = ""
    # The precision that this engine was opened with.
    precision: str
    # Library and version, device, and precision.
    description: str
    # The most images that one call takes; None if the engine sets no limit.
    largest_batch: int | None = None
    # How many batches may be submitted before the result of the first of them is taken.
    in_flight: int = 1
    # Of an engine that computes in `submit`: the result that was not taken yet.
    _submitted: tuple[Map, Map] | None = None

    @classmethod
    @abstractmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> Engine:
        """Open the engine for a bundle; `options.precision` is one of `precisions`.

        Raises EngineError if it cannot run the bundle on this machine.
        """

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Say what must be installed before this engine can be used; None if it can be used."""

    @classmethod
    @abstractmethod
    def installed(cls) -> str:
        """Return the version of the library, and the device unless that is the CPU.

        Only asked where nothing is missing. A measured choice of an engine is for this state: what
        changes the speed, apart from the CPU, must change this text.
        """

    @classmethod
    def unsuited(cls, precision: str) -> str | None:
        """Say why this machine cannot compute in one of `precisions`, with the remedy, or None.

        Only asked where nothing is missing. Raises EngineError if that cannot be found out.
        """
        return None

    @classmethod
    def build(
        cls, bundle: Bundle, precision: str, build_options: Any = None, cache: Path | None = None
    ) -> Path:
        """Compile the plan of a bundle, or take it from the cache; return its file.

        `build_options` are those of the engine; None takes their defaults. Raises EngineError.
        """
        raise EngineError(f"{cls.__name__} compiles no plans; leave the build options out")

    @classmethod
    def uncompiled(cls, bundle: Bundle, options: EngineOptions) -> str | None:
        """Say why `open` would first compile a plan, which takes minutes; None if it would not.

        `options.precision` is one of `precisions`. Raises EngineError and BundleError.
        """
        return None

    @classmethod  # noqa: B027
    def add_build_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add the flags of `build` to a parser or to a group of its flags; by default none.

        The default of every flag is None, so that a flag that was given can be distinguished from
        one that was not. Engines may share a flag; it then has the same meaning.
        """

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> Any:
        """Read the flags of `add_build_arguments`, as `build` takes them. Raises EngineError.

        None stands for an engine that has no such flags.
        """
        return None

    @abstractmethod
    def __call__(self, image: Image) -> tuple[Map, Map]:
        """Run a batch: uint8 [N, H, W, 3] BGR to scores [N] and maps, both float32.

        `image` is a numpy array, or an array of another library in host memory that has
        `__dlpack__`; see `has_device_memory` for those in device memory. The class says which shape
        the maps have, and how long the arrays stay valid. Raises EngineError, and ValueError for an
        image that is not uint8, or of another shape than the graph takes.
        """

    def submit(self, image: Image) -> None:
        """Start a batch, as a call takes it; `result` returns what a call would have returned.

        An engine with streams returns at once, and reads `image` until its result is taken. Other
        engines, as here, compute first. `in_flight` batches may be submitted before the first
        result is taken, and no call may be made in between. Raises EngineError, and RuntimeError
        for a batch too many.
        """
        if self._submitted is not None:
            raise RuntimeError("the result of the batch before was not taken")
        self._submitted = self(image)

    def result(self) -> tuple[Map, Map]:
        """Wait for the oldest batch that was submitted, and return its scores and maps.

        The arrays are valid until the next batch is submitted or the next call. Raises EngineError,
        and RuntimeError if no batch was submitted.
        """
        if self._submitted is None:
            raise RuntimeError("no batch was submitted")
        result = self._submitted
        self._submitted = None
        return result

    def layer_types(self) -> Mapping[str, int]:
        """Return how many layers compute in each precision of PRECISIONS, by its name.

        It is what the library has made of the graph, as the library states it, and not what it was
        asked for. Layers that only move data do not count. Empty if the library does not state it.
        """
        return {}

    def device_map(self) -> Any:
        """Return the maps of the last result in the memory of the device: float32 [N, H, W].

        Other libraries take the object with `__dlpack__` or `__cuda_array_interface__`. Its memory
        belongs to the engine, which overwrites it with the next call or `submit`, and stays valid
        until the last reference to it is gone, also after `close`. Raises EngineError for an engine
        without such memory, and where there is no map.
        """
        raise EngineError(
            f"{self.description} keeps its maps in host memory; take those that it returns"
        )

    @abstractmethod
    def close(self) -> None:
        """Release what the engine holds. May be called again, and with batches in flight.

        Arrays that the engine returned stay readable. Later calls raise RuntimeError.
        """
