"""The flag of commands that read a bundle: which keys are trusted."""

from __future__ import annotations

import argparse
from pathlib import Path

from flawline.runtime.command_parser import path_argument
from flawline.runtime.signing.keys import TrustedKeys, read_trusted


def add_trusted_argument(parser: argparse._ActionsContainer) -> None:
    """Add the flag --trusted-key; `trusted_keys` reads it."""
    parser.add_argument(
        "--trusted-key",
        action="append",
        type=path_argument,
        metavar="FILE",
        help="accept only a bundle that was signed with the private key of this public key, by "
        "flawline sign; repeat for several",
    )


def trusted_keys(args: argparse.Namespace) -> TrustedKeys | None:
    """Return the keys of the flag; None if it was not given. Raises SigningError."""
    paths: list[Path] = args.trusted_key or []
    return read_trusted(paths)
