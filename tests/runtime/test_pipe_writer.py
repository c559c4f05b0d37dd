"""Writing to a pipe whose reader is slow, has stopped to read, or is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from array import array
from collections.abc import Iterator
from fcntl import ioctl

import pytest
from fakes.live_camera import WAIT_S

from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import pipe_writer
from flawline.runtime.outputs.pipe_writer import PipeWriter, is_pipe

# More than a pipe holds.
DATA = bytes(range(256)) * 2000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def waiting_bytes(descriptor: int) -> int:
    """Return how many bytes wait in a pipe."""
    count = array("i", [0])
    ioctl(descriptor, termios.FIONREAD, count)
    return count[0]


def wait_until_full(descriptor: int) -> None:
    """Wait until nothing more is written to a pipe that holds at least 32 KB."""
    end = time.monotonic() + 6 * WAIT_S
    before = 0
    while True:
        time.sleep(0.3)
        now = waiting_bytes(descriptor)
        if now == before and now > 32_000:
            return
        before = now
        assert time.monotonic() < end


@pytest.mark.parametrize("blocking", [True, False])
def test_everything_arrives_in_order_however_slow_the_reader_is(
    blocking: bool, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    os.set_blocking(writing, blocking)
    writer = PipeWriter(writing)
    thread = threading.Thread(target=writer.write, args=(DATA,), daemon=True)
    thread.start()
    found = b""
    while len(found) < len(DATA):
        found += os.read(reading, 30_000)
    thread.join(WAIT_S)
    assert found == DATA


def test_the_end_of_the_stream_limits_the_wait(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_writer, "END_S", 0.05)
    reading, writing = pipe
    writer = PipeWriter(writing)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            writer.write(DATA)
        except TimeoutError as error:
            failures.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    wait_until_full(reading)
    assert not failures
    writer.stop_waiting()
    thread.join(WAIT_S)
    assert len(failures) == 1


def test_a_reader_that_is_gone_is_a_broken_pipe(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        PipeWriter(writing).write(b"line\n")


def test_what_may_block_is_known(pipe: tuple[int, int]) -> None:
    assert is_pipe(pipe[1])
    with open(__file__) as file:
        assert not is_pipe(file.fileno())


def test_a_reader_that_reads_nothing_does_not_delay_the_end_of_the_stream(bundle: Bundle) -> None:
    camera = "synthetic://?fps=500&width=64&height=48"
    command = [sys.executable, "-m", "flawline.runtime.infer_stream", "--bundle", str(bundle.path)]
    with subprocess.Popen(
        [*command, "--camera", camera],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_until_full(process.stdout.fileno())
        process.send_signal(signal.SIGTERM)
        assert process.wait(6 * WAIT_S) == 2
        err = process.stderr.read()
        out = process.stdout.read()
    last = err.splitlines()[-1]
    assert last == (
        "flawline stream: output jsonl: the stream was to end, and nothing reads stdout, so that "
        "lines are lost; end its reader, or choose another output"
    )
    assert "Traceback" not in err
    # What was written before are whole lines, but for the last one.
    *lines, _ = out.split("\n")
    assert [json.loads(line)["verdict"] for line in lines]
