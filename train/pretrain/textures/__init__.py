"""Endless images of procedural textures with their classes, from formulas only: no file is read.

A class is a family (a formula) with fixed parameters. Rotation, scale, place, palette, light and
camera change from image to image. A seed fixes the classes, a generator the images. Everything is
computed on the generator's device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flawline.train.pretrain.textures.appearance import coloured, mask, photographed, relief
from flawline.train.pretrain.textures.cells import cells, leaves, pebbles
from flawline.train.pretrain.textures.faults import with_faults
from flawline.train.pretrain.textures.fractals import fractal
from flawline.train.pretrain.textures.noise import contours, spectral, spots, strokes
from flawline.train.pretrain.textures.parts import with_parts
from flawline.train.pretrain.textures.patterns import gratings, lattice, rings, weave
from flawline.train.pretrain.textures.view import ClassParameters, View, select, standardised

FAMILIES: dict[str, Callable[[ClassParameters, View], Tensor]] = {
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
# Two classes of the families above in one: added, one modulating the other, one inlaid in the
# other.
COMPOSITES = ("sum", "product", "inlay")
PARAMETERS = 40  # parameters of a class; a family reads as many as it needs
MIXED = 0.3  # fraction of a mixed batch's images that do show two textures
MOVED = 1  # pixels to either side, between the two photographs of a pair

# Standard deviations of what changes from image to image.
TURN = 0.25  # radians
SCALE = 0.35  # octaves


@dataclass(frozen=True)
class Batch:
    """A batch of n images.

    `images` [n, 3, S, S] are RGB in 0..1. `labels` [n] are the classes of the first texture and
    `others` [n] of the second, which covers `share` [n, 1, S, S] in 0..1 of every pixel. `damage`
    [n, 1, S, S] in 0..1 is how far faults changed it. `bare` [n] is False where parts of other
    images lie on the textures; such an image has no class to name.
    """

    images: Tensor
    labels: Tensor
    others: Tensor
    share: Tensor
    damage: Tensor
    bare: Tensor


class Textures:
    """`classes` textures drawn from `seed`, each of the next family in turn."""

    def __init__(self, classes: int, seed: int, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.classes = classes
        self.parameters = torch.rand(classes, PARAMETERS, generator=generator).to(device)
        self.kinds = [*FAMILIES, *COMPOSITES]
        kind = torch.arange(classes) % len(self.kinds)
        self.kind = kind.to(device)
        # The two classes that a composite combines, [classes, 2]; unused for the others.
        simple = _indices(kind < len(FAMILIES))
        pairs = torch.randint(len(simple), (classes, 2), generator=generator)
        self.parents = simple[pairs].to(device)

    def batch(
        self,
        n: int,
        size: int,
        generator: torch.Generator,
        mixed: bool = False,
        paired: bool = False,
    ) -> Batch:
        """Render `n` images of random classes, `size` pixels wide.

        `mixed` lets some of them show two textures; `paired` is as for `render`.
        """
        labels = torch.randint(self.classes, (n,), generator=generator, device=generator.device)
        others = labels.roll(1) if mixed else None
        return self.render(labels, others, size, generator, paired)

    def render(
        self,
        labels: Tensor,
        others: Tensor | None,
        size: int,
        generator: torch.Generator,
        paired: bool = False,
    ) -> Batch:
        """Render images of the classes `labels` [n], `size` pixels wide.

        `others`, if given, must be labels.roll(1): some images show patches of their neighbour's
        texture, so that no texture is drawn twice. `paired` lays parts onto some, and photographs
        all of them twice: first with faults, then, in other light and a little moved, without. The
        batch then has 2n images.
        """
        view = View.upright(len(labels), size, generator)
        surfaces = self._surfaces(labels, view)
        share = torch.zeros(len(labels), 1, size, size, device=labels.device)
        if others is None:
            others = labels
        else:
            share = _draw_share(view)
            surfaces = surfaces + share * (surfaces.roll(1, 0) - surfaces)
        if paired:
            return _photograph_twice(surfaces, labels, others, share, view)
        return Batch(
            photographed(surfaces, view),
            labels,
            others,
            share,
            damage=torch.zeros_like(share),
            bare=torch.ones_like(labels, dtype=torch.bool),
        )

    def _surfaces(self, labels: Tensor, view: View) -> Tensor:
        """Draw the reflectance [n, 3, S, S] of textures of the classes `labels` [n]."""
        field = self._fields(labels, view)
        # From the back, because the families read from the front.
        k = ClassParameters(self.parameters[labels].flip(1))
        return coloured(field, k, view) * relief(field, k, view)

    def _fields(self, labels: Tensor, view: View) -> Tensor:
        """Draw standardised fields [n, S, S] of any classes."""
        turn = TURN * view.normal(1, 1)
        scale = 2 ** (SCALE * view.normal(1, 1))
        kind = self.kind[labels]
        simple = _indices(kind < len(FAMILIES))
        composite = _indices(kind >= len(FAMILIES))
        parents = self.parents[labels[composite]]
        # Draw the parents of composites in the same call, so that all images of a family are drawn
        # together.
        image = torch.cat([simple, composite, composite])
        wanted = torch.cat([labels[simple], parents[:, 0], parents[:, 1]])
        fields = self._family_fields(wanted, turn[image], scale[image], view)

        result = torch.empty(len(labels), view.size, view.size, device=labels.device)
        result[simple] = fields[: len(simple)]
        if len(composite):
            first, second = fields[len(simple) :].chunk(2)
            result[composite] = self._combine(labels[composite], first, second)
        return result

    def _combine(self, labels: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Combine two fields [n, S, S] each into those of the composite classes `labels`."""
        composite = (self.kind[labels] - len(FAMILIES))[:, None, None]
        amount = 0.4 + 0.6 * self.parameters[labels, 0][:, None, None]
        added = first + amount * second
        product = first * torch.sigmoid(3 * amount * second)
        ground = 0.5 * first.roll(1, 2) - 1.5 * amount
        inlaid = torch.where(second > 0, first, ground)
        return standardised(select(composite, added, product, inlaid))

    def _family_fields(self, labels: Tensor, turn: Tensor, scale: Tensor, view: View) -> Tensor:
        """Draw standardised fields [n, S, S] of simple classes, family by family."""
        fields = torch.empty(len(labels), view.size, view.size, device=labels.device)
        kind = self.kind[labels]
        for number, draw in enumerate(FAMILIES.values()):
            members = _indices(kind == number)
            if not len(members):
                continue
            k = ClassParameters(self.parameters[labels[members]])
            angle = k.between(0, 6.2832) + turn[members]
            warp = k.between(-6, 6).clamp(min=0)
            texture_view = View(view.size, angle, scale[members], warp, view.generator)
            fields[members] = standardised(draw(k, texture_view))
        return fields


