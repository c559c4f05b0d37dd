"""Ed25519 keys in PEM files, and which public keys are trusted. The library is `cryptography`."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from flawline import FlawlineError
from flawline.commands import command_line, shell_line
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.files import read_small, synchronise_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

LARGEST_FILE = 1 << 16  # bytes
PUBLIC_SUFFIX = ".pub"
OTHERS = 0o077
GIVE = "give the file that flawline sign --new-key wrote"
BEGIN = b"-----BEGIN "


class SigningError(FlawlineError):
    """A key cannot be used, or a signature cannot be made."""


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys by their fingerprints, at least one."""

    keys: Mapping[str, Ed25519PublicKey]

    def verify(self, fingerprint: str, signature: bytes, message: bytes) -> bool:
        """Tell whether a signature is by the trusted key of a fingerprint."""
        from cryptography.exceptions import InvalidSignature

        key = self.keys.get(fingerprint)
        if key is None:
            return False
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def read_trusted(paths: Sequence[Path]) -> TrustedKeys | None:
    """Read files with a public key each; None for no file. Raises SigningError."""
    keys = {}
    for path in paths:
        key = read_public_key(path)
        keys[fingerprint_of(key)] = key
    return TrustedKeys(keys) if keys else None


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read the public key of a PEM file. Raises SigningError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path, "public key")
    if b"PRIVATE KEY-----" in data:
        _refuse(path, f"is a private key; give its public key, which {path}{PUBLIC_SUFFIX} may be")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        _refuse(path, f"is not a public key in PEM; {GIVE}")
    if not isinstance(key, Ed25519PublicKey):
        _refuse(path, f"is not an Ed25519 key; {GIVE}")
    return key


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the private key of a PEM file that only its owner may read. Raises SigningError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path, "private key")
    if stat.S_IMODE(path.stat().st_mode) & OTHERS:
        _refuse(path, f"other users may read or write it; {shell_line(['chmod', '600', path])}")
    if b"PUBLIC KEY-----" in data:
        _refuse(path, "is a public key; give the private key that it belongs to")
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        remedy = shell_line(["openssl", "pkey", "-in", path, "-out", "NEW_FILE"])
        _refuse(path, f"is encrypted with a password; write it without one: {remedy}")
    except (ValueError, UnsupportedAlgorithm):
        remedy = command_line("sign", "--new-key", "--key", "NEW_FILE")
        _refuse(path, f"is not a private key in PEM; write a new one: {remedy}")
    if not isinstance(key, Ed25519PrivateKey):
        remedy = command_line("sign", "--new-key", "--key", "NEW_FILE")
        _refuse(path, f"is not an Ed25519 key; write a new one: {remedy}")
    return key


def write_new_key(path: Path) -> Path:
    """Write a new private key, for its owner alone, and beside it the public key.

    Returns the file of the public key. Raises SigningError, also if one of the files is there.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    beside = path.with_name(path.name + PUBLIC_SUFFIX)
    _write_new(beside, public, 0o644)
    try:
        _write_new(path, private, 0o600)
    except SigningError:
        beside.unlink(missing_ok=True)
        raise
    return beside


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key, as hexadecimal digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _read(path: Path, what: str) -> bytes:
    """Return the content of a file with one key. Raises SigningError."""
    try:
        data = read_small(path, LARGEST_FILE)
    except OSError as error:
        raise SigningError(
            f"{what} {path} cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    if data.count(BEGIN) > 1:
        _refuse(path, "holds several keys; write each into a file of its own")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet, and wait until it is on disk. Raises SigningError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        remedy = remedy_of(error, "--key")
        if error.errno == errno.EEXIST:
            remedy = "a key is never overwritten: choose another --key, or leave --new-key out"
        raise SigningError(
            f"key {path} cannot be written ({reason_of(error)}); {remedy}"
        ) from error
    try:
        with open(descriptor, "wb") as file:
            # Whatever the umask of the process is.
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Some network file systems cannot do this.
        with suppress(OSError):
            synchronise_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SigningError(
            f"key {path} cannot be written ({reason_of(error)}); {remedy_of(error, '--key')}"
        ) from error


def _refuse(path: Path, reason: str) -> NoReturn:
    raise SigningError(f"key {path}: {reason}")
