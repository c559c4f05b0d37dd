"""Encryption and users of the OPC UA server."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawline.cameras import CameraError
from flawline.cameras.credentials import Credentials, permission_warning, read_credentials
from flawline.options import option
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import first_line, warn
from flawline.runtime.outputs import OutputError
from flawline.runtime.outputs.handshake import HandshakeOptions

if TYPE_CHECKING:
    from asyncua import Server


@dataclass(frozen=True)
class OpcUaOptions(HandshakeOptions):
    """Raises ValueError if only one of certificate and key is given, or a password without both."""

    certificate: str | None = option(
        None, "file with the server's certificate, PEM or DER: connections are then encrypted"
    )
    key: str | None = option(
        None, "file with the private key of the certificate, in the same format"
    )
    credentials: str | None = option(
        None, "file with the lines user=NAME and password=PASSWORD that clients must give"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key need each other")
        if self.credentials is not None and self.certificate is None:
            # The password would be readable for everyone on the network.
            raise ValueError("credentials need certificate and key")


class Security:
    """The files of the options, read before the server is opened. Raises OutputError.

    `name` is that of the output in messages.
    """

    def __init__(self, name: str, options: OpcUaOptions) -> None:
        self._name = name
        self._options = options
        self._credentials: Credentials | None = None
        for path in (options.certificate, options.key):
            if path is not None:
                _require_readable(name, path)
        if options.credentials is None:
            return
        try:
            self._credentials = read_credentials(options.credentials)
            warning = permission_warning(options.credentials)
        except CameraError as error:
            raise OutputError(f"{name}: {error}") from error
        if warning is not None:
            warn(warning)

    def new_server(self) -> Server:
        """Return a server that knows the user, if one is needed."""
        from asyncua import Server

        if self._credentials is None:
            return Server()
        return Server(user_manager=_OneUser(self._credentials))

    async def apply(self, server: Server) -> None:
        """Set what connections the server takes. Raises OutputError for a wrong certificate."""
        from asyncua import ua

        certificate, key = self._options.certificate, self._options.key
        if certificate is None or key is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
            return
        server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
        try:
            await server.load_certificate(certificate)
            await server.load_private_key(key)
        except (ValueError, TypeError, OSError) as error:
            raise OutputError(
                f"{self._name}: certificate or key cannot be used ({first_line(error)}); give both "
                f"as PEM files that end in .pem, or as DER files that end in .der"
            ) from error
        if self._credentials is not None:
            server.set_identity_tokens([ua.UserNameIdentityToken])


class _OneUser:
    """Takes clients that give name and password."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def get_user(
        self,
        _server: Any,
        username: str | None = None,
        password: str | None = None,
        certificate: Any = None,
    ) -> Any:
        """Return the user, or None, which the server refuses."""
        from asyncua.crypto.permission_rules import User, UserRole

        expected = self._credentials
        # Both are compared in full, so that the time says nothing about them.
        same = hmac.compare_digest((username or "").encode(), expected.user.encode())
        same &= hmac.compare_digest((password or "").encode(), expected.password.encode())
        return User(role=UserRole.User, name=expected.user) if same else None


def _require_readable(name: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise OutputError(
            f"{name}: file {path} cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