def _indices(condition: Tensor) -> Tensor:
    """Return the indices where a condition, bool [n], is true."""
    return condition.nonzero()[:, 0]


def _draw_share(view: View) -> Tensor:
    """Draw how much of each pixel the second texture covers, [n, 1, S, S]; 0 for most images."""
    angle = 6.2832 * view.uniform(1, 1)
    one = torch.ones_like(angle)
    turned = View(view.size, angle, one, torch.zeros_like(angle), view.generator)
    covered = mask(turned)
    return covered * (view.uniform(1, 1, 1) < MIXED)


def _photograph_twice(
    surfaces: Tensor, labels: Tensor, others: Tensor, share: Tensor, view: View
) -> Batch:
    """Photograph surfaces [n, 3, S, S] with faults, and a second time without."""
    sound, lacking, bare = with_parts(surfaces, view)
    faulty, damage = with_faults(lacking, sound, view)
    draws = torch.rand(2, generator=view.generator, device=surfaces.device)
    down, right = (draws * (2 * MOVED + 1)).long().tolist()
    moved = sound.roll((down - MOVED, right - MOVED), (2, 3))

    both_views = View.upright(2 * view.n, view.size, view.generator)
    return Batch(
        photographed(torch.cat([faulty, moved]), both_views),
        torch.cat([labels, labels]),
        torch.cat([others, others]),
        torch.cat([share, share]),
        damage=torch.cat([damage, torch.zeros_like(damage)]),
        bare=torch.cat([bare, bare]),
    )
