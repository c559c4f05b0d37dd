"""Mosquitto from Debian, killed and started again on request, and a subscriber."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 20.0


def _find() -> str | None:
    # Debian installs it where a user's search path does not look.
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")


class Broker:
    """A broker on 127.0.0.1 that keeps sessions on disk. Skips the test where there is none."""

    def __init__(self, folder: Path, *settings: str) -> None:
        program = _find()
        if program is None:
            pytest.skip("needs the broker mosquitto: apt install mosquitto")
        folder.mkdir()
        folder.chmod(0o777)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        lines = [
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {folder}/",
            # Only on request: to save each message would limit their rate.
            "autosave_interval 0",
            "set_tcp_nodelay true",
            "max_queued_messages 0",
            *(settings or ["allow_anonymous true"]),
        ]
        if os.getuid() == 0:
            # It would otherwise change to a user that cannot read the folder.
            lines.append("user root")
        self._database = folder / "mosquitto.db"
        file = folder / "mosquitto.conf"
        file.write_text("\n".join(lines) + "\n")
        self._command = [program, "-c", str(file)]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), WAIT_S).close()
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)

    def save(self, session: str) -> None:
        """Let it save its sessions now, and wait until this one is on the disk.

        A session that a killed broker had not saved gets no messages until its client is back.
        """
        assert self._process is not None
        end = time.monotonic() + WAIT_S
        while not self._database.exists() or session.encode() not in self._database.read_bytes():
            self._process.send_signal(signal.SIGUSR1)
            assert time.monotonic() < end
            time.sleep(0.01)

    def kill(self) -> None:
        """End it without notice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            self._process = None


class Subscriber:
    """Records what is published below a topic, also while it was not connected."""

    def __init__(self, port: int, topic: str = "#", name: str = "subscriber") -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.messages: list[tuple[str, str, bool]] = []
        self.changed = threading.Condition()
        self._subscribed = threading.Event()
        client = Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        client.reconnect_delay_set(0.05, 0.1)
        client.on_connect = lambda *_: client.subscribe(topic, 1)
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._note
        client.connect("127.0.0.1", port)
        client.loop_start()
        self._client = client
        assert self._subscribed.wait(WAIT_S)

    def _note(self, _client: Any, _data: Any, message: Any) -> None:
        with self.changed:
            self.messages.append((message.topic, message.payload.decode(), message.retain))
            self.changed.notify_all()

    def of(self, topic: str) -> list[str]:
        """Return the payloads of a topic in their order."""
        return [payload for name, payload, _ in self.messages if name == topic]

    def indices(self, topic: str) -> list[int]:
        """Return the indices of the frames of a topic, each once, in the order of arrival."""
        return list(dict.fromkeys(json.loads(payload)["index"] for payload in self.of(topic)))

    def wait_for(self, topic: str, payload: str | None = None, count: int = 1) -> None:
        """Wait for so many messages of a topic, or for one with this payload."""

        def is_there() -> bool:
            payloads = self.of(topic)
            if payload is not None:
                return payload in payloads
            return len(set(payloads)) >= count

        with self.changed:
            assert self.changed.wait_for(is_there, WAIT_S), self.messages[-3:]

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()
