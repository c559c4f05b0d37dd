"""Every command of the README runs, in its order, in an empty folder, on a small data set."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
COMMANDS = [
    line.split("   #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()
]
# Tested elsewhere: by CI itself, and by every installation.
NOT_HERE = ("make ", "pip install ")


def test_what_is_not_run_here_is_known() -> None:
    assert [c for c in COMMANDS if c.startswith(NOT_HERE)] == [
        "make demo",
        "make test",
        'pip install ".[train]"',
        "pip install .",
    ]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"demo", "test"} <= targets


@pytest.mark.torch
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from flawline.train.data.demo import write_demo

    write_demo(tmp_path, products=["metal"], train_good=10, test_good=2, per_defect=1)
    (tmp_path / "metal").rename(tmp_path / "DATA")
    (tmp_path / "runtime").symlink_to(ROOT / "runtime")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = []
    for command in (c for c in COMMANDS if not c.startswith(NOT_HERE)):
        words = shlex.split(command)
        if words[:3] == ["python", "-m", "train.fit"]:
            # The only liberty: no download, small images and three steps instead of minutes.
            words += ["--weights", "random", "--size", "64", "--steps", "3"]
        words[0] = shutil.which(words[0], path=environment["PATH"]) or words[0]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran.append(words[1:3])
    assert len(ran) >= 6
    assert (tmp_path / "results" / "fps-auroc.svg").stat().st_size > 1000
    assert (tmp_path / "results" / "run.md").read_text().count("|") > 20
    assert len(list((tmp_path / "judged").iterdir())) == 2 + 4


def test_every_flag_the_readme_names_exists() -> None:
    sources = "".join(
        p.read_text()
        for folder in ("train", "export", "runtime", "benchmarks")
        for p in (ROOT / folder).glob("*.py")
    )
    flags = set(re.findall(r"(--[a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    assert not {f for f in flags if f'"{f}"' not in sources}
