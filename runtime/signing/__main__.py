"""Sign a bundle with an Ed25519 key, make such a key, or check a signature.

Also `python -m runtime.signing`. A stream with the public key refuses every other bundle.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flawline.commands import program_of
from flawline.runtime.audit.bundle_log import MANIFEST_KEY, logged_change
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.bundle_files import SIGNATURE, BundleError, unwritable
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import run_command, terminal_line
from flawline.runtime.files import write_atomically
from flawline.runtime.signals import uninterrupted
from flawline.runtime.signing.arguments import add_trusted_argument, trusted_keys
from flawline.runtime.signing.keys import fingerprint_of, read_private_key, write_new_key
from flawline.runtime.signing.signature import (
    SHOWN_DIGITS,
    Signature,
    read_signatures,
    sign,
    signatures_to_json,
)

EXAMPLES = (
    "flawline sign --new-key --key line4.key      writes line4.key.pub, too",
    "flawline sign bundles/part --key line4.key",
    "flawline sign bundles/part --check --trusted-key line4.key.pub",
)


def sign_bundle(path: Path, key_path: Path, with_thresholds: bool) -> str:
    """Sign a bundle; return the fingerprint of the key.

    `with_thresholds` signs calibration.json as it is, too. Signatures of other keys stay if they
    are for the same manifest. Raises SigningError, BundleError and AuditError.
    """
    key = read_private_key(key_path)
    bundle = read_bundle(path)
    calibration = bundle.calibration_sha256 if with_thresholds else None
    signature = sign(key, bundle.manifest_sha256, calibration)
    data = signatures_to_json([*_others(bundle, signature), signature])
    signed = "the manifest and the thresholds" if with_thresholds else "the manifest"
    seen = {MANIFEST_KEY: bundle.manifest_sha256}
    note = f"key {signature.key[:SHOWN_DIGITS]} signed {signed}"
    try:
        with uninterrupted(), logged_change(path, "sign", {}, seen, note):
            write_atomically(path / SIGNATURE, data)
    except OSError as error:
        raise unwritable(path, error) from error
    return signature.key


def _others(bundle: Bundle, new: Signature) -> list[Signature]:
    """Return the signatures of a bundle that a new one leaves as they are."""
    try:
        present = read_signatures(bundle.path)
    except BundleError:
        # A damaged file is replaced.
        return []
    return [old for old in present if old.key != new.key and old.manifest == new.manifest]


def _run(args: argparse.Namespace) -> None:
    lines = []
    if args.new_key:
        public = write_new_key(args.key)
        fingerprint = fingerprint_of(read_private_key(args.key).public_key())
        lines.append(
            f"wrote the private key {args.key}, for its owner alone, and the public key {public}: "
            f"{fingerprint[:SHOWN_DIGITS]}"
        )
    if args.check:
        lines.append(_check(args))
    elif args.bundle is not None:
        fingerprint = sign_bundle(args.bundle, args.key, args.thresholds)
        signed = " and its thresholds" if args.thresholds else ""
        lines.append(f"signed {args.bundle}{signed} with the key {fingerprint[:SHOWN_DIGITS]}")
    for line in lines:
        print(terminal_line(line))


def _check(args: argparse.Namespace) -> str:
    bundle = read_bundle(args.bundle, trusted_keys(args))
    assert bundle.signed_by is not None
    return f"{args.bundle}: ok, signed with the key {bundle.signed_by[:SHOWN_DIGITS]}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("sign"),
        description="Sign a bundle with an Ed25519 key, so that machines that trust the public key "
        "accept no other bundle.",
        examples=EXAMPLES,
    )
    parser.add_argument("bundle", type=path_argument, nargs="?", help="the bundle")
    parser.add_argument("--key", type=path_argument, metavar="FILE", help="the private key, in PEM")
    parser.add_argument(
        "--new-key",
        action="store_true",
        help="write a new private key to the file of --key, and its public key beside it",
    )
    parser.add_argument(
        "--thresholds",
        action="store_true",
        help="sign calibration.json as it is, too, so that a new threshold needs a new signature; "
        "default: thresholds may be set on the box",
    )
    parser.add_argument(
        "--check", action="store_true", help="check the signature by the keys of --trusted-key"
    )
    add_trusted_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.check:
        if args.key is not None or args.new_key or args.thresholds:
            parser.error("--check takes only the bundle and --trusted-key")
        if args.bundle is None or not args.trusted_key:
            parser.error("--check needs the bundle and --trusted-key")
    elif args.trusted_key:
        parser.error("--trusted-key is for --check")
    elif args.key is None:
        parser.error("--key is needed (or --check)")
    elif args.bundle is None and not args.new_key:
        parser.error("the bundle is needed (or --new-key)")
    return run_command(parser.prog, lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
