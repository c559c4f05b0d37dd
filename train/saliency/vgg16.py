"""VGG16 of torchvision, the saliency network of the CutSwap paper.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train import TrainError
from flawline.train.saliency.base import SaliencyNetwork

URL = "https://download.pytorch.org/models/"
FILE = "vgg16-397923af.pth"
# Channels of the 3x3 convolutions; 0 is a max pooling, whose output is a level.
LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
POOLED = 7  # height and width of what the classifier reads
MEAN_RGB = (0.485, 0.456, 0.406)
STD_RGB = (0.229, 0.224, 0.225)


class VGG16(SaliencyNetwork):
    """VGG16 with torchvision's names; its levels are the outputs of the five max poolings."""

    strides: ClassVar[tuple[int, ...]] = (2, 4, 8, 16, 32)
    title: ClassVar[str] = "VGG16 (as in the paper)"
    first_weight: ClassVar[str] = "features.0.weight"

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = 3
        for width in LAYERS:
            if width == 0:
                self.features.append(nn.MaxPool2d(2))
                continue
            self.features.append(nn.Conv2d(channels, width, 3, padding=1))
            self.features.append(nn.ReLU())
            channels = width
        self.classifier = nn.Sequential(
            nn.Linear(channels * POOLED**2, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 1000),
        )

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        mean = image.new_tensor(MEAN_RGB).view(3, 1, 1)
        std = image.new_tensor(STD_RGB).view(3, 1, 1)
        x = (image.permute(0, 3, 1, 2).flip(1) / 255 - mean) / std
        levels = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                levels.append(x)
        pooled = F.adaptive_avg_pool2d(x, POOLED)
        logits: Tensor = self.classifier(pooled.flatten(1))
        return levels, logits

    @classmethod
    def default_file(cls) -> Path:
        path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL + FILE, str(path), hash_prefix=FILE[6:14])
        except Exception as error:
            raise TrainError(
                f"saliency vgg16: {URL}{FILE} cannot be downloaded ({error}); fetch the file "
                f"elsewhere and pass it with --saliency {FILE}, or take another --saliency"
            ) from error
        return path
