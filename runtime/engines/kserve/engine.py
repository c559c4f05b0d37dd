"""An engine whose graph runs in a server that speaks the KServe v2 protocol over gRPC.

NVIDIA Triton, OpenVINO Model Server and MLServer do; KServe calls it the open inference protocol:
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar

from flawline.extras import missing_package
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log, terminal_line
from flawline.runtime.engines import (
    Engine,
    EngineError,
    EngineOptions,
    EngineUnavailable,
    self_test,
)
from flawline.runtime.engines.arrays import host_image
from flawline.runtime.engines.kserve.address import USAGE, Address, parse_address
from flawline.runtime.engines.kserve.client import (
    CONNECTION_LOST,
    TIMED_OUT,
    UNKNOWN_CALL,
    CallFailed,
    Client,
)
from flawline.runtime.engines.kserve.messages import (
    check_config,
    check_metadata,
    new_request,
    read_answer,
)
from flawline.runtime.image import Image, Map

# The first calls of a server may load and compile the model.
FIRST_CALLS_S = 30.0
PAUSE_S = 0.1  # before a request is sent again


class KServe(Engine):
    """Sends prepared images to a server, and passes the self-test on it at each connection.

    While the server does not answer, a call raises EngineUnavailable, and the next one tries again.
    With streams, so many requests are on their way at the same time; the server forms batches.
    """

    # Those of the graphs that a server may have been given, and what it may compute in.
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "bf16", "int8")
    gains_from_batches: ClassVar[bool] = True
    offers_streams: ClassVar[bool] = True
    needs_server: ClassVar[bool] = True
    usage: ClassVar[str] = f"--server {USAGE}"

    def __init__(self, address: Address, bundle: Bundle, precision: str, in_flight: int) -> None:
        self._address = address
        self._options = address.options
        self._bundle = bundle
        # For later connections, when another bundle may be in the folder.
        self._golden = bundle.golden()
        self._map_size = bundle.map_size if bundle.has_map else (0, 0)
        self._outputs = bundle.manifest.outputs
        self.precision = precision
        self.in_flight = in_flight
        self.description = f"tritonclient {_client_version()} {address} {precision}"
        self._client = Client(address)
        self._waiting: deque[_Batch] = deque()
        self._is_closed = False
        self._seconds = max(FIRST_CALLS_S, self._options.timeout)
        # Whether the self-test was passed on the present connection.
        self._proven = False
        # Whether the last images were given up.
        self._gone = False
        # The version of the model in its answers, which may differ from the one that was asked for.
        self._version: str | None = None

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> KServe:
        address = parse_address(options.server or "")
        engine = cls(address, bundle, options.precision, options.streams or 1)
        try:
            engine._check_model()
        except CallFailed as error:
            engine.close()
            raise EngineError(
                f"{engine._reason(error)}; start the server, or give its address with "
                f"--server {USAGE}"
            ) from error
        except BaseException:
            engine.close()
            raise
        # `open_engine` runs the self-test.
        engine._proven = True
        return engine

    @classmethod
    def missing(cls) -> str | None:
        for package in ("tritonclient", "grpc"):
            if find_spec(package) is None:
                return missing_package(package)
        return None

    @classmethod
    def installed(cls) -> str:
        return _client_version()

    def __call__(self, image: Image) -> tuple[Map, Map]:
        self.submit(image)
        return self.result()

    def submit(self, image: Image) -> None:
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        if len(self._waiting) == self.in_flight:
            raise RuntimeError("the result of the batch before was not taken")
        batch = self._batch(image)
        if self._is_proven():
            batch.call = self._client.start(batch.request, self._seconds)
        self._waiting.append(batch)

    def result(self) -> tuple[Map, Map]:
        if not self._waiting:
            raise RuntimeError("no batch was submitted")
        batch = self._waiting.popleft()
        left = self._options.retries
        if self._gone:
            # One attempt in all, except for a request that was on its way before.
            left = int(batch.call is not None)
        while True:
            try:
                return self._attempt(batch)
            except CallFailed as error:
                self._note_failure(error)
                if left == 0 or error.code not in CONNECTION_LOST:
                    self._gone = True
                    raise EngineUnavailable(self._reason(error)) from error
            except EngineError as error:
                # Another model is served now, or none that answers as it must.
                self._proven = False
                self._gone = True
                raise EngineUnavailable(f"{self._address}: {error}") from error
            batch.call = None
            left -= 1
            time.sleep(PAUSE_S)

    def close(self) -> None:
        for batch in self._waiting:
            if batch.call is not None:
                batch.call.cancel()
        self._waiting.clear()
        self._is_closed = True
        self._client.close()

    def _batch(self, image: Image) -> _Batch:
        image = host_image(image, (None, *self._bundle.manifest.graph_input.shape))
        asked = self._options.version or ""
        request = new_request(self._address.model, asked, image, self._outputs)
        return _Batch(request, len(image))

    def _is_proven(self) -> bool:
        """Tell whether the server of this connection has passed the self-test."""
        return self._proven and not self._client.lost

    def _attempt(self, batch: _Batch) -> tuple[Map, Map]:
        """Return the result of a batch. Raises CallFailed and EngineError."""
        if batch.call is None:
            if not self._is_proven():
                self._prove()
            batch.call = self._client.start(batch.request, self._seconds)
        answer = self._client.wait(batch.call)
        if not self._is_proven() or self._version not in (None, answer.model_version):
            # Another server, or another version of the model, may have answered.
            self._prove()
            return self._compute(batch)
        return self._read(answer, batch)

    def _compute(self, batch: _Batch) -> tuple[Map, Map]:
        """Send a batch, and return its result. Raises CallFailed and EngineError."""
        answer = self._client.wait(self._client.start(batch.request, self._seconds))
        return self._read(answer, batch)

    def _read(self, answer: Any, batch: _Batch) -> tuple[Map, Map]:
        result = read_answer(answer, batch.count, self._map_size)
        self._version = answer.model_version
        self._seconds = self._options.timeout
        return result

    def _prove(self) -> None:
        """Check the model and run the self-test. Raises CallFailed and EngineError."""
        self._proven = False
        # What is lost from now on is noticed.
        self._client.lost = False
        self._check_model()
        compute = lambda image: self._compute(self._batch(image))  # noqa: E731
        self_test(self, self._bundle, compute, self._golden)
        self._proven = True
        if self._gone:
            self._gone = False
            log(f"{self._address} answers again, and passed the self-test")

    def _check_model(self) -> None:
        """Compare what the server says about the model with the bundle.

        Raises CallFailed and EngineError.
        """
        name = self._address.model
        asked = self._options.version or ""
        metadata = self._client.ask("ModelMetadata", self._seconds, name=name, version=asked)
        self.largest_batch = self._largest(metadata)
        try:
            answer = self._client.ask("ModelConfig", self._seconds, name=name, version=asked)
        except CallFailed as error:
            # Only Triton has this call.
            if error.code != UNKNOWN_CALL:
                raise
            return
        sha256 = self._bundle.model_sha256(self.precision)
        try:
            limit = check_config(answer.config, self.precision, sha256)
        except EngineError as error:
            raise EngineError(f"{self._address}: {error}") from error
        self.largest_batch = limit or self.largest_batch

    def _largest(self, metadata: Any) -> int | None:
        try:
            return check_metadata(metadata, self._bundle)
        except EngineError as error:
            raise EngineError(f"{self._address}: {error}") from error

    def _note_failure(self, error: CallFailed) -> None:
        self._proven = False
        if error.code == TIMED_OUT:
            # A connection whose other end is gone may not be noticed for many minutes.
            self._client.connect()

    def _reason(self, error: CallFailed) -> str:
        """Return why images could not be judged."""
        if error.code == TIMED_OUT:
            return f"{self._address} has not answered within {self._seconds:g} s"
        if error.code in CONNECTION_LOST:
            return terminal_line(f"{self._address} cannot be reached ({error})")
        return terminal_line(f"{self._address} answers with an error ({error})")


@dataclass
class _Batch:
    """A request for `count` images, and the call that it was sent with."""

    request: Any
    count: int
    call: Any = None


def _client_version() -> str:
    return version("tritonclient")
