"""The backbone of the SSNF paper: a CaiT of timm, up to the block that the authors read.

Touvron et al., "Going deeper with image transformers" (2021). cait_m48_448 costs 279 GMAC per
image: it serves to reproduce the paper and for comparisons, not for the edge.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flawline.extras import install_command, missing_package
from flawline.train import TrainError
from flawline.train.backbones.base import Backbone, flags_without_download, unreadable
from flawline.train.backbones.facts import BackboneFacts, Level

STRIDE = 16
# Its one level has the stride of layer3 of a ResNet, and so its number.
LEVEL = 3


@dataclass(frozen=True)
class Architecture:
    """Input height and width, channels, and how many of the self-attention blocks are run."""

    size: int
    channels: int
    blocks: int


ARCHITECTURES = {
    "cait_m48_448": Architecture(448, 768, 41),  # of 48
    "cait_xxs24_224": Architecture(224, 192, 20),  # of 24
}


class CaiT(Backbone):
    """A CaiT; its one level [N, C, S/16, S/16] holds the normalised tokens of the last block."""

    def __init__(self, name: str, levels: tuple[int, ...] = (LEVEL,)) -> None:
        super().__init__(name, levels)
        try:
            import timm
        except Exception as error:
            # Not only ImportError: timm also fails if its torchvision does not fit the torch.
            raise TrainError(
                f"backbone {name} needs timm, which cannot be imported ({error}); "
                f"{install_command('cait')}, and torchvision from where torch is from"
            ) from error

        shape = ARCHITECTURES[name]
        self.side = shape.size // STRIDE
        # Without the class-attention stage, the classifier and the blocks that are not run.
        self.net: Any = timm.create_model(
            name, pretrained=False, num_classes=0, depth_token_only=0, depth=shape.blocks
        )

    @classmethod
    def facts(cls, name: str) -> BackboneFacts:
        shape = ARCHITECTURES[name]
        levels = {LEVEL: Level(shape.channels, STRIDE)}
        return BackboneFacts(levels, light=False, fixed_size=shape.size, normalised=True)

    @classmethod
    def missing(cls) -> str | None:
        if find_spec("timm") is None:
            return missing_package("timm")
        return None

    @property
    def first_convolution(self) -> nn.Conv2d:
        conv: nn.Conv2d = self.net.patch_embed.proj
        return conv

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens = self.net.patch_embed(x) + self.net.pos_embed
        for block in self.net.blocks:
            tokens = block(tokens)
        columns = self.net.norm(tokens).transpose(1, 2)
        return (columns.reshape(-1, self.channels[0], self.side, self.side),)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.net.parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        nn.init.zeros_(self.first_convolution.bias)  # type: ignore[arg-type]

    def _load_imagenet(self) -> str:
        return f"{self.name} {self._load_state(_download(self.name), self.name)}"

    def _load_file(self, path: Path) -> str:
        return self._load_state(_read_state(path), str(path))

    def _load_state(self, state: dict[str, Tensor], source: str) -> str:
        """Load the tensors that this network has from a whole model; return their hash."""
        # The authors' own files name modules as they were wrapped for training on many GPUs.
        plain = {}
        for name, value in state.items():
            plain[name.removeprefix("module.")] = value
        own = self.net.state_dict()
        used = {}
        wrong = []
        for name, value in own.items():
            if name in plain and plain[name].shape == value.shape:
                used[name] = plain[name]
            else:
                wrong.append(name)
        if wrong:
            raise TrainError(
                f"weights {source}: not of {self.name} ({len(wrong)} tensors differ, "
                f"first {min(wrong)})"
            )
        self.net.load_state_dict(used)
        digest = hashlib.sha256()
        for name in sorted(used):
            digest.update(used[name].contiguous().view(torch.uint8).numpy().tobytes())
        return f"sha256:{digest.hexdigest()[:16]}"


def _download(name: str) -> dict[str, Tensor]:
    """Return the state of timm's pretrained model, which timm downloads."""
    import timm

    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainError(
            f"weights imagenet: {name} cannot be downloaded ({lines[0][:160]}); use "
            f"{flags_without_download(name)}, which is in this package, or fetch the file "
            "elsewhere and pass it with --weights"
        ) from error
    return state


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, a state_dict or a checkpoint with one in `model`."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: dict[str, Tensor] = load_file(path)
            return loaded
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(content.get("model", content))
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:
        raise TrainError(
            f"weights {path}: neither a torch state_dict nor safetensors; pass timm's file"
        ) from error
    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[name] = value
    return tensors
