"""A network camera whose packets get lost, in a network of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs the video extra")

from fakes.rtsp import missing

TESTS = Path(__file__).resolve().parents[1]
LONGEST_S = 120.0


def require_network() -> None:
    """Skip the test where no network with losses can be made."""
    for program in ("unshare", "ip", "iptables"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}; apt install iproute2 iptables util-linux")
    rule = "INPUT -p udp -m statistic --mode random --probability 0.03 -j DROP"
    command = ["unshare", "-n", "iptables", "-A", *rule.split()]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"needs root and iptables with statistic ({made.stderr.strip()})")


@pytest.mark.slow
def test_lost_packets_give_no_half_decoded_frame() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    require_network()
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"}
    done = subprocess.run(
        ["unshare", "-n", sys.executable, str(TESTS / "fakes" / "rtsp_loss.py")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    seen = json.loads(done.stdout)
    # Over UDP, damaged frames are left out, and those after a frame that was lost as a whole.
    assert seen["udp"]["corrupt"] > 20
    assert seen["udp"]["torn"] <= 0.01 * seen["udp"]["taken"]
    # Over TCP, which is the default, what is lost is sent again.
    assert seen["tcp"]["corrupt"] == seen["tcp"]["torn"] == 0
    assert min(seen["udp"]["taken"], seen["tcp"]["taken"]) > 50
