"""Results as messages to an MQTT broker, such as Mosquitto."""

from __future__ import annotations

import importlib.util
import re
import secrets
import ssl
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flawline.cameras import CameraError
from flawline.cameras.credentials import permission_warning, read_credentials
from flawline.extras import missing_package
from flawline.options import option
from flawline.os_errors import reason_of
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import warn
from flawline.runtime.outputs import OutputError
from flawline.runtime.outputs.delivery import Delivery, DeliveryOptions

if TYPE_CHECKING:
    from paho.mqtt.client import Client

PORT = 1883
TLS_PORT = 8883
LONGEST_QUEUE = 60_000
# Messages that the broker has not confirmed yet. The client sends at most 20 at the same time, and
# a state may be among them.
MOST_UNCONFIRMED = 16
QOS = 1  # the broker confirms each message
PAUSE_S = (1, 10)  # the shortest and the longest between two attempts to connect
CONNECT_S = 5.0
KEEPALIVE_S = 10  # so that the last will comes within 15 seconds
CLOSE_S = 1.0  # for the last state and the end of the connection
ONLINE = "online"
OFFLINE = "offline"
TARGET = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]]+)(:(?P<port>\d{1,5}))?/(?P<topic>[^\x00+#]+)"
)


@dataclass(frozen=True)
class MqttOptions(DeliveryOptions):
    """Raises ValueError for too long a queue, and if `ca` is given without TLS."""

    credentials: str | None = option(
        None, "file with the lines user=NAME and password=PASSWORD of the broker"
    )
    tls: bool = option(False, "connect with TLS, to port 8883 unless another one is given")
    ca: str | None = option(
        None, "file with the certificates that the broker's is checked against; else the system's"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queue > LONGEST_QUEUE:
            raise ValueError(f"queue must be from 1 to {LONGEST_QUEUE}")
        if self.ca is not None and not self.tls:
            raise ValueError("ca needs tls=1")


class Mqtt(Delivery):
    """Publishes the JSON line of each judgement under TOPIC/result, and the summary TOPIC/summary.

    TOPIC/state is "online" while the stream runs and "offline" otherwise, retained; the broker
    itself publishes "offline" if the connection is lost. Results are published with quality of
    service 1: they wait until the broker has confirmed them, and one may arrive twice after the
    connection was lost.

    A thread publishes. The client of paho itself publishes again what was not confirmed when the
    connection was lost, but sends new messages before that. So the thread publishes nothing new
    before the connection stands and all earlier messages are confirmed.
    """

    usage: ClassVar[str] = "mqtt:HOST/TOPIC[?credentials=FILE]"
    Options: ClassVar[type[MqttOptions]] = MqttOptions

    def __init__(self, target: str, options: MqttOptions, bundle: Bundle) -> None:
        match = TARGET.fullmatch(target)
        if match is None:
            raise OutputError(
                f"output mqtt: the address is not HOST/TOPIC or HOST:PORT/TOPIC; write {self.usage}"
            )
        port = int(match["port"] or (TLS_PORT if options.tls else PORT))
        host = match["host"].strip("[]")
        super().__init__(f"output mqtt: {match['host']}:{port}", options, bundle)
        self._topic = match["topic"].rstrip("/")
        self._closed = False
        # Identifiers of published states, whose confirmations are not counted.
        self._states: set[int] = set()
        # Topics and messages that were not published yet; the condition guards these.
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._unconfirmed = 0
        self._connected = False
        self._repeating = False
        self._client = self._new_client(options)
        if not _is_valid(host, port):
            raise OutputError(f"output mqtt: host or port is not valid; write {self.usage}")
        self._client.connect_async(host, port, KEEPALIVE_S)
        self._client.loop_start()
        # A daemon, so that a network that hangs cannot keep the process from ending.
        threading.Thread(target=self._publish_all, name="mqtt", daemon=True).start()

    @classmethod
    def missing(cls) -> str | None:
        if importlib.util.find_spec("paho") is None:
            return missing_package("paho")
        return None

    @classmethod
    def example(cls, folder: Path) -> str:
        """Return the address of a broker that does not run, which an output must survive."""
        return "127.0.0.1:9/flawline?end_s=0"

    def _new_client(self, options: MqttOptions) -> Client:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        name = f"flawline-{secrets.token_hex(6)}"
        client = Client(CallbackAPIVersion.VERSION2, client_id=name)
        client.connect_timeout = CONNECT_S
        client.reconnect_delay_set(*PAUSE_S)
        client.will_set(f"{self._topic}/state", OFFLINE, QOS, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        if options.credentials is not None:
            _set_credentials(client, options.credentials)
        if options.tls:
            try:
                client.tls_set(options.ca)
            except (OSError, ssl.SSLError) as error:
                raise OutputError(
                    f"output mqtt: certificates {options.ca} cannot be read "
                    f"({reason_of(error)}); give a file in the PEM format"
                ) from error
        return client

    def _take(self, message: bytes, *, is_summary: bool = False) -> bool:
        kind = "summary" if is_summary else "result"
        with self._changed:
            if self._taken - self._delivered > self._limits.queue:
                return False
            self._waiting.append((f"{self._topic}/{kind}", message))
            self._changed.notify_all()
        return True

    def _publish_all(self) -> None:
        """Publish what waits, in its order, until the output is closed. Of the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._may_publish())
                if self._closed:
                    return
                topic, message = self._waiting.popleft()
                self._unconfirmed += 1
            # Without the condition, for which `_on_publish` waits: the client calls that while it
            # holds the lock that `publish` takes.
            self._client.publish(topic, message, QOS)

    def _may_publish(self) -> bool:
        """Tell whether the next message may be published. Called with the condition."""
        if not self._waiting or not self._connected or self._repeating:
            return False
        return self._unconfirmed < MOST_UNCONFIRMED

    def _discard(self) -> None:
        """Publish the last state and end the connection, within CLOSE_S seconds each."""
        if self._closed:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._client.is_connected():
            self._client.publish(f"{self._topic}/state", OFFLINE, QOS, True).wait_for_publish(
                CLOSE_S
            )
        self._client.disconnect()
        # It waits for the thread of the client, which may wait for a connection.
        stopping = threading.Thread(target=self._client.loop_stop, daemon=True)
        stopping.start()
        stopping.join(CLOSE_S)

    # What the thread of the client calls.

    def _on_connect(self, client: Client, _data: Any, _flags: Any, code: Any, *_: Any) -> None:
        if code.is_failure:
            self._note_failure(f"the broker refuses the connection ({code})")
            return
        self._note_answer()
        info = client.publish(f"{self._topic}/state", ONLINE, QOS, retain=True)
        self._states.add(info.mid)
        with self._changed:
            self._connected = True
            self._repeating = self._unconfirmed > 0
            self._changed.notify_all()

    def _on_connect_fail(self, *_: Any) -> None:
        # The client calls this where it handles the exception.
        error = sys.exc_info()[1]
        reason = "no connection"
        if isinstance(error, OSError):
            reason = reason_of(error)
        self._note_failure(f"cannot be reached ({reason})")

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, code: Any, *_: Any) -> None:
        with self._changed:
            self._connected = False
        if not self._closed:
            self._note_failure(f"the connection was lost ({code})")

    def _on_publish(self, _client: Client, _data: Any, number: int, *_: Any) -> None:
        if number in self._states:
            self._states.discard(number)
            return
        with self._changed:
            self._unconfirmed -= 1
            if self._unconfirmed == 0:
                self._repeating = False
            self._changed.notify_all()
        if not self._closed:
            self._note_delivered()


def _is_valid(host: str, port: int) -> bool:
    try:
        host.encode("idna")
    except ValueError:
        return False
    return 1 <= port <= 65535


def _set_credentials(client: Client, path: str) -> None:
    """Take user and password from a file. Raises OutputError, which quotes no line."""
    try:
        credentials = read_credentials(path)
        warning = permission_warning(path)
    except CameraError as error:
        raise OutputError(f"output mqtt: {error}") from error
    if warning is not None:
        warn(warning)
    client.username_pw_set(credentials.user, credentials.password)
