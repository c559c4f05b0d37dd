"""The two networks of DRAEM: one reconstructs an image, the other one finds what that changed.

Zavrtanik, Kristan and Skočaj, "DRAEM: a discriminatively trained reconstruction embedding for
surface anomaly detection" (ICCV 2021), after the authors' code (VitjanZ/DRAEM).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.fused import fold_batchnorm

# Standard deviation of the initial weights of BatchNorms around 1.
SPREAD = 0.02
# Both sides of an input are multiples of this: five times halved in the second network.
UNIT = 32
# Exponent of the focal loss.
FOCUS = 2.0


class Pair(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, before: int, between: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, between, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(between)
        self.conv2 = nn.Conv2d(between, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class Up(nn.Module):
    """Bilinear upsampling to twice the size, and a 3x3 convolution with BatchNorm and ReLU."""

    def __init__(self, before: int, after: int, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=self.align_corners)
        return F.relu(self.bn1(self.conv1(x)))


class ReconstructionNetwork(nn.Module):
    """Images [N, 3, H, W] to their reconstructions; `width` channels at full size.

    There is no connection around the coarsest grid, so that an anomaly is not copied.
    """

    def __init__(self, width: int, align_corners: bool) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList()
        before = 3
        for after in widths:
            self.down.append(Pair(before, after, after))
            before = after
        self.ups = nn.ModuleList()
        self.pairs = nn.ModuleList()
        for after in (4 * width, 2 * width, width, width):
            self.ups.append(Up(before, before, align_corners))
            self.pairs.append(Pair(before, before, after))
            before = after
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for number, pair in enumerate(self.down):
            if number > 0:
                x = F.max_pool2d(x, 2)
            x = pair(x)
        for up, pair in zip(self.ups, self.pairs, strict=True):
            x = pair(up(x))
        reconstruction: Tensor = self.last(x)
        return reconstruction


class DifferenceNetwork(nn.Module):
    """Reconstructions and images [N, 6, H, W] to logits [N, 2, H, W] of good and anomalous.

    `width` channels at full size; a U-net, with a connection on each of its finer grids.
    """

    def __init__(self, width: int, align_corners: bool) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList()
        before = 6
        for after in widths:
            self.down.append(Pair(before, after, after))
            before = after
        self.ups = nn.ModuleList()
        self.pairs = nn.ModuleList()
        for beside, after in zip(
            reversed(widths[:-1]), (8 * width, 4 * width, 2 * width, width, width), strict=True
        ):
            self.ups.append(Up(before, after, align_corners))
            self.pairs.append(Pair(after + beside, after, after))
            before = after
        self.last = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Compute the features [N, width, H, W] that the last convolution reads."""
        levels = []
        for number, pair in enumerate(self.down):
            if number > 0:
                x = F.max_pool2d(x, 2)
            x = pair(x)
            levels.append(x)
        levels.pop()
        for up, pair in zip(self.ups, self.pairs, strict=True):
            x = pair(torch.cat([up(x), levels.pop()], 1))
        return x


class FoldedNetworks(nn.Module):
    """Both networks with folded BatchNorm, for export.

    Images [N, 3, H, W] from 0 to 255 to the features [N, width, H, W] before the last convolution
    of the second network.
    """

    def __init__(
        self, reconstruction: ReconstructionNetwork, difference: DifferenceNetwork
    ) -> None:
        super().__init__()
        self.reconstruction = fold_batchnorm(reconstruction)
        self.difference = fold_batchnorm(difference)
        for network in (self.reconstruction, self.difference):
            # The images are the last three channels of either input.
            network.get_parameter("down.0.conv1.weight").data[:, -3:] /= 255

    def take_last(self) -> nn.Conv2d:
        """Return the last convolution, to the logit of an anomaly, and remove it here."""
        last = self.difference.last
        del self.difference.last
        for name in ("weight", "bias"):
            values = last.get_parameter(name).data
            setattr(last, name, nn.Parameter(values[1:] - values[:1]))
        last.out_channels = 1
        return last

    def forward(self, x: Tensor) -> Tensor:
        return self.difference.features(torch.cat([self.reconstruction(x), x], 1))


@torch.no_grad()
def initialise(network: nn.Module, spread: float | None, generator: torch.Generator) -> None:
    """Draw all weights of one of the networks from `generator`; biases are 0.

    spread: standard deviation of the weights of convolutions. With None, it depends on their
    number, so that the variance of what they compute is about 1 and BatchNorm changes little.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # The generator is on the CPU, so the tensors that it fills must be there too.
            drawn = torch.empty_like(module.weight, device="cpu")
            deviation = spread or (2 / module.weight[0].numel()) ** 0.5
            module.weight.copy_(drawn.normal_(0, deviation, generator=generator))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            drawn = torch.empty_like(module.weight, device="cpu")
            module.weight.copy_(drawn.normal_(1, SPREAD, generator=generator))
            module.bias.zero_()
            module.reset_running_stats()


def focal_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Compute the focal loss of logits [N, 2, H, W] of good and anomalous; mask: bool [N, H, W]."""
    log = torch.log_softmax(logits, 1)
    log = torch.where(mask, log[:, 1], log[:, 0])
    return -((1 - log.exp()) ** FOCUS * log).mean()
