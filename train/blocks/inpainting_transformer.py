"""The transformer of InTra, which predicts a hidden patch from the others of its window.

Pirnay and Chai, "Inpainting transformer for anomaly detection" (ICIAP 2022), after a public
re-implementation (jhy12/inpainting-transformer), and the form of it that is exported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.fused import fp32
from flawline.train.blocks.patch_windows import PATCH, WINDOW

PIXELS = 3 * PATCH * PATCH
TOKENS = WINDOW * WINDOW


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, result: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, result)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(F.gelu(self.first(x)))
        return result


class SelfAttention(nn.Module):
    """Self-attention over tokens [B, T, D] whose queries and keys come from a network each.

    They have D / 2 channels and the values D, both divided among the heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Perceptron(width, 2 * width, width // 2)
        self.key = Perceptron(width, 2 * width, width // 2)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query = self._per_head(self.query(x))
        key = self._per_head(self.key(x))
        value = self._per_head(self.value(x))
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(3)
        mixed: Tensor = self.project((weights @ value).transpose(1, 2).flatten(2))
        return mixed

    def _per_head(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, heads, T, C / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Self-attention and a network of single tokens, each after a LayerNorm and with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.network = Perceptron(width, 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.network(self.norm2(x))
        return result


def skipped_block(block: int, blocks: int) -> int | None:
    """Return the block whose result is added to the input of a block; None if there is none.

    The second half of the blocks get the results of the first half in the opposite order.
    """
    if block > blocks / 2:
        return blocks - block
    return None


class InpaintingTransformer(nn.Module):
    """Windows of 7 x 7 patches of 16 x 16 pixels, one of which is hidden, to that patch.

    width: channels of a token, which twice the `heads` divide. patches: of an image; each has its
    own position code.
    """

    def __init__(self, width: int, heads: int, blocks: int, patches: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(PIXELS, width)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.code = nn.Parameter(torch.zeros(patches, width))
        self.blocks = nn.ModuleList([TransformerBlock(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, PIXELS)

    def forward(self, patches: Tensor, table: Tensor, own: Tensor) -> Tensor:
        """Predict patches [B, 768] from the windows of patches [B, 49, 768] around them.

        table: the numbers of these patches in their images, [B, 49]. own: those of the hidden ones,
        [B], which are read nowhere.
        """
        hidden = (table == own[:, None])[..., None]
        x = torch.where(hidden, self.hidden, self.embedding(patches)) + self.code[table]
        results: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            source = skipped_block(number, len(self.blocks))
            if source is not None:
                x = x + results[source]
            x = block(x)
            results.append(x)
        predicted: Tensor = self.last(self.norm(x).mean(1))
        return predicted

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, colour: Tensor) -> None:
        """Draw all weights from `generator`; the predictions begin near a plain colour [3]."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # Drawn on the CPU, where the generator is.
                drawn = torch.empty_like(module.weight, device="cpu")
                nn.init.xavier_uniform_(drawn, generator=generator)
                module.weight.copy_(drawn)
                module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for parameter in (self.hidden, self.code):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.last.bias.copy_(colour.repeat_interleave(PATCH * PATCH))


# ---------------------------------------------------------------- the exported form


class FusedInpaintingTransformer(nn.Module):
    """Images [N, 3, H, W] to the predictions of all their patches, [N, patches, 768].

    All windows are one batch. In an image, a patch is the same token in every window, and so is a
    hidden patch: before the tokens are mixed, they are computed once for each of these instead of
    once for each window. The scale and offset of a LayerNorm are in the weights after it, and the
    scale of the products of queries and keys is in the queries. `scale` divides the pixels.
    """

    visible: Tensor
    code: Tensor
    table: Tensor

    def __init__(self, network: InpaintingTransformer, table: Tensor, scale: float) -> None:
        super().__init__()
        width = network.code.shape[1]
        patches = len(table)
        self.patches = patches
        self.width = width
        self.embedding = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        weight = network.embedding.weight.detach() / scale
        self.embedding.weight.data = weight.view(width, 3, PATCH, PATCH)
        # The first half of the tokens are visible patches, the second half are hidden ones.
        self.register_buffer("visible", torch.tensor([1.0, 0.0]).double().view(2, 1, 1))
        code = network.code.detach()
        self.register_buffer(
            "code", torch.cat([code + network.embedding.bias, code + network.hidden]).detach()
        )
        own = torch.arange(patches)[:, None]
        self.register_buffer("table", (table + patches * (table == own)).flatten())
        self.blocks = nn.ModuleList()
        for block in network.blocks:
            assert isinstance(block, TransformerBlock)
            self.blocks.append(_FusedBlock(block))
        self.norm = fp32(_Normalise(width, network.norm.eps))
        self.last = _after_norm(network.norm, [network.last])

    def forward(self, image: Tensor) -> Tensor:
        embedded = self.embedding(image).reshape(-1, 1, self.width, self.patches)
        both = embedded.transpose(2, 3) * self.visible
        x = both.reshape(-1, 2 * self.patches, self.width) + self.code
        results: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            source = skipped_block(number, len(self.blocks))
            if source is not None:
                x = x + results[source]
            x = block(x, self.table if number == 0 else None)
            results.append(x)
        means = self.norm(x).mean(1)
        predicted: Tensor = self.last(means).reshape(-1, self.patches, PIXELS)
        return predicted


class _FusedBlock(nn.Module):
    """`TransformerBlock` with one matrix for all linear layers that read the same tokens."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        attention = block.attention
        self.heads = attention.heads
        self.width = attention.project.in_features
        self.norm1 = fp32(_Normalise(self.width, block.norm1.eps))
        first = [attention.query.first, attention.key.first, attention.value]
        self.first = _after_norm(block.norm1, first)
        self.query = attention.query.last
        factor = (self.width // (2 * self.heads)) ** -0.5
        self.query.weight.data = self.query.weight.data * factor
        self.query.bias.data = self.query.bias.data * factor
        # The bias of the keys adds the same number to all values that a softmax divides among, so
        # that it changes nothing. Training leaves it near zero, where FP16 has no numbers.
        self.key = nn.Linear(2 * self.width, self.width // 2, bias=False)
        self.key.weight.data = attention.key.last.weight.detach()
        self.softmax = fp32(_Softmax())
        self.project = attention.project
        self.norm2 = fp32(_Normalise(self.width, block.norm2.eps))
        self.grow = _after_norm(block.norm2, [block.network.first])
        self.shrink = block.network.last

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        """Compute the block for windows [B, 49, D], or for the windows of tokens [N, T, D].

        table: the numbers of the tokens of all windows, one window after the other, or None.
        """
        width = self.width
        inner, value = torch.split(self.first(self.norm1(x)), [4 * width, width], 2)
        from_query, from_key = torch.split(F.gelu(inner), 2 * width, 2)
        query = self.query(from_query)
        key = self.key(from_key)
        if table is not None:
            x = _windows(x, table, width)
            query = _windows(query, table, width // 2)
            key = _windows(key, table, width // 2)
            value = _windows(value, table, width)
        query = self._per_head(query, width // 2)
        key = self._per_head(key, width // 2)
        weights = self.softmax(query @ key.transpose(2, 3))
        mixed = weights @ self._per_head(value, width)
        mixed = mixed.transpose(1, 2).reshape(-1, TOKENS, width)
        x = x + self.project(mixed)
        result: Tensor = x + self.shrink(F.gelu(self.grow(self.norm2(x))))
        return result

    def _per_head(self, x: Tensor, channels: int) -> Tensor:
        """[B, 49, channels] to [B, heads, 49, channels / heads]."""
        return x.reshape(-1, TOKENS, self.heads, channels // self.heads).transpose(1, 2)


def _windows(x: Tensor, table: Tensor, width: int) -> Tensor:
    """Choose the tokens of all windows: [N, T, width] to [N * windows, 49, width]."""
    return x.index_select(1, table).reshape(-1, TOKENS, width)


def _after_norm(norm: nn.LayerNorm, layers: list[nn.Linear]) -> nn.Linear:
    """Return the linear layers after a LayerNorm as one, which has its scale and offset."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = torch.cat([layer.bias.detach() for layer in layers])
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data = weight * norm.weight.detach()
    linear.bias.data = bias + weight @ norm.bias.detach()
    return linear


class _Normalise(nn.Module):
    """A LayerNorm without scale and offset: its sums of squares need FP32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), eps=self.epsilon)


class _Softmax(nn.Module):
    """Softmax over the last axis, whose exponentials need FP32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(3)
