"""Frozen feature extractors: the ResNet family from the stem to layer3, under torchvision's names.

Only the trunk is built. Anomaly detectors read layer2 and layer3, some layer1; layer4 and the classifier would be 20
to 60 % of the arithmetic, computed and thrown away. A torchvision state_dict loads as it is.
He et al., "Deep residual learning" (2016); Zagoruyko and Komodakis, "Wide residual networks" (2016).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flawline.runtime.image import Image
from flawline.train import TrainError

# ImageNet statistics of RGB in 0..1, which every published weight file was trained with.
MEAN_RGB = (0.485, 0.456, 0.406)
STD_RGB = (0.229, 0.224, 0.225)

# name -> (bottleneck?, blocks of layer1..4, width factor, torchvision's IMAGENET1K_V1 file)
_URL = "https://download.pytorch.org/models/"
BACKBONES = {
    "resnet18": (False, (2, 2, 2, 2), 1, "resnet18-f37072fd.pth"),
    "resnet34": (False, (3, 4, 6, 3), 1, "resnet34-b627a593.pth"),
    "resnet50": (True, (3, 4, 6, 3), 1, "resnet50-0676ba61.pth"),
    "resnet101": (True, (3, 4, 23, 3), 1, "resnet101-63fe2227.pth"),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 2, "wide_resnet50_2-95faca4d.pth"),
}


class _BasicBlock(nn.Module):
    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(channels_in, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(
            self.bn2(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))
        )


class _Bottleneck(nn.Module):
    def __init__(self, channels_in: int, planes: int, stride: int, width: int) -> None:
        super().__init__()
        inner = planes * width
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = _shortcut(channels_in, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(
            self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))
        )


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
    )


def residual_stage(name: str, number: int) -> nn.Sequential:
    """layer`number` of a backbone, 1 to 4. A trunk needs no layer4; benchmarks build what the papers' code runs."""
    bottleneck, blocks, width, _ = BACKBONES[name]
    expansion, planes = 4 if bottleneck else 1, 32 * 2**number
    channels, stages = 64 if number == 1 else planes // 2 * expansion, []
    for i in range(blocks[number - 1]):
        stride = 2 if i == 0 and number > 1 else 1
        stages.append(
            _Bottleneck(channels, planes, stride, width)
            if bottleneck
            else _BasicBlock(channels, planes, stride)
        )
        channels = planes * expansion
    return nn.Sequential(*stages)


class Trunk(nn.Module):
    """Normalised RGB [N, 3, H, W] to the maps of layer2 [N, C2, H/8, W/8] and layer3 [N, C3, H/16, W/16], or of other
    `levels` of 1 to 3, in their order. `channels` are theirs."""

    def __init__(self, name: str, levels: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        if name not in BACKBONES:
            raise TrainError(f"backbone {name!r} is unknown; known: {', '.join(BACKBONES)}")
        self.name = name
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3 = (
            residual_stage(name, number) for number in (1, 2, 3)
        )
        expansion = 4 if BACKBONES[name][0] else 1
        self.levels, self.channels = levels, tuple(32 * 2**level * expansion for level in levels)

    @property
    def entry(self) -> nn.Conv2d:
        """The convolution that meets the image first."""
        return self.conv1

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        found = {}
        for level, stage in enumerate((self.layer1, self.layer2, self.layer3), 1):
            found[level] = x = stage(x)
        return tuple(found[level] for level in self.levels)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] BGR to normalised RGB [N, 3, H, W] in the trunk's own dtype."""
        return normalised(image, self.conv1.weight)


def normalised(image: Tensor, like: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] BGR to normalised RGB [N, 3, H, W] in the dtype and on the device of `like`."""
    mean, std = (like.new_tensor(v).view(3, 1, 1) for v in (MEAN_RGB, STD_RGB))
    return (image.permute(0, 3, 1, 2).flip(1).to(like.dtype) / 255 - mean) / std


def load_weights(trunk: nn.Module, weights: str, seed: int = 0) -> str:
    """Fill the trunk with `texture`, `imagenet`, `random` or a FILE; a short description with the hash. Raises
    TrainError.

    `texture` is this package's own file, which `train.pretrain` made from formulas. A file is a torchvision
    state_dict of the same architecture; layer4 and the classifier in it are ignored. A trunk with folded BatchNorm
    under the same names (identity statistics, the bias in bn.bias) is such a file too.
    """
    if not isinstance(trunk, Trunk):
        described: str = trunk.load(weights, seed)  # type: ignore[operator]
        return described
    if weights == "random":
        _initialise(trunk, seed)
        return f"random, seed {seed}"
    if weights == "texture":
        return f"texture {_load_state(trunk, _own(trunk.name))}"
    if weights == "imagenet":
        return f"imagenet IMAGENET1K_V1 {_load_state(trunk, _download(trunk.name))}"
    return f"{Path(weights).name} {_load_state(trunk, Path(weights))}"


def _initialise(trunk: Trunk, seed: int) -> None:
    """He initialisation as torchvision does, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def _own(name: str) -> Path:
    path = Path(__file__).parent / "weights" / f"{name}-texture.pth"
    if not path.exists():
        there = ", ".join(
            sorted(p.name.removesuffix("-texture.pth") for p in path.parent.glob("*-texture.pth"))
        )
        raise TrainError(
            f"weights texture: there are none of {name}, only of {there or 'no backbone'}; choose that --backbone, "
            f"or train them with python -m train.pretrain --backbone {name} and pass the file with --weights"
        )
    return path


def _download(name: str) -> Path:
    file = BACKBONES[name][3]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                _URL + file, str(path), hash_prefix=file.split("-")[1].split(".")[0]
            )
        except Exception as error:
            raise TrainError(
                f"weights imagenet: {_URL}{file} cannot be downloaded ({error}); "
                f"fetch it elsewhere and pass it with --weights {file}, or use --weights random"
            ) from error
    return path


def _load_state(trunk: Trunk, path: Path) -> str:
    try:
        data = path.read_bytes()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainError(
            f"weights {path}: cannot be read ({error.strerror}); check the path"
        ) from error
    except Exception as error:
        raise TrainError(
            f"weights {path}: not a torch state_dict; save one with torch.save(model.state_dict())"
        ) from error
    if not isinstance(state, dict) or "conv1.weight" not in state:
        raise TrainError(
            f"weights {path}: not a torchvision state_dict (no conv1.weight); pass one of {trunk.name}"
        )
    wanted = trunk.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("layer4.", "fc."))}
    wrong = sorted(
        k
        for k in wanted
        if not k.endswith("num_batches_tracked")
        and (k not in state or state[k].shape != wanted[k].shape)
    )
    wrong += sorted(set(state) - set(wanted))
    if wrong:
        raise TrainError(
            f"weights {path}: not of {trunk.name} ({len(wrong)} tensors differ, first {wrong[0]}); see --backbone"
        )
    trunk.load_state_dict(state, strict=False)
    return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


@torch.no_grad()
def calibrate_batchnorm(trunk: nn.Module, images: Sequence[Image], count: int = 32) -> None:
    """Give a random trunk the BatchNorm statistics of good images, or its activations grow from block to block."""
    norms = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    if not isinstance(trunk, Trunk) or not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    trunk.train()
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    for start in range(0, len(chosen), 8):
        batch = np.stack([images[int(i)] for i in chosen[start : start + 8]])
        trunk(trunk.normalise(torch.from_numpy(batch).to(trunk.conv1.weight.device)))
    trunk.eval()
