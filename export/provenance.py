"""The provenance of a bundle. A bundle is shipped, so it names no private folder."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from flawline.runtime.console import printable
from flawline.runtime.environment import versions
from flawline.train.data import data_name


def bundle_provenance(
    training: Mapping[str, str], data: Path, command: Sequence[str]
) -> dict[str, str]:
    """Return the provenance that a manifest stores: training, data, time, command and versions.

    Args:
        training: the provenance of the checkpoint; its keys get the prefix "train_".
        data: the data set that the bundle was built on.
        command: the arguments of the command that builds the bundle.
    """
    provenance = {}
    for key, value in training.items():
        provenance[f"train_{key}"] = without_folders(value)
    now = datetime.datetime.now(datetime.timezone.utc)
    provenance["data"] = data_name(data)
    provenance["built"] = now.isoformat(timespec="seconds")
    provenance["command"] = public_command("export.build", command)
    provenance.update(versions())
    for key, value in provenance.items():
        provenance[key] = printable(value)
    return provenance


def public_command(module: str, words: Sequence[object]) -> str:
    """Return a command line that shows how to repeat a result, but not where files are stored."""
    public = ["python", "-m", module]
    for word in words:
        public.append(without_folders(str(word)))
    return shlex.join(public)


def without_folders(word: str) -> str:
    """Reduce a path, or a flag with a path, to its last component.

    For example, "--data=/home/me/part" becomes "--data=part".
    """
    flag = ""
    value = word
    if word.startswith("--") and "=" in word:
        flag, _, value = word.partition("=")
        flag += "="
    if "/" not in value:
        return word
    return flag + PurePath(value).name


def trained_bit_depth(provenance: Mapping[str, str]) -> int:
    """Return the bit depth of the training images, which a checkpoint need not state; default 8."""
    text = provenance.get("bits")
    if text is None or not text.isdecimal():
        return 8
    return int(text)
