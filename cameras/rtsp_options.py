"""The options of network cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flawline.cameras.live_options import LiveOptions
from flawline.options import option


@dataclass(frozen=True)
class RtspOptions(LiveOptions):
    """Options of the `rtsp` and `rtsps` schemes."""

    transport: Literal["tcp", "udp"] = option(
        "tcp", "how the stream is sent; over udp, lost packets damage frames without a notice"
    )
    timeout: float = option(5.0, "seconds to wait for the answer of the server")
    credentials: str | None = option(
        None, "a file with the lines user=NAME and password=PASSWORD, instead of NAME:PASSWORD@HOST"
    )
    ca: str | None = option(
        None, "rtsps: a PEM file with the certificate of the camera or its authority"
    )
    verify: bool = option(True, "rtsps: whether the certificate of the camera must be valid")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.timeout <= self.first_frame:
            raise ValueError(
                f"timeout must be above 0, and at most first_frame={self.first_frame:g}"
            )
