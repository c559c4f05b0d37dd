"""The options that all cameras with a trigger share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flawline.cameras.live_options import LiveOptions
from flawline.options import option


@dataclass(frozen=True)
class TriggerOptions(LiveOptions):
    """Options of every camera that can be triggered."""

    trigger: Literal["off", "software", "line1"] = option(
        "off", "what starts an exposure: off for a running camera, a pulse otherwise"
    )
    views: int = option(1, "exposures of one part, one after the other, that are judged together")
    answer_s: float = option(
        2.0, "seconds from a software pulse to its image after which the camera is opened again"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.views <= 100:
            raise ValueError("views must be from 1 to 100")
        if self.views > 1 and self.trigger == "off":
            raise ValueError("views needs a trigger, such as trigger=line1")
        if not 0 < self.answer_s < float("inf"):
            raise ValueError("answer_s must be above 0")

    @property
    def keeps_all(self) -> bool:
        return self.every_frame or self.trigger != "off"
