"""A contact sheet of what a backbone is trained on."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from flawline.runtime.files import write_atomically
from flawline.train import TrainError
from flawline.train.pretrain.textures import Textures

COLOURS = 128  # a palette keeps the file small


def write_sheet(path: Path, classes: int, seed: int, tile: int = 48, columns: int = 12) -> None:
    """Draw one row of classes per family, one where two textures meet, and a pair of rows with and without faults."""
    from PIL import Image  # matplotlib brings it

    textures, generator = Textures(classes, seed), torch.Generator().manual_seed(seed)
    families = len(textures.kinds)
    labels = (torch.arange(families)[:, None] + families * torch.arange(columns)) % classes
    rows = [textures.render(row, None, tile, generator).images for row in labels]
    rows.append(textures.batch(columns, tile, generator, mixed=True).images)
    rows += textures.batch(columns, tile, generator, paired=True).images.chunk(2)
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    buffer = io.BytesIO()
    picture = Image.fromarray((255 * sheet).byte().permute(1, 2, 0).numpy())
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise TrainError(
            f"--picture {path}: cannot be written ({error.strerror}); choose another"
        ) from error
