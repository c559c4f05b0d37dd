"""The facts about the machine of a measurement, from nvidia-smi and the files of a Jetson."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from flawline.benchmarks.measure import machine
from flawline.benchmarks.measure.machine import describe_machine, gpus, machine_facts

LINE = "NVIDIA RTX A2000, 570.86.10, 6138 MiB, 1185 MHz, 2100 MHz, 70.00 W, 54"
FOLLOWING = "Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A], [N/A], 47"


def write_nvidia_smi(folder: Path, body: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_the_facts_of_each_gpu_without_those_that_it_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    write_nvidia_smi(tmp_path, f"echo \"$1\" >{tmp_path}/asked\necho '{LINE}'\necho '{FOLLOWING}'")
    first, second = gpus()
    assert first == {
        "name": "NVIDIA RTX A2000",
        "driver": "570.86.10",
        "memory": "6138 MiB",
        "clock": "1185 MHz",
        "highest clock": "2100 MHz",
        "power limit": "70.00 W",
        "temperature in °C": "54",
    }
    assert second == {
        "name": "Orin (nvgpu)",
        "driver": "540.4.0",
        "temperature in °C": "47",
    }
    asked = (tmp_path / "asked").read_text()
    assert asked.count(",") == LINE.count(",")
    page = describe_machine({"cpu": "C", "gpus": [first]})
    assert page.splitlines()[0] == "- CPU: C"
    assert page.splitlines()[1].startswith("- GPU: NVIDIA RTX A2000, driver 570.86.10, memory")


@pytest.mark.parametrize("body", ["echo 'NVIDIA-SMI has failed'; exit 9", "echo 'No devices'"])
def test_a_driver_that_does_not_answer_has_no_gpus(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    write_nvidia_smi(tmp_path, body)
    assert gpus() == []


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpus() == []


def test_the_board_and_the_clocks_of_a_jetson(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    facts = machine_facts(tmp_path)
    assert facts.pop("cpu")
    assert facts == {
        "gpus": [],
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "release": "R36 (release), REVISION: 4.3",
        "clock": "306 MHz",
        "highest clock": "624 MHz",
    }
    assert "- board: NVIDIA Jetson Orin Nano" in describe_machine({**facts, "cpu": "C"})


def test_another_machine_has_neither_board_nor_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    assert list(machine_facts(tmp_path)) == ["cpu", "gpus"]
