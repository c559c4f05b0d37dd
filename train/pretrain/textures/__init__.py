"""Endless pictures of procedural textures, and which class each is of. Formulas only: nothing is read.

A class is a family (a formula) with fixed parameters; rotation, scale, place, palette, light and camera change from
picture to picture. A seed fixes the classes, a generator the pictures. Everything runs where the generator lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flawline.train.pretrain.textures.defects import damaged
from flawline.train.pretrain.textures.exposure import coloured, mask, photographed, relief
from flawline.train.pretrain.textures.fractals import fractal
from flawline.train.pretrain.textures.noise import contours, spectral, spots, strokes
from flawline.train.pretrain.textures.parts import assembled
from flawline.train.pretrain.textures.patterns import gratings, lattice, rings, weave
from flawline.train.pretrain.textures.shapes import cells, leaves, pebbles
from flawline.train.pretrain.textures.view import Knobs, View, normalised

FAMILIES: dict[str, Callable[[Knobs, View], Tensor]] = {
    "spectral": spectral,
    "spots": spots,
    "contours": contours,
    "strokes": strokes,
    "gratings": gratings,
    "weave": weave,
    "lattice": lattice,
    "rings": rings,
    "cells": cells,
    "pebbles": pebbles,
    "leaves": leaves,
    "fractal": fractal,
}
# Two classes of the families above in one: added, one modulating the other, or one inlaid in the other.
COMPOSITES = ("sum", "product", "inlay")
KNOBS = 40
MIXED = 0.3  # share of the mixed batches' pictures that do show two textures
MOVED = 1  # pixels to either side, between the two photographs of a pair

TURN, SCALE = 0.25, 0.35  # standard deviations of the nuisance: radians and octaves


@dataclass(frozen=True)
class Batch:
    """`images` [n, 3, S, S] RGB in 0..1; `labels` [n] of the first texture and `others` [n] of the second, which
    covers `share` [n, 1, S, S] in 0..1 of every pixel; `damage` [n, 1, S, S] in 0..1 is how far faults changed it.
    `bare` [n] is False where parts of other pictures lie on the textures, which then are not to be named."""

    images: Tensor
    labels: Tensor
    others: Tensor
    share: Tensor
    damage: Tensor
    bare: Tensor


class Textures:
    """`classes` textures drawn from `seed`; their families take turns."""

    def __init__(self, classes: int, seed: int, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.classes = classes
        self.knobs = torch.rand(classes, KNOBS, generator=generator).to(device)
        self.kinds = [*FAMILIES, *COMPOSITES]
        self.kind = (torch.arange(classes) % len(self.kinds)).to(device)
        plain = [c for c in range(classes) if c % len(self.kinds) < len(FAMILIES)]
        pairs = torch.randint(len(plain), (classes, 2), generator=generator)
        self.parents = torch.tensor(plain)[pairs].to(device)  # of composites, [classes, 2]

    def batch(
        self,
        n: int,
        size: int,
        generator: torch.Generator,
        mixed: bool = False,
        paired: bool = False,
    ) -> Batch:
        """Pictures of random classes; `mixed` lets some of them show two, `paired` is as for `render`."""
        labels = torch.randint(self.classes, (n,), generator=generator, device=generator.device)
        return self.render(labels, labels.roll(1) if mixed else None, size, generator, paired)

    def render(
        self,
        labels: Tensor,
        others: Tensor | None,
        size: int,
        generator: torch.Generator,
        paired: bool = False,
    ) -> Batch:
        """Pictures of `labels`, with patches of `others`, which must be labels.roll(1): no texture is drawn twice.

        `paired` lays parts onto some, and photographs all twice: first with faults laid into them, then, in other
        light and a little moved, without.
        """
        n = len(labels)
        knobs = self.knobs[labels]
        still = torch.zeros(n, 1, 1, device=labels.device)
        view = View(size, still, still, still, generator)
        field = self._fields(labels, size, view)
        k = Knobs(knobs.flip(1))  # the families read from the front
        picture = coloured(field, k, view) * relief(field, k, view)
        share = damage = torch.zeros(n, 1, size, size, device=labels.device)
        bare = torch.ones(n, dtype=torch.bool, device=labels.device)
        if others is not None:
            angle = 6.2832 * view.uniform(1, 1)
            covered = mask(
                View(size, angle, torch.ones_like(angle), torch.zeros_like(angle), generator)
            )
            share = covered * (view.uniform(1, 1, 1) < MIXED)
            picture = picture + share * (picture.roll(1, 0) - picture)
        others = labels if others is None else others
        if paired:
            picture, lacking, bare = assembled(picture, view)
            faulty, damage = damaged(lacking, picture, view)
            down, right = (
                (torch.rand(2, generator=generator, device=labels.device) * (2 * MOVED + 1))
                .long()
                .tolist()
            )
            moved = picture.roll((down - MOVED, right - MOVED), (2, 3))
            picture, damage = (
                torch.cat([faulty, moved]),
                torch.cat([damage, torch.zeros_like(damage)]),
            )
            labels, others, share, bare, still = (
                torch.cat([one, one]) for one in (labels, others, share, bare, still)
            )
            view = View(size, still, still, still, generator)
        return Batch(photographed(picture, view), labels, others, share, damage, bare)

    def _fields(self, labels: Tensor, size: int, view: View) -> Tensor:
        """Normalised fields [n, S, S] of any classes."""
        turn, scale = TURN * view.normal(1, 1), 2 ** (SCALE * view.normal(1, 1))
        kind = self.kind[labels]
        double = (kind >= len(FAMILIES)).nonzero()[:, 0]
        parents = self.parents[labels[double]]
        plain = (kind < len(FAMILIES)).nonzero()[:, 0]
        # one call for all: a family's pictures are drawn together, whatever they are for
        picture = torch.cat([plain, double, double])
        wanted = torch.cat([labels[plain], parents[:, 0], parents[:, 1]])
        fields = self._plain(wanted, turn[picture], scale[picture], size, view.generator)
        result = torch.empty(len(labels), size, size, device=labels.device)
        result[plain] = fields[: len(plain)]
        if len(double):
            first, second = fields[len(plain) :].chunk(2)
            which = (kind[double] - len(FAMILIES))[:, None, None]
            amount = 0.4 + 0.6 * self.knobs[labels[double], 0][:, None, None]
            added, product = first + amount * second, first * torch.sigmoid(3 * amount * second)
            inlaid = torch.where(second > 0, first, 0.5 * first.roll(1, 2) - 1.5 * amount)
            result[double] = normalised(
                torch.where(which == 0, added, torch.where(which == 1, product, inlaid))
            )
        return result

    def _plain(
        self, labels: Tensor, turn: Tensor, scale: Tensor, size: int, generator: torch.Generator
    ) -> Tensor:
        fields = torch.empty(len(labels), size, size, device=labels.device)
        kind = self.kind[labels]
        for number, draw in enumerate(FAMILIES.values()):
            mine = (kind == number).nonzero()[:, 0]
            if not len(mine):
                continue
            k = Knobs(self.knobs[labels[mine]])
            angle = k.between(0, 6.2832) + turn[mine]
            warp = k.between(-6, 6).clamp(min=0)
            fields[mine] = normalised(draw(k, View(size, angle, scale[mine], warp, generator)))
        return fields
