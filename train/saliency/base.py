"""The interface of a saliency network, LayerCAM, and how a network is chosen by name or file."""

from __future__ import annotations

import abc
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.registry import resolve
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.data.cache import ComputedArrays
from flawline.train.saliency import NETWORKS

SMALLEST = 1e-8  # added to the range of a map, so that a constant one becomes 0


class SaliencyNetwork(nn.Module, abc.ABC):
    """A classifier that also returns its activations at several levels; it is never trained.

    description: the network, its weights with their hash, and whether the choice is the paper's.
    """

    # Input pixels per position of each level, from the finest on.
    strides: ClassVar[tuple[int, ...]]
    # How the description names it.
    title: ClassVar[str] = ""
    # The weight that only files of this network have.
    first_weight: ClassVar[str] = ""
    description: str = ""

    @abc.abstractmethod
    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the activations [N, C, h, w] of each level and the logits [N, classes].

        image: BGR [N, H, W, 3] in 0..255, as float.
        """

    @classmethod
    def default_file(cls) -> Path:
        """Return the file of the published weights. Raises TrainError where it is missing."""
        raise TrainError(f"saliency {cls.__name__}: has no weights of its own; pass a FILE")

    def load(self, path: Path) -> None:
        """Load a weight file. Raises TrainError for a file of another network."""
        data, state = read_weights(path)
        own = self.state_dict()
        found = self.renamed(state)
        wrong = []
        for name, value in own.items():
            if name.endswith("num_batches_tracked"):
                continue
            if name not in found or found[name].shape != value.shape:
                wrong.append(name)
        wrong += sorted(set(found) - set(own))
        if wrong:
            raise TrainError(
                f"saliency {path}: not weights of {self.title} ({len(wrong)} tensors differ, first "
                f"{wrong[0]}); pass such a file, or one of {', '.join(NETWORKS)}"
            )
        self.load_state_dict(found, strict=False)
        self.eval().requires_grad_(False)
        digest = hashlib.sha256(data).hexdigest()[:16]
        self.description = f"{self.title} {path.name} sha256:{digest}"

    @classmethod
    def renamed(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a weight file with the names of this module."""
        return state


def read_weights(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes and the tensors of a weight file. Raises TrainError for another file."""
    try:
        data = path.read_bytes()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainError(
            f"saliency {path}: cannot be read ({error.strerror}); check the path, or pass one of "
            f"{', '.join(NETWORKS)}"
        ) from error
    except Exception as error:  # torch.load documents no exceptions
        state = error
    if not isinstance(state, dict):
        raise TrainError(
            f"saliency {path}: not a torch state_dict; save one with torch.save(model.state_dict())"
        )
    return data, state


def open_network(saliency: str) -> SaliencyNetwork:
    """Build and load a network by its name in NETWORKS, or by a weight file of one of them.

    Raises TrainError.
    """
    if saliency in NETWORKS:
        kind: type[SaliencyNetwork] = resolve(NETWORKS, saliency, "saliency", TrainError)
        path = kind.default_file()
    else:
        path = Path(saliency)
        kind = _kind_of(path)
    network = kind()
    network.load(path)
    return network


def _kind_of(path: Path) -> type[SaliencyNetwork]:
    """Return the network that a weight file belongs to."""
    _, state = read_weights(path)
    for name in NETWORKS:
        kind: type[SaliencyNetwork] = resolve(NETWORKS, name, "saliency", TrainError)
        if kind.first_weight in state:
            return kind
    raise TrainError(
        f"saliency {path}: not weights of a known network; known: {', '.join(NETWORKS)}"
    )


def layer_cam(activations: list[Tensor], logits: Tensor) -> list[Tensor]:
    """Return the LayerCAM map [N, h, w] of each level of activations [N, C, h, w].

    It is the sum over the channels of the activation times the positive part of the gradient of the
    largest logit. Jiang et al., "LayerCAM: exploring hierarchical class activation maps for
    localization" (TIP 2021).
    """
    largest = logits.amax(1).sum()
    gradients = torch.autograd.grad(largest, activations)
    maps = []
    for activation, gradient in zip(activations, gradients, strict=True):
        maps.append((activation * gradient.clamp(min=0)).sum(1).detach())
    return maps


@torch.enable_grad()
def saliency_maps(network: SaliencyNetwork, image: Image) -> npt.NDArray[np.uint8]:
    """Return the saliency of an image, uint8 [H, W, 3] BGR, at every level: [levels, H, W].

    Each map is resized to the image and spans 0 to 255; a constant map is 0 everywhere.
    """
    device = next(iter(network.parameters())).device
    pixels = torch.from_numpy(np.asarray(image)).to(device, torch.float32)[None]
    # The parameters need no gradient, so it is the image that makes the activations have one.
    activations, logits = network(pixels.requires_grad_())
    maps = []
    for level in layer_cam(activations, logits):
        resized = F.interpolate(
            level[None], size=image.shape[:2], mode="bilinear", align_corners=False
        )[0, 0]
        low = resized.min()
        scaled = (resized - low) / (resized.max() - low + SMALLEST)
        maps.append((255 * scaled).round().to(torch.uint8))
    return torch.stack(maps).cpu().numpy()


class ImageMaps:
    """The saliency maps of images, each computed once and kept in a temporary file.

    They do not depend on the detector that is trained, so copies of a detector share them.
    """

    def __init__(self, network: SaliencyNetwork) -> None:
        self.network = network
        self.stored = ComputedArrays()

    def __deepcopy__(self, memo: dict[int, object]) -> ImageMaps:
        return self

    def __call__(self, image: Image) -> npt.NDArray[np.uint8]:
        """Return the maps [levels, H, W] of an image, uint8 [H, W, 3]; see `saliency_maps`."""
        return self.stored.get(image, lambda: saliency_maps(self.network, image))
