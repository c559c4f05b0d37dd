"""signature.json of a bundle: by which keys its manifest was signed, and perhaps its thresholds.

The manifest holds the SHA-256 of every other file but calibration.json. A signature is for the
manifest, and if its signer wants that, for one content of calibration.json as well.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flawline.commands import command_line_elsewhere
from flawline.runtime.bundle_files import (
    CALIBRATION,
    MANIFEST,
    SIGNATURE,
    BundleError,
    parse_json_file,
    refuse,
)
from flawline.runtime.signing.keys import TrustedKeys, fingerprint_of
from flawline.runtime.strict_json import SchemaError, StrictReader, parse_json, to_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEMA = 1
HASH_DIGITS = 64
# Of a fingerprint in a message.
SHOWN_DIGITS = 16
MOST_SIGNATURES = 100


@dataclass(frozen=True)
class Signature:
    """A signature of a manifest with this SHA-256, by the key with this fingerprint.

    `calibration` is the SHA-256 of the calibration.json that is signed with it; None leaves that
    open.
    """

    key: str
    manifest: str
    calibration: str | None
    signature: bytes

    @property
    def message(self) -> bytes:
        """What is signed. No other program signs a text that begins in this way."""
        return _message(self.manifest, self.calibration)


@dataclass(frozen=True)
class Verified:
    """That a manifest was signed by a trusted key, and for which contents of calibration.json.

    `calibrations` are their SHA-256; None if any may be used.
    """

    key: str
    calibrations: frozenset[str] | None


def sign(key: Ed25519PrivateKey, manifest: str, calibration: str | None) -> Signature:
    """Sign a manifest, and a calibration.json unless it is None, both given by their SHA-256."""
    fingerprint = fingerprint_of(key.public_key())
    return Signature(fingerprint, manifest, calibration, key.sign(_message(manifest, calibration)))


def signatures_to_json(signatures: Sequence[Signature]) -> bytes:
    """Write signature.json."""
    entries = []
    for signature in signatures:
        entries.append(
            {
                "key": signature.key,
                "manifest": signature.manifest,
                "calibration": signature.calibration,
                "signature": base64.b64encode(signature.signature).decode(),
            }
        )
    return to_json({"schema": SCHEMA, "signatures": entries})


def signatures_from_json(data: bytes) -> tuple[Signature, ...]:
    """Read signature.json. Raises SchemaError."""
    reader = StrictReader(parse_json(data))
    schema = reader.take("schema", int)
    if schema != SCHEMA:
        raise SchemaError(f"has schema {schema}, this version reads schema {SCHEMA}")
    entries = reader.take("signatures", list)
    reader.finish()
    if len(entries) > MOST_SIGNATURES:
        raise SchemaError(f"has {len(entries)} signatures, more than {MOST_SIGNATURES}")
    signatures = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise SchemaError(f"signatures[{number}] is not an object")
        signatures.append(_signature_from_json(StrictReader(entry, f"signatures[{number}]")))
    return tuple(signatures)


def read_signatures(path: Path) -> tuple[Signature, ...]:
    """Read the signatures of a bundle; none if it has no signature.json. Raises BundleError."""
    if not (path / SIGNATURE).exists():
        return ()
    try:
        return parse_json_file(path, SIGNATURE, signatures_from_json)
    except SchemaError as error:
        refuse(path, str(error), _sign_command(path))


def has_signed_thresholds(path: Path, manifest: str) -> bool:
    """Tell whether calibration.json is signed with the manifest of a bundle, by any key."""
    try:
        signatures = read_signatures(path)
    except BundleError:
        return False
    signed = [signature for signature in signatures if signature.manifest == manifest]
    return any(signature.calibration is not None for signature in signed)


def verify(path: Path, manifest: str, trusted: TrustedKeys) -> Verified:
    """Return who signed the manifest of a bundle, given by its SHA-256.

    Raises BundleError if no trusted key did.
    """
    signatures = read_signatures(path)
    if not signatures:
        refuse(path, "it is not signed, and only trusted keys are accepted", _sign_command(path))
    valid = []
    for signature in signatures:
        if trusted.verify(signature.key, signature.signature, signature.message):
            valid.append(signature)
    if not valid:
        keys = ", ".join(sorted({signature.key[:SHOWN_DIGITS] for signature in signatures}))
        known = ", ".join(key[:SHOWN_DIGITS] for key in sorted(trusted.keys))
        refuse(
            path,
            f"no signature is valid for a trusted key ({SIGNATURE} names {keys}; trusted: {known})",
            f"copy the bundle again from where it was signed, or {_sign_command(path)}",
        )
    matching = [signature for signature in valid if signature.manifest == manifest]
    if not matching:
        refuse(path, f"{MANIFEST} was changed after it was signed", _sign_command(path))
    calibrations = {signature.calibration for signature in matching}
    fixed = frozenset(digest for digest in calibrations if digest is not None)
    return Verified(matching[0].key, fixed if None not in calibrations else None)


def require_signed_calibration(path: Path, verified: Verified, calibration: str) -> None:
    """Raise BundleError if a calibration.json, given by its SHA-256, is not one that was signed."""
    if verified.calibrations is None or calibration in verified.calibrations:
        return
    refuse(
        path,
        f"{CALIBRATION} is not the one that was signed with the bundle",
        f"bring that back, or {_sign_command(path, '--thresholds')}",
    )


def _message(manifest: str, calibration: str | None) -> bytes:
    text = f"flawline bundle signature 1\nmanifest {manifest}\ncalibration {calibration or '-'}\n"
    return text.encode()


def _signature_from_json(reader: StrictReader) -> Signature:
    text = reader.take("signature", str)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        reader.refuse("signature is not in base64")
    key = _take_hash(reader, "key")
    manifest = _take_hash(reader, "manifest")
    calibration = None
    if reader.has("calibration"):
        calibration = reader.take_optional("calibration", str)
    if calibration is not None and not _is_hash(calibration):
        reader.refuse("calibration is not a SHA-256")
    reader.finish()
    return Signature(key, manifest, calibration, data)


def _take_hash(reader: StrictReader, key: str) -> str:
    digest = reader.take(key, str)
    if not _is_hash(digest):
        reader.refuse(f"{key} is not a SHA-256")
    return digest


def _is_hash(text: str) -> bool:
    return len(text) == HASH_DIGITS and not set(text) - set("0123456789abcdef")


def _sign_command(path: Path, *words: str) -> str:
    # The private key is on another machine.
    command = command_line_elsewhere("sign", path, "--key", "KEY", *words)
    return f"sign it where its key is: {command}"
