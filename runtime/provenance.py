"""What a bundle says about how it was made. A bundle is shipped, so it names no private folder."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from flawline.runtime.console import printable
from flawline.runtime.environment import versions


def with_command(
    provenance: Mapping[str, str], module: str, words: Sequence[object]
) -> dict[str, str]:
    """Add to a provenance the time, the command that builds a bundle, and the versions.

    `words` are the arguments of the command `python -m module`. All values are valid Unicode.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    complete = {
        **provenance,
        "built": now.isoformat(timespec="seconds"),
        "command": public_command(module, words),
        **versions(),
    }
    return {key: printable(value) for key, value in complete.items()}


def how_taught(provenance: Mapping[str, str]) -> str | None:
    """Say from which bundle another one was taught, and with what; None if it was built."""
    source = provenance.get("taught_from")
    if source is None:
        return None
    facts = [f"taught from bundle {source}", provenance.get("train_good_images")]
    exempted = provenance.get("exempted_patches")
    if exempted is not None:
        facts.append(f"exempted patches: {exempted}")
    return ", ".join(fact for fact in facts if fact)


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
