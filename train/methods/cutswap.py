"""CutSwap: PatchCore on features that tell exchanged salient patches and scars apart.

Qin et al., "CutSwap: self-supervised anomaly detection by swapping salient patches". The paper
finds salient pixels with VGG16; `--saliency` offers it and substitutes that need no such weights.
Its 256 epochs of fine-tuning are far fewer steps here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from flawline.options import option
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.anomalies.cut_swap import CLUSTER_CHOICES, SwapSettings
from flawline.train.anomalies.cut_swap import CutSwap as SwappedPatches
from flawline.train.anomalies.three_way import CutPaste as PastedPatches
from flawline.train.anomalies.three_way import ThreeWay
from flawline.train.blocks.patch_classifier import PatchClassifier
from flawline.train.blocks.tuned_patchcore import SeriesOfSteps, TunedPatchCore, TunedSettings
from flawline.train.method import Fit
from flawline.train.saliency import NETWORKS
from flawline.train.saliency.base import ImageMaps, SaliencyNetwork, open_network
from flawline.train.saliency.tuned import TunedNetwork, WarmedUp

if TYPE_CHECKING:
    from typing_extensions import Self

SELF = "self"
ALL = "all"
# A network may have fewer maps; that is checked when it is opened.
MOST_MAPS = 5
# Share of the steps before the classifier's own saliency is used.
WARM_UP = 0.3


@dataclass(frozen=True)
class CutSwapSettings(TunedSettings):
    """The settings of CutSwap: those of the fine-tuning, and how patches are chosen."""

    saliency: str = option(
        SELF,
        "network whose gradients choose the patches: vgg16 (the paper's), lite0 "
        "(EfficientNet-Lite0), self (this training's own classifier after a warm-up), or a FILE of "
        "weights of vgg16 or lite0; default self",
        flag=True,
        anomaly_flag=True,
    )
    clusters: int = option(4, "clusters of a saliency map; default 4", flag=True, anomaly_flag=True)
    cluster: Literal["highest", "lowest", "random"] = option(
        "highest",
        "cluster that patches are taken from: highest, lowest or random; default highest",
        flag=True,
        anomaly_flag=True,
    )
    maps: str = option(
        ALL,
        "saliency maps that are used, from 1 (the finest) on, such as 1,3,5; default all",
        flag=True,
        anomaly_flag=True,
    )
    most_salient: int = option(
        0,
        "use so many of the most salient pixels instead of a cluster; default 0, a cluster",
        flag=True,
        anomaly_flag=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters < 1:
            raise TrainError(f"--clusters {self.clusters} is not above 0")
        if self.most_salient < 0:
            raise TrainError(f"--most-salient {self.most_salient} is below 0")
        if self.cluster not in CLUSTER_CHOICES:
            known = ", ".join(CLUSTER_CHOICES)
            raise TrainError(f"--cluster {self.cluster} is unknown; known: {known}")
        self.levels(MOST_MAPS)

    def levels(self, count: int) -> tuple[int, ...]:
        """Return the indices of the maps that are used, of so many; raises TrainError."""
        if self.maps == ALL:
            return tuple(range(count))
        numbers = []
        for text in self.maps.split(","):
            if not text.strip().isdecimal() or not 1 <= int(text) <= count:
                raise TrainError(
                    f"--maps {self.maps}: {text.strip()!r} is not a number from 1 to {count}, the "
                    f"maps of --saliency {self.saliency}"
                )
            numbers.append(int(text) - 1)
        return tuple(sorted(set(numbers)))

    def swap_settings(self, network: type[SaliencyNetwork]) -> SwapSettings:
        """Return how patches are chosen in the maps of a network. Raises TrainError."""
        levels = self.levels(len(network.strides))
        return SwapSettings(self.clusters, self.cluster, levels, self.most_salient)


class CutSwap(TunedPatchCore):
    """CutSwap with three classes, at the run-time cost of PatchCore."""

    name: ClassVar[str] = "cutswap"
    trains_against: ClassVar[tuple[str, ...]] = ("patch", "scar")
    Settings = CutSwapSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")

    settings: CutSwapSettings

    def __init__(self, settings: CutSwapSettings) -> None:
        super().__init__(settings)
        # Of the network that the settings name, when it was opened; never a part of a checkpoint.
        self.image_maps: ImageMaps | None = None

    @classmethod
    def anomalies(
        cls, settings: CutSwapSettings, images: Sequence[Image], seed: int
    ) -> SwappedPatches:
        if settings.saliency == SELF:
            raise TrainError(
                f"--saliency {SELF}: its network is made by the training; to draw samples, take "
                f"--saliency {' or '.join(NETWORKS)}, or a FILE of weights of one of them"
            )
        return _swapped(ImageMaps(open_network(settings.saliency)), settings, images, seed)

    def anomaly_origin(self) -> str:
        if self.settings.saliency == SELF:
            self.settings.swap_settings(TunedNetwork)
            return f"CutSwap, saliency of {TunedNetwork.title}"
        return f"CutSwap, saliency of {self._named_maps().network.description}"

    def _named_maps(self) -> ImageMaps:
        """Return the maps of the network that the settings name, which is opened once."""
        if self.image_maps is None:
            network = open_network(self.settings.saliency)
            self.settings.swap_settings(type(network))
            self.image_maps = ImageMaps(network)
        return self.image_maps

    def start_like(self, other: Self) -> None:
        super().start_like(other)
        self.image_maps = other.image_maps

    def series(self, fit: Fit, classifier: PatchClassifier) -> SeriesOfSteps:
        if self.settings.saliency == SELF:
            return self._own_series(fit, classifier)
        maps = self._named_maps()
        maps.network.to(self.device)
        swapped = _swapped(maps, self.settings, fit.images, fit.seed)
        return SeriesOfSteps(lambda step: swapped, {})

    def _own_series(self, fit: Fit, classifier: PatchClassifier) -> SeriesOfSteps:
        """Return pasted patches until the classifier has been warmed up, then swapped ones."""
        pasted = PastedPatches(fit.images, fit.seed)
        warmed_up = WarmedUp(classifier)
        begin = max(1, round(WARM_UP * fit.steps))
        swapped: list[SwappedPatches] = []

        def at(step: int) -> ThreeWay:
            if step < begin:
                return pasted
            if not swapped:
                maps = ImageMaps(warmed_up.get())
                swapped.append(_swapped(maps, self.settings, fit.images, fit.seed))
            return swapped[0]

        return SeriesOfSteps(at, {"warmed_up": warmed_up})


def _swapped(
    maps: ImageMaps, settings: CutSwapSettings, images: Sequence[Image], seed: int
) -> SwappedPatches:
    network = maps.network
    description = f"CutSwap, saliency of {network.description}"
    return SwappedPatches(images, maps, settings.swap_settings(type(network)), seed, description)
