"""Set up a station as a service: `flawline-station init`, which asks nothing.

Also `flawline station init` and `python -m runtime.station.service init`.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flawline import FlawlineError
from flawline.cameras.connected import unique
from flawline.commands import PROGRAM, program_of
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.bundle import read_bundle
from flawline.runtime.bundle_files import require_bundle_folder
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import log, run_command, warn
from flawline.runtime.files import copy_folder, replace_folder, write_atomically
from flawline.runtime.isolated import CallFailed, IsolatedProcess
from flawline.runtime.station.service.content import (
    BUNDLES,
    TOKEN_FILE,
    has_page,
    recipe_name,
    station_content,
)
from flawline.runtime.station.service.installing import (
    change_line,
    closed_to_others,
    device_groups,
    install_lines,
)
from flawline.runtime.station.service.unit import STATION_FILE, Service
from flawline.runtime.station.settings.station_file import read_station
from flawline.uris import quote_path, split_options

EXAMPLES = (
    "flawline station init --bundle bundles/part",
    "flawline station init --bundle bundles/part --camera usb://0 --camera usb://1 --out line4",
)
INIT = "init"
# A name that systemd, useradd and a path all take.
NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
SEARCH_S = 30.0
# Variables that cameras and engines read.
VARIABLES = ("GENICAM_GENTL64_PATH", "CUDA_VISIBLE_DEVICES")


class SetupError(FlawlineError):
    """The files of a station cannot be made."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    for flag, name in (("--name", args.name), ("--user", args.user)):
        if not NAME.fullmatch(name):
            parser.error(f"{flag} {name!r} is not made of small letters, digits, _ and -")
    return run_command(parser.prog, lambda: _init(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("station"),
        description="Write the files of a station that runs as a service of systemd, for the "
        "cameras that are connected, and print the commands that install them. flawline-station is "
        "the same command.",
        examples=EXAMPLES,
    )
    parser.add_argument("action", choices=(INIT,), help="write the files")
    parser.add_argument(
        "--bundle", type=path_argument, required=True, help="the folder that flawline build wrote"
    )
    parser.add_argument(
        "--camera",
        action="append",
        type=text_argument,
        help="a camera of the station; repeat for several; default: those that are found",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("station"),
        metavar="DIR",
        help="folder for the files; default %(default)s",
    )
    parser.add_argument("--name", default="flawline", help="the service; default %(default)s")
    parser.add_argument(
        "--user", default="flawline", help="the user that it runs as; default %(default)s"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace files of an earlier station in the folder"
    )
    return parser


def _init(args: argparse.Namespace) -> None:
    require_bundle_folder(args.bundle)
    bundle = read_bundle(args.bundle)
    cameras = [_absolute(uri) for uri in args.camera or _find_cameras()]
    service = _service(args)
    copy = Path(BUNDLES, recipe_name(bundle.path))
    unit = f"{args.name}.service"
    texts = {
        unit: service.unit(),
        STATION_FILE: station_content(bundle, cameras),
        TOKEN_FILE: f"{secrets.token_urlsafe(32)}\n",
    }
    _refuse_present([args.out / name for name in (*texts, copy)], args.force)
    _write(args.out, texts)
    _copy(bundle.path, args.out / copy)
    # Raises for a URI that the file cannot hold.
    read_station(args.out / STATION_FILE)
    for uri in cameras:
        log(f"camera {uri}")
    _warn_of_closed_files(service)
    if service.folder.exists():
        warn(
            f"warning: {service.folder} exists: these commands replace a station in it, with the "
            f"log of its bundle; choose another --name if it is to stay"
        )
    if has_page():
        log(f"the page of the station asks for the token in {args.out / TOKEN_FILE}")
    log(f"wrote {args.out}; these commands install it:")
    made = args.out.absolute()
    for line in install_lines(service, made, made / unit, (STATION_FILE, TOKEN_FILE, BUNDLES)):
        print(line)
    log(f"change it later as its user, such as: {change_line(service)}")


def _absolute(uri: str) -> str:
    """Return a camera that is given by a path from the root on, because the file is moved."""
    if Path(uri).exists():
        return str(Path(uri).absolute())
    scheme, separator, rest = uri.partition("://")
    name, mark, options = (rest if separator else uri).partition("?")
    path = Path(split_options(name)[0])
    if not name or path.is_absolute() or not path.exists():
        return uri
    return f"{scheme if separator else 'folder'}://{quote_path(path.absolute())}{mark}{options}"


def _find_cameras() -> list[str]:
    """Return the URIs of the cameras that are connected. Raises SetupError if none is found."""
    found: list[str] = []
    with IsolatedProcess() as process:
        for scheme in process.call("flawline.cameras.connected:usable", limit_s=SEARCH_S):
            try:
                uris = process.call(
                    "flawline.cameras.connected:connected", scheme, limit_s=SEARCH_S
                )
            except CallFailed as failure:
                warn(f"warning: {scheme}: the search for cameras {failure}")
                continue
            found += uris or []
    if not found:
        raise SetupError(
            "no camera was found; connect one, or name it with --camera, such as "
            "rtsp://ADDRESS/STREAM or folder:///data/images?watch=1; flawline doctor says why"
        )
    return unique(found)


def _service(args: argparse.Namespace) -> Service:
    program = Path(sys.executable)
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return Service(
        args.name,
        args.user,
        (program, "-m", PROGRAM),
        (program, Path(__file__)),
        device_groups(),
        variables,
    )


def _refuse_present(paths: Sequence[Path], force: bool) -> None:
    there = [str(path) for path in paths if os.path.lexists(path)]
    if there and not force:
        raise SetupError(
            f"{', '.join(there)} is there already; choose another --out, or replace it with --force"
        )


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the files, with the token for its owner alone. Raises SetupError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            if name == TOKEN_FILE:
                _write_secret(folder / name, text)
            else:
                write_atomically(folder / name, text.encode())
    except OSError as error:
        raise _unwritable(folder, error) from error


def _copy(bundle: Path, target: Path) -> None:
    """Copy the bundle, so that the station has its own, with thresholds that it may change."""
    if target.exists() and target.samefile(bundle):
        return
    try:
        with replace_folder(target) as new:
            copy_folder(bundle, new)
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(path: Path, error: OSError) -> SetupError:
    return SetupError(f"{path} cannot be written ({reason_of(error)}); {remedy_of(error, '--out')}")


def _write_secret(path: Path, text: str) -> None:
    """Write a file that was never readable for others. Raises OSError."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _warn_of_closed_files(service: Service) -> None:
    for path in closed_to_others(service.reads):
        warn(
            f"warning: the user {service.user} may not read {path}; install Flawline where every "
            f"user may read it, such as /opt/{service.name}, or choose another --user"
        )


if __name__ == "__main__":
    sys.exit(main())
