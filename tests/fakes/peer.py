"""The other side of benchmarks.peers without a library: `peer.py MODE`, see `theirs.py serve`.

It judges an image by the length of its file. MODE is good, or what is wrong with it.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(mode: str) -> None:
    if mode == "dies at once":
        sys.exit("it has no library")
    if mode == "silent":
        time.sleep(60)
    say({"ready": {"library": "fake 1.0", "inferencer": "Fake", "precision": "fp32"}})
    for line in sys.stdin:
        request = json.loads(line)
        size = os.path.getsize(request["path"])
        answer = {"score": float(size), "milliseconds": [2.0 + size / 1e6] * request["repeats"]}
        if mode == "dies":
            sys.exit("it ran out of memory")
        if mode == "fails":
            answer = {"error": "ValueError: wrong size"}
        if mode == "not finite":
            answer["score"] = float("nan")
        if mode == "few times":
            answer["milliseconds"] = []
        if mode == "no score":
            del answer["score"]
        if mode == "no json":
            print("hello", flush=True)
            continue
        say(answer)


def say(content: object) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
