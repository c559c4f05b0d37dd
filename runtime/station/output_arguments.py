"""The flags of flawline stream that say where verdicts and images go, and who may see them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from flawline.runtime import outputs
from flawline.runtime.bundle import Bundle
from flawline.runtime.command_parser import path_argument, text_argument
from flawline.uris import folder_of, quote_path


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `open_outputs` opens what they ask for."""
    parser.add_argument(
        "--output",
        action="append",
        type=text_argument,
        metavar="NAME:TARGET",
        help=f"{outputs.usages()}; repeat for several; default {outputs.DEFAULT_OUTPUT}; "
        f"%%3F stands for a question mark in TARGET",
    )
    parser.add_argument(
        "--save", type=path_argument, metavar="DIR", help="short for --output overlays:DIR"
    )
    parser.add_argument(
        "--save-rejected",
        type=path_argument,
        metavar="DIR",
        help="like --save, for anomalous and unjudged frames and those for review only",
    )
    parser.add_argument(
        "--web",
        type=text_argument,
        metavar="ADDRESS[:PORT]",
        help="serve a page that shows the stream in a browser, such as 127.0.0.1:8080; short for "
        "--output web:ADDRESS",
    )
    parser.add_argument(
        "--web-token-file",
        type=path_argument,
        metavar="FILE",
        help="the file with the token that opens the page; needed for an address that other "
        "machines can reach",
    )


def check_output_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse a flag that is without effect."""
    if args.web_token_file is not None and args.web is None:
        parser.error("--web-token-file needs --web")


def open_outputs(args: argparse.Namespace, bundle: Bundle) -> Iterator[outputs.Output]:
    """Open the outputs that the flags, or a station file, ask for. Raises OutputError."""
    folders = [folder for folder in map(folder_of, args.camera) if folder is not None]
    for description in _outputs(args):
        yield outputs.open_output(description, bundle, *folders)


def _outputs(args: argparse.Namespace) -> list[str]:
    """Return the descriptions of the outputs that the flags ask for."""
    descriptions = list(args.output or [outputs.DEFAULT_OUTPUT])
    if args.save is not None:
        descriptions.append(f"overlays:{quote_path(args.save)}")
    if args.save_rejected is not None:
        descriptions.append(f"overlays:{quote_path(args.save_rejected)}?frames=rejected")
    if args.web is not None:
        token = ""
        if args.web_token_file is not None:
            token = f"?token_file={quote_path(args.web_token_file)}"
        descriptions.append(f"web:{args.web}{token}")
    return descriptions
