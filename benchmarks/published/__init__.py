"""What the papers' own code executes per image, for the comparison that users make: everything it computes, also what
it throws away. Each is a module around a method of ours, with the same weights and, tests say, the same result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.backbones.resnet import residual_stage
from flawline.train.blocks.attention import Attention, position_code
from flawline.train.blocks.flow import permutation
from flawline.train.method import Fit


class PublishedSimpleNet(nn.Module):
    """The authors' SimpleNet in eager mode, layout by layout.

    Its hooks do not stop the backbone, so layer4, pooling and classifier run. layer3's patches are copied into planes,
    resized and copied back. The patch features are upsampled to the input's size and copied to the host, where
    nothing reads them.
    """

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method
        self.layer4 = residual_stage(method.backbone.name, 4)
        self.classifier = nn.Linear(2 * method.backbone.channels[1], 1000)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        method = self.method
        level2, level3 = method.backbone.extract(image)
        self.classifier(self.layer4(level3).mean((2, 3)))
        features = self._embed(level2, level3)
        result: tuple[Tensor, Tensor] = method.judge(features)
        size = (method.geometry.height, method.geometry.width)
        unread = F.interpolate(
            features.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False
        )
        unread.cpu().numpy()
        return result

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """What is needed of all this after the backbone."""
        result: tuple[Tensor, Tensor] = self.method.judge(self._embed(*levels))
        return result

    def _embed(self, level2: Tensor, level3: Tensor) -> Tensor:
        n, _, h, w = level2.shape
        patches = [_patches(level) for level in (level2, level3)]  # [N, positions, C, 3, 3]
        coarse = (
            patches[1].reshape(n, *level3.shape[2:], -1, 3, 3).permute(0, 3, 4, 5, 1, 2)
        )  # [N, C, 3, 3, h/2, w/2]
        planes = coarse.reshape(-1, 1, *level3.shape[2:])
        fine = F.interpolate(planes, size=(h, w), mode="bilinear", align_corners=False)
        patches[1] = fine.reshape(*coarse.shape[:4], h, w).permute(0, 4, 5, 1, 2, 3).flatten(1, 2)
        vectors = [p.reshape(n * h * w, 1, -1) for p in patches]
        levels = [
            F.adaptive_avg_pool1d(v, self.method.settings.level_dim).squeeze(1) for v in vectors
        ]
        both = torch.stack(levels, 1).reshape(n * h * w, 1, -1)
        features = F.adaptive_avg_pool1d(both, self.method.settings.target_dim)
        return features.reshape(n, h, w, -1)


def _patches(level: Tensor) -> Tensor:
    """3x3 patches of a map [N, C, h, w] as [N, hw, C, 3, 3]."""
    unfolded = F.unfold(level, 3, padding=1).view(*level.shape[:2], 3, 3, -1)
    return unfolded.permute(0, 4, 1, 2, 3)


class ExportableSimpleNet(nn.Module):
    """The literal pipeline as it can be exported: adaptive pooling by whole factors written as plain pooling, which the
    exporter knows. Raises TrainError for dimensions that do not divide."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method, self.backbone = method, method.backbone
        lengths = [9 * channels for channels in method.backbone.channels]
        if (
            any(n % method.settings.level_dim for n in lengths)
            or 2 * method.settings.level_dim % method.settings.target_dim
        ):
            raise TrainError(
                f"{lengths} values do not pool to {method.settings.level_dim} by whole factors: it has no literal ONNX"
            )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, level2: Tensor, level3: Tensor) -> tuple[Tensor, Tensor]:
        method = self.method
        n, _, h, w = level2.shape
        patches2 = F.unfold(level2, 3, padding=1).transpose(1, 2)
        planes3 = F.unfold(level3, 3, padding=1).view(n, -1, *level3.shape[2:])
        planes3 = F.interpolate(planes3, size=(h, w), mode="bilinear", align_corners=False)
        patches3 = planes3.flatten(2).transpose(1, 2)
        factors = [
            9 * channels // method.settings.level_dim for channels in method.backbone.channels
        ]
        levels = [F.avg_pool1d(p, k, k) for p, k in zip((patches2, patches3), factors, strict=True)]
        both = 2 * method.settings.level_dim // method.settings.target_dim
        features: Tensor = F.avg_pool1d(torch.cat(levels, 2), both, both).view(n, h, w, -1)
        result: tuple[Tensor, Tensor] = method.judge(features)
        return result


