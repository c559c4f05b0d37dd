"""The pip command that adds an extra, for every kind of installation."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import tomllib

from flawline import extras
from flawline.extras import EXTRA_OF_PACKAGE, install_command
from flawline.runtime import environment
from flawline.runtime.engines import onnxruntime_cpu
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("origin", "arguments"),
    [
        ({}, "'flawline[train]'"),
        (
            {"url": "file:///a%20b/flawline", "dir_info": {"editable": True}},
            "-e '/a b/flawline[train]'",
        ),
        ({"url": "file:///src/flawline", "dir_info": {}}, "'/src/flawline[train]'"),
        (
            {"url": "file:///w/flawline-0.1.0-py3-none-any.whl", "archive_info": {}},
            "'flawline[train] @ file:///w/flawline-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://host/flawline.git", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "'flawline[train] @ git+https://host/flawline.git'",
        ),
        (
            {
                "url": "https://host/flawline.git",
                "vcs_info": {"vcs": "git", "commit_id": "0", "requested_revision": "v1"},
            },
            "'flawline[train] @ git+https://host/flawline.git@v1'",
        ),
    ],
)
def test_an_extra_comes_from_where_the_installation_came_from(
    origin: dict[str, Any], arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "_origin", lambda: origin)
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert install_command("train") == f"pip install {arguments}"


def test_pip_lines_of_single_packages_are_those_of_this_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setattr(onnxruntime_cpu, "version", _not_installed)
    line = f"{sys.executable} -m pip install"
    assert OnnxRuntime.missing() == f"{line} onnxruntime"
    monkeypatch.setattr(environment, "_version", lambda name: "1")
    conflict = environment.opencv_conflict() or ""
    assert f"run: {sys.executable} -m pip uninstall -y opencv-python-headless " in conflict
    assert conflict.endswith(f" && {line} opencv-python-headless")


def _not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


def test_no_message_has_a_pip_of_another_interpreter() -> None:
    for package in ("cameras", "runtime", "train", "export", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert not re.search(r"pip (un)?install", path.read_text(encoding="utf-8")), path


def test_pip_is_that_of_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_origin", dict)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert install_command("train") == f"{sys.executable} -m pip install 'flawline[train]'"


def test_metadata_of_a_checkout_does_not_hide_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "src"), str(tmp_path / "site")])
    for folder in ("src/flawline.egg-info", "site/flawline-0.1.0.dist-info"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("PKG-INFO", "METADATA"):
            (tmp_path / folder / name).write_text("Name: flawline\nVersion: 0.1.0\n")
    origin = {"url": "file:///src/flawline", "dir_info": {"editable": True}}
    (tmp_path / "site/flawline-0.1.0.dist-info/direct_url.json").write_text(json.dumps(origin))
    extras._origin.cache_clear()
    try:
        assert extras._origin() == origin
    finally:
        extras._origin.cache_clear()


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for package, extra in EXTRA_OF_PACKAGE.items():
        names = json.dumps(optional[extra]).replace("-", "_").casefold()
        assert f'"{package.casefold()}' in names
