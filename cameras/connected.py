"""Which cameras are connected to this machine, as URIs.

A camera class whose library can list them has the classmethod `connected()`, which returns their
URIs and may take a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flawline.cameras import CAMERAS, camera_class, missing

LONGEST_POSITION = 2  # digits


def connected(scheme: str) -> list[str] | None:
    """Return the URIs of the cameras of a scheme that are connected; None if they are not listed.

    The scheme is one of CAMERAS, with nothing missing.
    """
    listing: Callable[[], list[str]] | None = getattr(camera_class(scheme), "connected", None)
    return None if listing is None else listing()


def usable() -> list[str]:
    """Return the schemes of CAMERAS with nothing missing."""
    return [scheme for scheme in CAMERAS if missing(scheme) is None]


def unique(uris: Iterable[str]) -> list[str]:
    """Return each camera once: the first URI of those that have the same serial number or path."""
    found: dict[str, str] = {}
    for uri in uris:
        address = uri.partition("://")[2]
        # A position among the cameras of a scheme says nothing about those of another one.
        is_position = address.isdecimal() and len(address) <= LONGEST_POSITION
        found.setdefault(uri if is_position else address, uri)
    return list(found.values())
