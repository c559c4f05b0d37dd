"""Functions that are called in a process of their own, which may crash or block."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from flawline.runtime.isolated import CallFailed, IsolatedProcess

HERE = __name__
# Enough for the process to start on a busy machine.
LIMIT_S = 60.0


def add(a: int, b: int) -> int:
    print("what a library prints is no answer")
    return a + b


def number_of_the_process() -> int:
    return os.getpid()


def fail() -> None:
    raise ValueError("first line\nsecond line")


def crash() -> None:
    print("about to crash", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    time.sleep(LIMIT_S)


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process import this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_calls_are_made_in_one_process_after_which_it_is_gone() -> None:
    with IsolatedProcess() as process:
        assert process.call(f"{HERE}:add", 1, 2, limit_s=LIMIT_S) == 3
        first = process.call(f"{HERE}:number_of_the_process", limit_s=LIMIT_S)
        assert first == process.call(f"{HERE}:number_of_the_process", limit_s=LIMIT_S)
        assert first != os.getpid()
        with pytest.raises(CallFailed, match=r"^failed: ValueError: first line$"):
            process.call(f"{HERE}:fail", limit_s=LIMIT_S)
        with pytest.raises(CallFailed, match="failed: ModuleNotFoundError"):
            process.call("no_such_module:f", limit_s=LIMIT_S)
        assert process.call(f"{HERE}:number_of_the_process", limit_s=LIMIT_S) == first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_call_that_crashes_ends_or_hangs_is_reported_and_the_next_one_is_made() -> None:
    with IsolatedProcess() as process:
        with pytest.raises(CallFailed, match=r"^was ended by SIGKILL \(about to crash\)$"):
            process.call(f"{HERE}:crash", limit_s=LIMIT_S)
        with pytest.raises(CallFailed, match=r"^ended its process with status 3$"):
            process.call(f"{HERE}:leave", limit_s=LIMIT_S)
        assert process.call(f"{HERE}:add", 1, 2, limit_s=LIMIT_S) == 3
        with pytest.raises(CallFailed, match=r"^gave no answer within 0.2 s$"):
            process.call(f"{HERE}:hang", limit_s=0.2)
        assert process.call(f"{HERE}:add", 3, 4, limit_s=LIMIT_S) == 7
