"""Every command and script of the README runs, in its order, as written, on a small data set."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("train", "export", "runtime", "cameras", "benchmarks")
# CI itself runs the make targets, and every installation runs pip.
NOT_RUN = [
    "make demo",
    "make test",
    'pip install ".[train]"',
    "pip install .",
    'pip install ".[video]"',
]


def commands() -> list[str]:
    """The lines of all shell blocks, without their comments."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            if line.strip():
                found.append(line.split("   #")[0].strip())
    return found


def scripts() -> list[str]:
    """All Python blocks."""
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_commands_that_are_not_run_here_are_known() -> None:
    assert [command for command in commands() if command.startswith(("make ", "pip "))] == NOT_RUN
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the five packages, as a checkout has them, and small data.

    DATA is a data set, and good-parts has as many images as a false-alarm rate of 1 % takes.
    """
    pytest.importorskip("torch", reason="needs the train extra")
    from flawline.train.data.demo import render, write_demo

    folder = tmp_path_factory.mktemp("checkout")
    write_demo(folder, products=["metal"], train_good=10, test_good=2, per_defect=1)
    (folder / "metal").rename(folder / "DATA")
    (folder / "good-parts").mkdir()
    for seed in range(99):
        image, _mask = render("metal", None, 1000 + seed)
        data = cv2.imencode(".png", image)[1].tobytes()
        (folder / "good-parts" / f"{seed:02d}.png").write_bytes(data)
    for package in PACKAGES:
        (folder / package).symlink_to(ROOT / package)
    return folder


def run(words: Sequence[str], folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which(words[0], path=path) or words[0]
    done = subprocess.run(
        [program, *words[1:]],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"


@pytest.mark.torch
def test_the_commands_and_scripts_run_as_written(checkout: Path) -> None:
    ran = []
    for command in commands():
        if command in NOT_RUN:
            continue
        words = shlex.split(command)
        if words[:3] == ["python", "-m", "train.fit"]:
            # The only change: no download, small images and three steps instead of minutes.
            words += ["--weights", "random", "--size", "64", "--steps", "3"]
        run(words, checkout)
        ran.append(command)
    assert len(ran) >= 10
    assert (checkout / "results" / "fps-auroc.svg").stat().st_size > 1000
    assert (checkout / "results" / "run.md").read_text().count("|") > 20
    assert len(list((checkout / "judged").iterdir())) == 2 + 4
    assert scripts()
    for script in scripts():
        run(["python", "-c", script], checkout)


def test_every_flag_in_the_readme_exists() -> None:
    sources = ""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            sources += path.read_text(encoding="utf-8")
    for flag in set(re.findall(r"(--[a-z][a-z-]+)", README)):
        # The flag of a method is the name of a field of its settings.
        field = flag[2:].replace("-", "_")
        assert f'"{flag}"' in sources or f"{field}: " in sources, flag


def test_every_link_and_image_of_the_readme_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
