"""The convolutional auto-encoder of AE-SSIM, for images of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAK = 0.2
LATENT = 100
# Least distance of the first reconstructions from black and from white.
LEAST_LEVEL = 0.01
# Least height and width of the last grid before the latent vector.
SMALLEST_GRID = 8
# Width and stride of the layers: as many halvings to 32 channels as the size needs, then these.
FIRST = (32, 2)
LAST = ((32, 1), (64, 2), (64, 1), (128, 2), (64, 1), (32, 1))
HALVINGS_OF_LAST = 2


def halvings(height: int, width: int) -> int:
    """Return how often an image is halved, so that its shorter side becomes 8 to 15 pixels."""
    count = 0
    while min(height, width) >> (count + 1) >= SMALLEST_GRID:
        count += 1
    return max(count, HALVINGS_OF_LAST)


class AutoEncoder(nn.Module):
    """Images [N, 3, H, W] from 0 to 1 to logits of their reconstructions, of the same shape.

    Height and width are multiples of 2 to the power of `halvings`. At 128 x 128 and 256 x 256, it
    is the network of the authors. The decoder mirrors the encoder.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        count = halvings(height, width)
        widths = [FIRST] * (count - HALVINGS_OF_LAST) + list(LAST)
        grid = (height >> count, width >> count)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        channels = 3
        for after, stride in widths:
            if stride == 2:
                encoder += [nn.Conv2d(channels, after, 4, 2, 1), nn.LeakyReLU(LEAK)]
                decoder += [nn.ConvTranspose2d(after, channels, 4, 2, 1), nn.LeakyReLU(LEAK)]
            else:
                encoder += [nn.Conv2d(channels, after, 3, 1, 1), nn.LeakyReLU(LEAK)]
                decoder += [nn.Conv2d(after, channels, 3, 1, 1), nn.LeakyReLU(LEAK)]
            channels = after
        encoder += [nn.Conv2d(channels, LATENT, grid)]
        decoder += [nn.ConvTranspose2d(LATENT, channels, grid), nn.LeakyReLU(LEAK)]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*_mirrored(decoder)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.encoder(x))
        return logits

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, colour: Tensor) -> None:
        """Draw all weights from `generator`; the reconstructions begin as a plain colour [3]."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                # The generator is on the CPU, so the tensors that it fills must be there too.
                drawn = torch.empty_like(module.weight, device="cpu")
                nn.init.kaiming_normal_(drawn, LEAK, generator=generator)
                module.weight.copy_(drawn)
                nn.init.zeros_(module.get_parameter("bias"))
        last = self.decoder[-1].get_parameter("bias")
        last.copy_(torch.logit(colour, LEAST_LEVEL))


def _mirrored(decoder: list[nn.Module]) -> list[nn.Module]:
    """Return pairs of layer and activation in the opposite order of pairs."""
    layers: list[nn.Module] = []
    for index in range(len(decoder) - 2, -1, -2):
        layers += decoder[index : index + 2]
    return layers
