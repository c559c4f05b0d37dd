"""Decode JPEG files in several threads while others write to stderr and while processes fork.

Run as a script, because it exchanges nothing less than the process's stderr. It prints one line for
each image that was judged wrongly, and writes numbered lines to stderr by the C library.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time

import cv2
import numpy as np

from flawline.cameras.formats import DecodeError
from flawline.cameras.formats.jpeg import decode_jpeg


def main(rounds: int) -> None:
    y, x = np.mgrid[:48, :64]
    image = ((x * y) % 256).astype(np.uint8)
    good = cv2.imencode(".jpg", image)[1].tobytes()
    middle = len(good) // 2
    bad = good[:middle] + good[middle + 40 :]
    stop = threading.Event()
    threads = []
    for data in (good, bad, good, bad):
        threads.append(threading.Thread(target=decode, args=(data, data is good, rounds)))
    writers = [threading.Thread(target=write, args=(number, stop)) for number in range(2)]
    for thread in [*threads, *writers]:
        thread.start()
    for _ in range(10):
        fork(good, bad)
    for thread in threads:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()


def decode(data: bytes, is_good: bool, rounds: int) -> None:
    for _ in range(rounds):
        if is_read(data) != is_good:
            print(f"wrong: a JPEG that is good: {is_good}", flush=True)


def is_read(data: bytes) -> bool:
    try:
        decode_jpeg(data)
    except DecodeError:
        return False
    return True


def write(number: int, stop: threading.Event) -> None:
    """Write numbered lines as a C library does, until `stop` is set."""
    library = ctypes.CDLL(None)
    library.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    stream = ctypes.c_void_p.in_dll(library, "stderr")
    count = 0
    while not stop.is_set():
        library.fputs(f"line {number} {count}\n".encode(), stream.value)
        count += 1
        time.sleep(0)
    print(f"lines {number} {count}", flush=True)


def fork(good: bytes, bad: bytes) -> None:
    process = os.fork()
    if process == 0:
        is_right = is_read(good) and not is_read(bad)
        os._exit(0 if is_right else 1)
    _, status = os.waitpid(process, 0)
    if status != 0:
        print("wrong: a child process", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
