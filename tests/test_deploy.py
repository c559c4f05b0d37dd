"""The Dockerfiles: small images of fixed versions, which do not run as root and report health."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
PINNED = re.compile(r"[\w./-]+:[\w.-]*\d[\w.-]*")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return each instruction of a Dockerfile with its arguments."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        name, _, arguments = line.strip().partition(" ")
        if name:
            found.append((name, arguments.strip()))
    return found


def arguments_of(path: Path, name: str) -> list[str]:
    return [arguments for kind, arguments in instructions(path) if kind == name]


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.suffix for path in FILES] == [".cpu", ".cuda", ".jetson"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin")
    if program is None:
        pytest.skip("needs hadolint")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_base_has_a_version(path: Path) -> None:
    defaults = dict(argument.split("=", 1) for argument in arguments_of(path, "ARG"))
    bases = arguments_of(path, "FROM")
    assert len(bases) == 2, "one stage builds, and the other one runs"
    for base in bases:
        image = base.split()[0]
        for name, value in defaults.items():
            image = image.replace(f"${{{name}}}", value)
        assert PINNED.fullmatch(image), image


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_runs_as_a_user_of_its_own_with_a_check_of_its_health(path: Path) -> None:
    names = [name for name, _ in instructions(path)]
    last_stage = names[len(names) - 1 - names[::-1].index("FROM") :]
    assert last_stage.count("USER") == 1
    assert int(arguments_of(path, "USER")[0]) >= 1000
    (check,) = arguments_of(path, "HEALTHCHECK")
    (command,) = arguments_of(path, "CMD")
    # The file that the stream renews is the one that is looked at.
    (alive,) = re.findall(r'"--alive", "([^"]+)"', command)
    assert alive in check
    assert "--start-period=" in check


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_not_ignored(path: Path) -> None:
    kept = [
        line.removeprefix("!").strip()
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = set()
    for arguments in arguments_of(path, "COPY"):
        if not arguments.startswith("--from="):
            copied.update(arguments.split()[:-1])
    assert copied == set(kept)
    for name in copied:
        assert (ROOT / name).exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_extra_exists(path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', path.read_text())
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), extra


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES[:1], ids=lambda path: path.name)
def test_the_image_is_built_and_runs(path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode != 0:
        pytest.skip("needs a running Docker")
    tag = "flawline-test"
    subprocess.run([docker, "build", "-f", str(path), "-t", tag, str(ROOT)], check=True)
    run = [docker, "run", "--rm", tag, "doctor", "--only", "engines", "--json"]
    assert subprocess.run(run, check=False).returncode == 0
