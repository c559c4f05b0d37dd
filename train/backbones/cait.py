"""The extractor of the self-supervised flow's paper: a CaiT, through timm, up to the block that the authors read.

Touvron et al., "Going deeper with image transformers" (2021). cait_m48_448 costs 279 GMAC an image: it is here to
reproduce the paper and to compare with, not for the edge.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flawline.train import TrainError
from flawline.train.backbones.resnet import normalised

# name -> (input size, channels, self-attention blocks that are run: all of 48 but seven, of 24 but four)
CAITS = {"cait_m48_448": (448, 768, 41), "cait_xxs24_224": (224, 192, 20)}
STRIDE = 16


class CaiT(nn.Module):
    """Normalised RGB [N, 3, S, S] to one map [N, C, S/16, S/16]: the normalised tokens after the last block."""

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except (
            Exception
        ) as error:  # also where timm's own torchvision does not fit the installed torch
            raise TrainError(
                f"backbone {name} needs timm, which cannot be imported ({error}); pip install 'flawline[cait]', and "
                f"torchvision from where torch is from"
            ) from error

        self.name = name
        self.size, channels, self.blocks = CAITS[name]
        self.channels = (channels,)
        # Without the class-attention stage, the classifier and the blocks that are not run.
        self.net: Any = timm.create_model(
            name, pretrained=False, num_classes=0, depth_token_only=0, depth=self.blocks
        )

    @property
    def entry(self) -> nn.Conv2d:
        """The convolution that meets the image first."""
        conv: nn.Conv2d = self.net.patch_embed.proj
        return conv

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens = self.net.patch_embed(x) + self.net.pos_embed
        for block in self.net.blocks:
            tokens = block(tokens)
        side = self.size // STRIDE
        return (self.net.norm(tokens).transpose(1, 2).reshape(-1, self.channels[0], side, side),)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] BGR to normalised RGB [N, 3, H, W] in the network's own dtype."""
        return normalised(image, self.entry.weight)

    def load(self, weights: str, seed: int) -> str:
        """As `train.backbone.load_weights`: `imagenet` (timm downloads it), `random` or a FILE. Raises TrainError."""
        if weights == "random":
            generator = torch.Generator().manual_seed(seed)
            for parameter in self.net.parameters():
                if parameter.dim() > 1:
                    nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
            nn.init.zeros_(self.entry.bias)  # type: ignore[arg-type]
            return f"random, seed {seed}"
        if weights == "imagenet":
            import timm

            try:
                whole = timm.create_model(self.name, pretrained=True).state_dict()
            except Exception as error:
                first = (
                    str(error).strip().splitlines()[0][:160]
                    if str(error).strip()
                    else type(error).__name__
                )
                raise TrainError(
                    f"weights imagenet: {self.name} cannot be downloaded ({first}); fetch it elsewhere and pass the "
                    f"file with --weights, or use --weights random"
                ) from error
            return f"imagenet {self.name} {self._take(whole, self.name)}"
        if weights == "texture":
            raise TrainError(
                f"weights texture: there are none of {self.name}; choose --backbone resnet18"
            )
        return f"{Path(weights).name} {self._take(self._read(Path(weights)), weights)}"

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                loaded: dict[str, Tensor] = load_file(path)
                return loaded
            state = torch.load(path, map_location="cpu", weights_only=True)
            return {
                k: v for k, v in dict(state.get("model", state)).items() if isinstance(v, Tensor)
            }
        except OSError as error:
            raise TrainError(
                f"weights {path}: cannot be read ({error.strerror or error}); check the path"
            ) from error
        except Exception as error:
            raise TrainError(
                f"weights {path}: neither a torch state_dict nor safetensors; pass timm's file"
            ) from error

    def _take(self, state: dict[str, Tensor], told: str) -> str:
        """Load what of a whole model's state is used here; a hash of that."""
        # The authors' own files name modules as they were wrapped for training on many GPUs.
        state = {name.removeprefix("module."): value for name, value in state.items()}
        wanted = self.net.state_dict()
        wrong = sorted(k for k in wanted if k not in state or state[k].shape != wanted[k].shape)
        if wrong:
            raise TrainError(
                f"weights {told}: not of {self.name} ({len(wrong)} tensors differ, first {wrong[0]})"
            )
        self.net.load_state_dict({k: state[k] for k in wanted})
        digest = hashlib.sha256()
        for name in sorted(wanted):
            digest.update(state[name].contiguous().view(torch.uint8).numpy().tobytes())
        return f"sha256:{digest.hexdigest()[:16]}"
