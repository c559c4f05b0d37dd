"""A connection to one model of a server, through the stubs that tritonclient generated."""

from __future__ import annotations

import os
import threading
from typing import Any

from flawline.runtime.console import first_line
from flawline.runtime.engines.kserve.address import Address

# Pauses of gRPC between two attempts to connect; its own grow to 2 minutes.
FIRST_PAUSE_MS = 100
LONGEST_PAUSE_MS = 2000
CHANNEL_OPTIONS = (
    # Its limit of 4 MiB is smaller than the map of a large frame.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", FIRST_PAUSE_MS),
    ("grpc.min_reconnect_backoff_ms", FIRST_PAUSE_MS),
    ("grpc.max_reconnect_backoff_ms", LONGEST_PAUSE_MS),
    # A new channel must not take over the connection of the one before, which may be dead.
    ("grpc.use_local_subchannel_pool", 1),
)
# The thread that watches a connection ends 0.2 s after no one asks for its state any more.
CLOSE_S = 1.0
# It sees a new connection within milliseconds, unless the machine is very busy.
SEEN_S = 0.5
TIMED_OUT = "DEADLINE_EXCEEDED"
UNKNOWN_CALL = "UNIMPLEMENTED"
# The connection is gone, or was closed while the request waited.
CONNECTION_LOST = ("UNAVAILABLE", "CANCELLED")


class CallFailed(Exception):
    """The server did not answer a call, or with an error; `code` is a status code of gRPC."""

    def __init__(self, code: str, details: str) -> None:
        self.code = code
        super().__init__(f"{code}: {details}" if details else code)


class Client:
    """Calls a server. `lost` is true if the connection has been lost since `connect`.

    Another server, or another model, may answer after that.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._channel: Any = None
        self._stub: Any = None
        self._watch: Any = None
        self._episode = 0
        # Set while the thread that watches the connection sees that it is ready.
        self._ready = threading.Event()
        self.lost = False
        self.connect()

    def connect(self) -> None:
        """Open a new connection with the next call."""
        # Its lines about lost connections would be among those of Flawline, which name them.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        import grpc
        from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

        self.close()
        target = self._address.target
        if self._address.options.tls:
            credentials = grpc.ssl_channel_credentials(self._address.certificates)
            self._channel = grpc.secure_channel(target, credentials, CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, CHANNEL_OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self.lost = False
        self._ready = threading.Event()
        self._episode += 1
        self._watch = self._watcher(self._episode)
        self._channel.subscribe(self._watch)

    def _watcher(self, episode: int) -> Any:
        """Return what gRPC calls with each state of the connection, in a thread of its own."""
        from grpc import ChannelConnectivity

        ready = self._ready
        was_ready = False

        def note(state: Any) -> None:
            nonlocal was_ready
            if state == ChannelConnectivity.READY:
                was_ready = True
                ready.set()
                return
            ready.clear()
            if was_ready and episode == self._episode:
                self.lost = True

        return note

    def start(self, request: Any, seconds: float) -> Any:
        """Send a ModelInferRequest; `wait` returns its answer."""
        return self._stub.ModelInfer.future(
            request, timeout=seconds, metadata=self._address.headers
        )

    def wait(self, call: Any) -> Any:
        """Return the answer to a call. Raises CallFailed."""
        import grpc

        try:
            answer = call.result()
        except grpc.FutureCancelledError:
            raise CallFailed("CANCELLED", "the connection was closed") from None
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, first_line(error.details() or "")) from error
        # A connection that was never seen to be ready could be lost unnoticed.
        if not self._ready.wait(SEEN_S):
            self.lost = True
        return answer

    def ask(self, method: str, seconds: float, **fields: str) -> Any:
        """Call a method of the protocol, such as ModelMetadata. Raises CallFailed."""
        from tritonclient.grpc import service_pb2

        request = getattr(service_pb2, f"{method}Request")(**fields)
        call = getattr(self._stub, method).future
        return self.wait(call(request, timeout=seconds, metadata=self._address.headers))

    def close(self) -> None:
        """Close the connection. May be called again. Calls in flight may fail as CANCELLED."""
        if self._channel is None:
            return
        # gRPC's thread that watches a connection raises an error if it is closed meanwhile.
        self._channel.unsubscribe(self._watch)
        timer = threading.Timer(CLOSE_S, self._channel.close)
        timer.daemon = True
        timer.start()
        self._channel = None
