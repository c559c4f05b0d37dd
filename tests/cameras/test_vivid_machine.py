"""The tests of test_vivid.py in a virtual machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fakes.machine import require_machine, run_in_machine

ROOT = Path(__file__).resolve().parents[2]
# Without help of the processor, the machine is slow.
LONGEST_S = 900.0


@pytest.mark.slow
def test_usb_cameras_in_a_machine_that_has_one(tmp_path: Path) -> None:
    require_machine()
    paths = ":".join(path for path in sys.path if path.endswith("site-packages"))
    command = (
        f"cd {ROOT} && PYTHONPATH={ROOT}/src:{paths} PYTHONDONTWRITEBYTECODE=1 TMPDIR=/run "
        f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 OMP_NUM_THREADS=1 {sys.executable} -m pytest -q -s "
        f"--color=no -p no:cacheprovider tests/cameras/test_vivid.py --durations=3"
    )
    status, output = run_in_machine(tmp_path, command, LONGEST_S)
    assert status == 0, output
    assert " passed" in output
    assert "skipped" not in output
    print(output)
