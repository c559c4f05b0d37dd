"""The flags that say which good images of a data set are trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from flawline.runtime.command_parser import path_argument
from flawline.train import TrainError
from flawline.train.data.exclusion import FLAG, read_exclusion_list
from flawline.train.doubtful.files import DoubtfulFiles


def add_exclusion_argument(parser: argparse._ActionsContainer) -> None:
    """Add --exclude-images, which `excluded_of` reads."""
    parser.add_argument(
        FLAG,
        type=path_argument,
        metavar="FILE",
        help="leave out the good images that this file lists, and copies of them: one path per "
        "line, below the folder of --data or absolute; lines that begin with # are comments",
    )


def add_doubtful_argument(parser: argparse._ActionsContainer) -> None:
    """Add --doubtful and --no-doubtful, which `lists_doubtful` reads."""
    parser.add_argument(
        "--doubtful",
        action=argparse.BooleanOptionalAction,
        help="list the good images that the others do not support, before the training, next to "
        f"the checkpoint; default: where {FLAG} is not given",
    )


def excluded_of(args: argparse.Namespace, data: Path) -> tuple[str, ...]:
    """Return the content hashes of the images that the flag leaves out. Raises DataError."""
    # Not every command has the flag.
    file: Path | None = getattr(args, "exclude_images", None)
    if file is None:
        return ()
    from flawline.train.data import open_data

    return read_exclusion_list(file, open_data(data))


def lists_doubtful(args: argparse.Namespace, checkpoint: Path) -> bool:
    """Whether doubtful images are looked for, and listed next to the checkpoint.

    Raises TrainError if the list would replace the one that --exclude-images names.
    """
    file: Path | None = args.exclude_images
    if args.doubtful is None:
        return file is None
    if args.doubtful and file is not None:
        written = DoubtfulFiles(checkpoint).list
        if written.resolve() == file.resolve():
            raise TrainError(
                f"{FLAG} {file}: would be replaced by the new list of doubtful images; give a copy "
                f"of it under another name, or leave --doubtful out"
            )
    return bool(args.doubtful)
