"""Small methods that differ in what they find, for comparisons of methods."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from toys.method import MeanImage, MeanImageSettings

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.method import Fit


class Fine(MeanImage):
    """Finds local changes of colour."""

    name: ClassVar[str] = "fine"

    @classmethod
    def settings_for(cls, backbone: str) -> MeanImageSettings:
        return MeanImageSettings("", Geometry("stretch", 64, 64), cell=4)


class Coarse(Fine):
    """Averages over so large cells that it misses most changes."""

    name: ClassVar[str] = "coarse"

    @classmethod
    def settings_for(cls, backbone: str) -> MeanImageSettings:
        return MeanImageSettings("", Geometry("stretch", 64, 64), cell=64)


class Pasted(Coarse):
    """Says that it was trained against two of the kinds."""

    name: ClassVar[str] = "pasted"
    trains_against: ClassVar[tuple[str, ...]] = ("patch", "scar")


class Broken(Fine):
    """Can be timed, but not trained on all images."""

    name: ClassVar[str] = "broken"

    def fit(self, fit: Fit) -> int:
        if len(fit.images) > 16:
            raise TrainError("these images do not suit it; take others")
        return super().fit(fit)


class Untimed(Fine):
    """Cannot be exported."""

    name: ClassVar[str] = "untimed"

    def fused(self) -> nn.Module:
        raise TrainError("it has no fused form; add one")
