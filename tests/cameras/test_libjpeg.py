"""libjpeg's reports of damage: recorded, and nothing that others write to stderr is lost."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.cameras.formats import libjpeg
from flawline.cameras.formats.libjpeg import recorded_reports

SCRIPT = Path(__file__).parent / "jpeg_threads.py"
READ_A_DAMAGED_FILE = """
import sys
from pathlib import Path
from flawline.cameras import CameraError
from flawline.cameras.decode import decode_image
if "full" in sys.argv[2:]:
    import resource
    from flawline.cameras.formats.libjpeg import reports_are_recorded
    reports_are_recorded()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    decode_image(Path(sys.argv[1]))
except CameraError as error:
    print(error)
"""


def damaged_jpeg() -> bytes:
    y, x = np.mgrid[:48, :64]
    data = cv2.imencode(".jpg", ((x * y) % 256).astype(np.uint8))[1].tobytes()
    return data[: len(data) // 2] + data[len(data) // 2 + 40 :]


def c_library() -> tuple[object, object]:
    """The C library and its variable `stderr`."""
    import ctypes

    name = libjpeg.VARIABLES[platform.libc_ver()[0] or platform.system()]
    library = ctypes.CDLL(None)
    library.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    library.fflush.argtypes = [ctypes.c_void_p]
    return library, ctypes.c_void_p.in_dll(library, name)


def test_threads_and_forks_get_right_verdicts_and_lose_no_line_on_stderr() -> None:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "100"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "wrong" not in run.stdout
    written = re.findall(r"line (\d) (\d+)", run.stderr)
    assert len(set(written)) == len(written)
    counts = re.findall(r"lines (\d) (\d+)", run.stdout)
    assert len(counts) == 2
    assert len(written) == sum(int(count) for _, count in counts)
    for number, count in counts:
        for line in range(int(count)):
            assert (number, str(line)) in written


def test_lines_of_others_are_passed_on_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    library, stream = c_library()
    with recorded_reports() as reports:
        library.fputs(b"one\nCorrupt JPEG data: bad Huffman code\n", stream.value)
        library.fputs(b"no end of line", stream.value)
    assert reports == ["Corrupt JPEG data: bad Huffman code"]
    assert capfd.readouterr().err == "one\nno end of line"


def test_an_exception_leaves_stderr_as_it_was() -> None:
    _, stream = c_library()
    before = stream.value
    with pytest.raises(KeyboardInterrupt), recorded_reports():  # noqa: PT012
        assert stream.value != before
        raise KeyboardInterrupt
    assert stream.value == before


@pytest.mark.parametrize("condition", ["", "closed", "full"])
def test_damage_is_noticed_without_stderr_and_without_space(tmp_path: Path, condition: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(damaged_jpeg())
    command = [sys.executable, "-c", READ_A_DAMAGED_FILE, str(path), condition]
    if condition == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.startswith(f"{path}: ")
    assert run.stdout.count("\n") == 1
    assert run.stderr == ""


def test_without_a_recorder_jpeg_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawline.cameras import CameraError
    from flawline.cameras.decode import decode_image

    path = tmp_path / "x.jpg"
    path.write_bytes(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes())
    monkeypatch.setattr(libjpeg, "_RECORDER", None)
    libjpeg.reports_are_recorded.cache_clear()
    try:
        with pytest.raises(CameraError, match="save the image as PNG"):
            decode_image(path)
    finally:
        libjpeg.reports_are_recorded.cache_clear()
