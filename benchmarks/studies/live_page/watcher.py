"""The requests of a browser without a browser, which would take the CPU that is measured.

    python -m flawline.benchmarks.studies.live_page.watcher PORT

It reads the events of the page and asks for a picture when there is another frame, as the page's
script does, until it is ended. It computes nothing, because a browser is on another machine.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time

PAUSE_S = 0.15  # as the page's script pauses between two pictures
TIMEOUT_S = 30.0


def watch(port: int) -> None:
    """Watch the page of this port until the process is ended."""
    newest: dict[str, int] = {}
    threading.Thread(target=_fetch, args=(port, newest), daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("GET", "/api/events")
    response = connection.getresponse()
    name = b""
    while line := response.readline():
        key, _, value = line.strip().partition(b": ")
        if key == b"event":
            name = value
        elif key == b"data" and name == b"state":
            for lane in json.loads(value)["lanes"]:
                if lane["shown"] is not None:
                    newest[lane["name"]] = lane["shown"]["number"]
            # The measurement begins with the first one.
            print(flush=True)


def _fetch(port: int, newest: dict[str, int]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    fetched: dict[str, int] = {}
    while True:
        for name, number in list(newest.items()):
            if fetched.get(name) != number:
                connection.request("GET", f"/api/lanes/{name}/picture")
                connection.getresponse().read()
                fetched[name] = number
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
