"""A contact sheet of the images that a backbone is trained on."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from flawline.runtime.files import write_file
from flawline.train import TrainError
from flawline.train.pretrain.textures import Textures

COLOURS = 128  # a palette keeps the file small
TILE = 48  # height and width of an image in pixels
COLUMNS = 12


def write_sheet(path: Path, classes: int, seed: int) -> None:
    """Write a PNG with a row of classes of each family, a row of mixed images and a pair of rows.

    The pair shows the same scenes with and without faults. Raises TrainError where the file cannot
    be written.
    """
    textures = Textures(classes, seed)
    generator = torch.Generator().manual_seed(seed)
    families = len(textures.kinds)
    rows = []
    for family in range(families):
        labels = (family + families * torch.arange(COLUMNS)) % classes
        rows.append(textures.render(labels, None, TILE, generator).images)
    rows.append(textures.batch(COLUMNS, TILE, generator, mixed=True).images)
    rows += textures.batch(COLUMNS, TILE, generator, paired=True).images.chunk(2)

    data = _encode(torch.cat([_join(row) for row in rows], 1))
    write_file(path, data, TrainError, "--picture")


def _join(images: Tensor) -> Tensor:
    """Place images [n, 3, S, S] next to each other, [3, S, n * S]."""
    return torch.cat(list(images), 2)


def _encode(sheet: Tensor) -> bytes:
    """Encode [3, h, w] in 0..1 as a PNG with a palette."""
    from PIL import Image  # a dependency of matplotlib, which the train extra brings

    pixels = (255 * sheet).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels).quantize(COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
