"""The provenance of a bundle that was built from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flawline.runtime.provenance import public_command as public_command
from flawline.runtime.provenance import with_command, without_folders
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
    provenance["data"] = data_name(data)
    return with_command(provenance, "export.build", command)


def trained_bit_depth(provenance: Mapping[str, str]) -> int:
    """Return the bit depth of the training images, which a checkpoint need not state; default 8."""
    text = provenance.get("bits")
    if text is None or not text.isdecimal():
        return 8
    return int(text)
