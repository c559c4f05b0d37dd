"""Commands and scripts of the README and the pages of tasks run as written, in their order."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import tomllib

from flawline.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("train", "export", "runtime", "cameras", "benchmarks")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("README.md", "docs/stream.md", "docs/python.md", "docs/benchmarks.md", "docs/server.md")
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
# CI itself runs the make targets, and every installation runs pip.
NOT_RUN = [
    "make demo",
    "make test",
    'pip install ".[train]"',
    "pip install .",
    'pip install ".[video]"',
    'make bench-train DATA="/data/bottle /data/tiles" WEIGHTS=imagenet',
    "make bench",
]
# Flags of pip, venv and make lines.
FLAGS_OF_OTHER_PROGRAMS = (
    "--index-url",
    "--system-site-packages",
    "--gpus",
    "--runtime",
    "--device",
    "--group-add",
    "--restart",
)


def blocks(language: str) -> list[str]:
    found = []
    for name in RUN:
        text = (ROOT / name).read_text(encoding="utf-8")
        found += re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


def commands() -> list[str]:
    """The lines of all shell blocks, without their comments, each once."""
    found = []
    for block in blocks("sh"):
        for line in block.splitlines():
            command = line.split("   #")[0].strip()
            if command and command not in found:
                found.append(command)
    return found


def scripts() -> list[str]:
    return list(dict.fromkeys(blocks("python")))


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
    write_demo(folder, products=["metal"], train_good=10, test_good=2, per_defect=1, size=96)
    (folder / "metal").rename(folder / "DATA")
    (folder / "good-parts").mkdir()
    for seed in range(99):
        image, _mask = render("metal", None, 1000 + seed, size=96)
        data = cv2.imencode(".png", image)[1].tobytes()
        (folder / "good-parts" / f"{seed:02d}.png").write_bytes(data)
    for package in PACKAGES:
        (folder / package).symlink_to(ROOT / package)
    return folder


def run_script(script: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"


@pytest.mark.torch
def test_the_commands_and_scripts_run_as_written(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands run in this process; test_packaging.py runs the installed program."""
    monkeypatch.chdir(checkout)
    ran = []
    for command in commands():
        if command in NOT_RUN:
            continue
        words = shlex.split(command)
        if words[:2] == ["flawline", "train"]:
            # The only change: no download, small images and three steps instead of minutes.
            words += ["--weights", "random", "--size", "64", "--steps", "3"]
        if words[:2] == ["flawline", "choose"]:
            # One method that is fitted in one pass, with a budget for any machine.
            words += ["--methods", "padim", "--weights", "random", "--budget-ms", "100000"]
            words += ["--engine", "onnxruntime", "--precision", "fp32"]
        assert words[0] == "flawline"
        assert main(words[1:]) == 0, command
        ran.append(command)
    assert len(ran) >= 9
    assert (checkout / "results" / "fps-auroc.svg").stat().st_size > 1000
    assert (checkout / "results" / "run.md").read_text().count("|") > 20
    assert len(list((checkout / "judged").iterdir())) == 2 + 4
    assert scripts()
    for script in scripts():
        run_script(script, checkout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_exists(page: Path) -> None:
    sources = ""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            sources += path.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for option in FLAGS_OF_OTHER_PROGRAMS:
        text = text.replace(option, "")
    for flag in set(re.findall(r"(?<!-)(--[a-z][a-z-]+)", text)):
        # The flag of a method is the name of a field of its settings.
        field = flag[2:].replace("-", "_")
        assert f'"{flag}"' in sources or f"{field}: " in sources, flag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_image_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        assert (page.parent / target).exists(), target


def test_the_steps_on_a_jetson_have_the_flags_of_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = re.findall(r"^\.venv/bin/flawline (.+)$", INSTALL, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["build", "calibrate", "stream"]
    for line in lines:
        name, *words = shlex.split(line)
        with pytest.raises(SystemExit):
            main([name, "--help"])
        help_text = capsys.readouterr().out
        for word in words:
            if word.startswith("--"):
                assert word in help_text, word


def test_the_page_of_installation_lists_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"]) - {"dev"}
    rows = re.findall(r"^\| (`[a-z0-9`, ]+`) \|", INSTALL, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"[a-z0-9]+", row)} == extras
