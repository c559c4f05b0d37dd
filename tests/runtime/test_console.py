"""All commands end in the same way: one line for an error, exit status 2, no traceback."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flawline import FlawlineError
from flawline.extras import install_command
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import (
    first_line,
    last_line,
    log,
    printable,
    run_command,
)
from flawline.runtime.environment import OPENCV_WHEELS, PACKAGES, opencv_conflict, versions
from flawline.runtime.strict_json import LONGEST_QUOTE
from flawline.runtime.timing import time_calls


class TooHotError(FlawlineError):
    exit_code = 7


def raiser(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FlawlineError("no parts; add some"), 2, "x: no parts; add some"),
        (TooHotError("too hot; wait"), 7, "x: too hot; wait"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            f"x: needs torch; run: {install_command('train')}",
        ),
        (
            ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper"),
            2,
            f"x: needs onnx; run: {install_command('train')}",
        ),
        (
            OSError(28, "No space left on device", "out.json"),
            2,
            "x: out.json: No space left on device; free disk space",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "in.json"),
            2,
            "x: in.json: No such file or directory; check the path",
        ),
        (
            PermissionError(13, "Permission denied", "out.json"),
            2,
            "x: out.json: Permission denied; check the permissions",
        ),
        (
            OSError(5, "Input/output error"),
            2,
            "x: output cannot be written (Input/output error); "
            "check the path, its permissions and the free disk space, or choose another output",
        ),
        (
            MemoryError(),
            2,
            "x: there is too little memory (MemoryError); "
            "close other programs, or use smaller images or batches",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to\n more"),
            2,
            "x: there is too little memory "
            "(DefaultCPUAllocator: can't allocate memory: you tried to); "
            "close other programs, or use smaller images or batches",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            2,
            "x: there is too little memory (CUDA out of memory. Tried to allocate 2 GiB); "
            "close other programs, or use smaller images or batches",
        ),
        (KeyboardInterrupt(), 130, "stopped by you"),
    ],
)
def test_failures_become_one_line_and_an_exit_status(
    error: BaseException, code: int, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command("x", raiser(error), interrupted="stopped by you") == code
    assert capfd.readouterr().err.splitlines() == [line]


def test_an_import_that_ctrl_c_ended_is_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    # As pybind11 raises it from the initialisation of a module.
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    assert run_command("x", raiser(error), interrupted="stopped by you") == 130
    assert capfd.readouterr().err == "stopped by you\n"


def test_a_name_with_line_breaks_stays_in_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    log("wrote a\nb\rc.pt")
    assert capfd.readouterr().err == "wrote a\\nb\\rc.pt\n"


def test_the_result_of_the_work_is_the_exit_status() -> None:
    assert run_command("x", lambda: None) == 0
    assert run_command("x", lambda: 3) == 3


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        RuntimeError("shapes differ"),
        ModuleNotFoundError("no", name="flawline.absent"),
    ],
)
def test_bugs_are_not_hidden(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_command("x", raiser(error))


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_a_path_that_stdout_cannot_encode_is_printed_with_escapes(encoding: str) -> None:
    code = (
        "from flawline.runtime.console import run_command;"
        "raise SystemExit(run_command('x', lambda: print('t\\xf6pfe \\udcff')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"),
            "PYTHONIOENCODING": encoding,
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(b"pfe \\udcff")


def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="x")
    parser.add_argument("--size", type=int)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--size", "big"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "x: argument --size: invalid int value: 'big'; see x --help"


def test_long_messages_of_libraries_are_cut_to_one_line() -> None:
    assert first_line("\n  first \nsecond") == "first"
    assert last_line(RuntimeError("somewhere.cpp:7\nthe reason\n")) == "the reason"
    assert first_line(RuntimeError()) == "RuntimeError"
    assert first_line("") == "no reason given"
    assert len(first_line("x" * 1000)) == LONGEST_QUOTE + len("...")
    assert first_line("a name with \x1b[31m\t") == "a name with \\x1b[31m"


# ---------------------------------------------------------------- environment


def test_versions_name_every_library_that_shapes_the_numbers() -> None:
    installed = versions()
    assert {"flawline", "python", "machine", "numpy", "onnxruntime"} <= installed.keys()
    assert set(OPENCV_WHEELS) & installed.keys()
    named = {"tensorrt", "cuda-bindings", "pycuda", "openvino", "torch", "onnx", "timm", "FrEIA"}
    assert named <= set(PACKAGES)


def test_two_opencv_wheels_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opencv_conflict() is None
    monkeypatch.setattr(
        "flawline.runtime.environment._version",
        lambda name: "4.8" if name.startswith("opencv-python") else None,
    )
    message = opencv_conflict() or ""
    assert "2 OpenCV wheels" in message
    assert "pip uninstall -y opencv-python-headless opencv-python" in message


def test_the_public_names_are_imported_without_any_engine() -> None:
    code = (
        "import sys, flawline.runtime as r; assert all(hasattr(r, n) for n in r.__all__);"
        "print([m for m in ('onnxruntime', 'openvino', 'torch', 'tensorrt') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- timing


def test_calls_are_timed_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += 0.5

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert time_calls(call, warm_up=2, repeats=3) == [500.0] * 3
    assert now == 2.5
    assert time_calls(call, warm_up=0, seconds=1.2) == [500.0] * 3
    assert time_calls(call, seconds=0.0) == [500.0]


def test_calls_are_limited_by_repeats_or_by_seconds() -> None:
    with pytest.raises(ValueError, match="either repeats or seconds"):
        time_calls(lambda: None)
    with pytest.raises(ValueError, match="either repeats or seconds"):
        time_calls(lambda: None, repeats=1, seconds=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ü 良", "plain ü 良"),
        (os.fsdecode(b"\xc1\xbc.png"), "\\xc1\\xbc.png"),
        ("\ud800", "\\ud800"),
    ],
)
def test_any_file_name_becomes_valid_unicode(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_stdout_cannot_encode_is_escaped(encoding: str) -> None:
    code = (
        "import os\n"
        "from flawline.runtime.console import run_command\n"
        "name = os.fsdecode(bytes([0xC1])) + chr(0x826F)\n"
        "raise SystemExit(run_command('x', lambda: print(name)))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"\\udcc1")


def test_an_empty_path_is_not_the_current_folder() -> None:
    assert path_argument("x") == Path("x")
    with pytest.raises(argparse.ArgumentTypeError, match="is empty"):
        path_argument("")


# ---------------------------------------------------------------- closed streams and signals


def shell(code: str, streams: str) -> subprocess.CompletedProcess[str]:
    """Run code with `run_command` imported in a shell, its streams redirected."""
    imports = "from flawline.runtime.console import *; import sys, os"
    imports += "; from flawline.runtime.command_parser import Parser"
    text = f"{imports}; {code}"
    return subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -c {shlex.quote(text)} {streams}; echo ${{PIPESTATUS[0]}}",
        ],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("streams", "out"),
    [
        (">&-", "0\n"),
        ("2>&-", "result\n0\n"),
        ("<&- >&- 2>&-", "0\n"),
        ("| head -n 0", "0\n"),
        ("2>/dev/full", "result\n0\n"),
        (">/dev/full", "2\n"),
        ("2> >(true)", "result\n0\n"),
    ],
)
def test_closed_streams_end_cleanly(streams: str, out: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    work = (
        "def work():\n print('result'); log('a'); sys.stderr.isatty()\n"
        " for _ in range(9): print('bar', file=sys.stderr, flush=True)"
    )
    code = f"exec({work!r}); sys.exit(run_command('x', work))"
    done = shell(code, streams)
    assert done.stdout == out
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_file_never_takes_the_descriptor_of_a_closed_stdout(tmp_path: Path) -> None:
    path = tmp_path / "file"
    work = f"def work(): file = open({str(path)!r}, 'w'); os.write(1, b'noise'); print('lost')"
    done = shell(f"exec({work!r}); sys.exit(run_command('x', work))", ">&- 2>&-")
    assert done.stdout == "0\n"
    assert path.read_bytes() == b""


def test_help_into_a_closed_pipe_is_no_error() -> None:
    done = shell("Parser(prog='x').parse_args(['--help'])", "| head -n 0")
    assert done.stdout == "0\n"
    assert not done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_ends_the_work_as_ctrl_c_does(number: signal.Signals) -> None:
    # In a process of its own: a signal crashes one in which OpenVINO has closed several engines.
    work = f"def work(): os.kill(os.getpid(), {int(number)}); import time; time.sleep(10)"
    done = shell(f"exec({work!r}); sys.exit(run_command('x', work, interrupted='stopped'))", "")
    assert done.stderr == "stopped\n"
    assert done.stdout == f"{128 + number}\n"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "run_command('x', lambda: print(repr(signal.getsignal(signal.SIGHUP))))"
    )
    assert "SIG_IGN" in shell(code, "").stdout


def test_a_command_runs_in_any_thread() -> None:
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_command("x", lambda: 3)))
    thread.start()
    thread.join()
    assert codes == [3]
