"""Which cameras are connected to this machine, as URIs.

A camera class whose library can list them has the classmethod `connected()`, which returns their
URIs and may take a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from flawline.cameras import CAMERAS, camera_class, missing

LONGEST_POSITION = 2  # digits


def connected(scheme: str) -> list[str] | None:
    """Return the URIs of the cameras of a scheme that are connected; None if they are not listed.

    The scheme is one of CAMERAS, with nothing missing.
    """
    listing: Callable[[], list[str]] | None = getattr(camera_class(scheme), "connected", None)
    return None if listing is None else listing()


def all_connected() -> list[str]:
    """Return the URIs of all cameras that are found, each once.

    A camera that several schemes can open is that of the first one.
    """
    found: dict[str, str] = {}
    for scheme in CAMERAS:
        if missing(scheme) is not None:
            continue
        for uri in connected(scheme) or []:
            # Its serial number, unless it has only a position among those of its scheme.
            address = uri.partition("://")[2]
            found.setdefault(address if len(address) > LONGEST_POSITION else uri, uri)
    return list(found.values())
