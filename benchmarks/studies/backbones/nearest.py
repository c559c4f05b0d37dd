"""A detector that trains nothing: nearest neighbours among random patches of good images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.benchmarks.labels import labelled_test_images
from flawline.runtime.image import Geometry, Image
from flawline.train.backbones import create_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import RANDOM
from flawline.train.data import PreparedImages, hold_out, open_data
from flawline.train.metrics import auroc
from flawline.train.progress import Progress

# Patches of good images that every test patch is compared with.
BANK_PATCHES = 8000


@torch.inference_mode()
def nearest_auroc(
    data: Path, backbone_name: str, weights: str, seed: int, size: int, progress: Progress
) -> float:
    """Return the image AUROC over all test images of a data set, resized to `size` pixels square.

    The score of an image is the largest distance of a patch from the nearest of BANK_PATCHES random
    patches of the good images that are not held out.
    """
    dataset = open_data(data)
    geometry = Geometry("stretch", size, size)
    good = PreparedImages(hold_out(dataset.train_good)[0], geometry)
    backbone = create_backbone(backbone_name, (2, 3))
    backbone.load(weights, seed)
    if weights == RANDOM:
        backbone.estimate_batchnorm(good)
    backbone.eval()
    bank = _random_bank(backbone, good, seed, progress)
    squared_lengths = (bank**2).sum(1)
    test, labels = labelled_test_images(dataset, geometry)
    scores = []
    for image in test:
        vectors = patch_vectors(backbone, image)
        # |x - b|^2 = |x|^2 - 2 x.b + |b|^2, where |x|^2 does not decide which row is nearest.
        nearest = (squared_lengths - 2 * vectors @ bank.T).amin(1)
        squared_distances = nearest + (vectors**2).sum(1)
        scores.append(float(squared_distances.max()))
        progress("scores", len(scores), len(test))
    return auroc(labels, np.array(scores))


def patch_vectors(backbone: Backbone, image: Image) -> Tensor:
    """Return the patch features [positions of layer2, C2 + C3] of uint8 [H, W, 3] BGR.

    They are the 3x3 means of layer2 and layer3, concatenated on the grid of layer2.
    """
    tensor = torch.from_numpy(np.asarray(image))[None]
    level2, level3 = backbone.extract(tensor)
    # Zeros beyond the edge count as values, as in PatchCore's unfold. Without them the patches at
    # the border decide every score.
    fine = F.avg_pool2d(level2, 3, 1, 1)
    coarse = F.avg_pool2d(level3, 3, 1, 1)
    coarse = F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([fine, coarse], 1)[0].flatten(1).T


def _random_bank(
    backbone: Backbone, images: PreparedImages, seed: int, progress: Progress
) -> Tensor:
    """Draw BANK_PATCHES patches, as evenly over the images as whole numbers allow."""
    rng = np.random.default_rng(seed)
    bank = []
    for number, image in enumerate(images):
        vectors = patch_vectors(backbone, image)
        before = number * BANK_PATCHES // len(images)
        count = (number + 1) * BANK_PATCHES // len(images) - before
        chosen = rng.choice(len(vectors), min(count, len(vectors)), replace=False)
        bank.append(vectors[torch.from_numpy(chosen)])
        progress("bank", number + 1, len(images))
    return torch.cat(bank)
