"""The two figures of the study, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flawline.benchmarks.studies.bank_size.measure import CORESET, RANDOM, Patches, patch_grid
from flawline.benchmarks.studies.results import column, rows_with
from flawline.runtime.console import log
from flawline.runtime.image import Image
from flawline.train.methods.patchcore import PatchCore

# Draws into files, also on a machine without a display.
mpl.use("Agg")

# Patches in the scatter, and patches shown as images.
SCATTERED = 12_000
SHOWN_PATCHES = 24
# Pixels per cell of the grid, and cells that a shown patch spans, as the features read layer2.
CELL = 8
SPAN = 3


def draw_sizes(rows: Sequence[Mapping[str, Any]], title: str, out: Path) -> None:
    """Draw image AUROC of both kinds of bank, and FPS, against the number of rows."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for kind, style in ((CORESET, "C0o-"), (RANDOM, "C1s--")):
        of_kind = rows_with(rows, "bank", kind)
        sizes = column(of_kind, "rows")
        percent = 100 * np.array(column(of_kind, "image_auroc"))
        axes.plot(sizes, percent, style, label=f"image AUROC, {kind} rows")
    speed = axes.twinx()
    frames_per_second = column(rows_with(rows, "bank", CORESET), "fps")
    speed.plot(sizes, frames_per_second, "^-", color="0.55", label="FPS")
    speed.set_ylim(0)
    speed.set_ylabel("frames per second (median, batch 1, engine alone)", color="0.4")
    # Sizes double, so their logarithms are evenly spaced.
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, labels=sizes)
    axes.minorticks_off()
    axes.set_xlabel("rows of the bank")
    axes.set_ylabel("image AUROC [%]")
    axes.grid(color="0.9")
    lines = axes.get_lines() + speed.get_lines()
    axes.legend(handles=lines, loc="lower center", fontsize=9, frameon=False)
    axes.set_title(title, fontsize=10)
    _save(figure, out)


def draw_selection(
    model: PatchCore, rows: int, random: Patches, images: Sequence[Image], out: Path
) -> None:
    """Draw which patches the coreset selects first: among all patches, on the part, as images.

    `rows` of the coreset are compared with as many random patches; `images` are the good images
    uint8 [H, W, 3] that both are from.
    """
    origin = model.bank.origin[:rows].numpy()
    grid = patch_grid(model)
    figure = plt.figure(figsize=(11, 6.6), layout="constrained")
    grid_lines = figure.add_gridspec(2, 1, height_ratios=(2, 1))
    top = figure.add_subfigure(grid_lines[0])
    bottom = figure.add_subfigure(grid_lines[1])
    left, middle, right = top.subplots(1, 3)
    everything, selected, at_random = _projected(
        random.vectors[:SCATTERED], model.bank.vectors[:rows], random.vectors[:rows]
    )
    _scatter(left, everything, selected, f"{rows} rows of the coreset")
    _scatter(middle, everything, at_random, f"{rows} at random")
    counts = _count_positions(origin, grid)
    shown = right.imshow(counts, cmap="viridis")
    right.set(xticks=[], yticks=[])
    right.set_title("where on the part the coreset's rows were", fontsize=10)
    ticks = MaxNLocator(integer=True)
    top.colorbar(shown, ax=right, shrink=0.8, label="rows", ticks=ticks)
    strip = bottom.subplots(2, SHOWN_PATCHES // 2)
    title = f"the first {SHOWN_PATCHES} rows of the coreset, in the order of choice"
    bottom.suptitle(title, fontsize=10)
    for panel, patch in zip(strip.flat, origin[:SHOWN_PATCHES], strict=False):
        pixels = _patch_pixels(images, int(patch), grid)
        panel.imshow(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    for panel in strip.flat:
        panel.set(xticks=[], yticks=[])
    _save(figure, out)


def _projected(everything: torch.Tensor, *others: torch.Tensor) -> list[NDArray[Any]]:
    """Project vectors [k, D] onto the first two principal components of all of them: [2, k]."""
    mean = everything.mean(0)
    components = torch.linalg.svd(everything - mean, full_matrices=False).Vh[:2].T
    projected = []
    for vectors in (everything, *others):
        projected.append(((vectors - mean) @ components).numpy().T)
    return projected


def _scatter(panel: Axes, everything: NDArray[Any], points: NDArray[Any], title: str) -> None:
    panel.scatter(everything[0], everything[1], s=2, color="0.8", linewidths=0)
    panel.scatter(points[0], points[1], s=5, color="C0", linewidths=0)
    panel.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
    panel.set_title(title, fontsize=10)


def _count_positions(origin: NDArray[Any], grid: tuple[int, int]) -> NDArray[Any]:
    """Count the patches at each position of the grid: [h, w]."""
    positions = grid[0] * grid[1]
    counts = np.bincount(origin % positions, minlength=positions)
    return counts.reshape(grid)


def _patch_pixels(images: Sequence[Image], patch: int, grid: tuple[int, int]) -> Image:
    """The pixels around a patch, repeated beyond the border of the image."""
    number, position = divmod(patch, grid[0] * grid[1])
    row, column = divmod(position, grid[1])
    reach = CELL * SPAN // 2
    image = np.asarray(images[number])
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    y = CELL * row + CELL // 2
    x = CELL * column + CELL // 2
    return padded[y : y + 2 * reach, x : x + 2 * reach]


def _save(figure: Figure, out: Path) -> None:
    for suffix in (".png", ".svg"):
        path = out.with_name(out.name + suffix)
        figure.savefig(path, dpi=150)
        log(f"wrote {path}")
    plt.close(figure)