class _Flows(nn.Module):
    """A method of normalising flows whose flows, and other parts by their type, are exchanged for what is timed."""

    def __init__(self, method: Any, exchange: dict[type, Callable[[Any], nn.Module]]) -> None:
        super().__init__()
        self.backbone, self.rest = method.backbone, copy.deepcopy(method)
        self.rest.backbone = _Given()
        for kind, make in exchange.items():
            for parent in list(self.rest.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, kind):
                        setattr(parent, name, make(child))
        self.requires_grad_(
            False
        )  # the meter of multiplications cannot see a module that is given a parameter

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.rest(levels)
        return result


class _Given(nn.Module):
    """In place of a trunk: the levels are there."""

    def extract(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return levels


class PublishedFlows(_Flows):
    """The flows' published code in eager mode, which is the same for both: FrEIA's forward, whose permutations are
    convolutions with dense matrices, its log-determinants, and the loss of them, also where nobody trains.

    SSNF's attention makes its position code anew for every image and writes its weights out.
    """

    def __init__(self, method: Any) -> None:
        super().__init__(method, {SequenceINN: _WithLoss, Attention: _WrittenOut})


class _WithLoss(nn.Module):
    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(x)
        (0.5 * z.square().sum((1, 2, 3)) - log_det).mean()
        return z, log_det


class _WrittenOut(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.project, self.heads = attention.project, attention.heads

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        projected = self.project(tokens + position_code(h * w, c).to(x))
        key, value, query = (
            t.view(n, h * w, self.heads, -1).transpose(1, 2) for t in projected.split(c, -1)
        )
        weights = torch.softmax(query * (c // self.heads) ** -0.5 @ key.transpose(2, 3), -1)
        mixed = (weights @ value).transpose(1, 2).reshape(n, h * w, c)
        result: Tensor = mixed.transpose(1, 2).reshape(n, c, h, w)
        return result


class ExportableFlows(_Flows):
    """The literal flow as an exporter leaves it: without the log-determinants, which no output needs. With `by_index`
    permutations are indices, as in later releases of FrEIA; 0.2 multiplies by a dense matrix."""

    def __init__(self, method: Any, by_index: bool = False) -> None:
        super().__init__(method, {SequenceINN: lambda flow: _WithoutLogDet(flow, by_index)})


class _WithoutLogDet(nn.Module):
    def __init__(self, flow: Any, by_index: bool) -> None:
        super().__init__()
        self.flow, self.orders = (
            flow,
            [permutation(b) if by_index else None for b in flow.module_list],
        )

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        for block, order in zip(self.flow.module_list, self.orders, strict=True):
            passive, active = torch.split(x, block.splits, 1)
            a = 0.1 * block.subnet(passive)
            half = active.shape[1]
            active = active * torch.exp(block.clamp * torch.tanh(a[:, :half])) + a[:, half:]
            scale = block.global_scale_activation(block.global_scale)
            x = torch.cat([passive, active], 1) * scale + block.global_offset
            x = F.conv2d(x, block.w_perm) if order is None else x[:, order]
        return x, None


@torch.no_grad()
def as_if_trained(method: Any, images: Sequence[Image], seed: int) -> None:
    """Give a method of flows what training would change, or a rewrite that forgets a scale or an offset would pass:
    the statistics of the images, and constants away from where they begin. Other methods stay as they are."""
    blocks = [module for module in method.modules() if isinstance(module, AllInOneBlock)]
    if not blocks:
        return
    method.fit(Fit(images, 0, seed))
    generator = torch.Generator().manual_seed(seed)
    for block in blocks:
        block.global_scale.uniform_(6, 13, generator=generator)  # 0.6 to 1.3
        block.global_offset.normal_(0, 0.1, generator=generator)
        block.subnet.last.weight.mul_(2)
    for norm in (module for module in method.modules() if isinstance(module, nn.LayerNorm)):
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0, 0.2, generator=generator)


# method -> what its authors' code runs, and the literal pipeline as it can be exported
PUBLISHED: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "simplenet": (PublishedSimpleNet, ExportableSimpleNet),
    "fastflow": (PublishedFlows, ExportableFlows),
    "ssnf": (PublishedFlows, ExportableFlows),
}

# method -> further forms, timed beside: what the shipped form was chosen from
ALTERNATIVES: dict[str, dict[str, Callable[[Any], nn.Module]]] = {
    "fastflow": {
        "(d) fused, padded": lambda method: method.fused("padded"),
        "(d) fused, gathered": lambda method: method.fused("gathered"),
        "(e) literal, by index": lambda method: ExportableFlows(method, by_index=True),
    },
    "ssnf": {
        "(d) fused, gathered": lambda method: method.fused("gathered"),
        "(e) literal, by index": lambda method: ExportableFlows(method, by_index=True),
    },
}
