"""The sub-network with self-attention against the paper's formulas, token by token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flow_oracles import close
from torch.nn import functional as F

from flawline.train import TrainError
from flawline.train.blocks.attention import (
    Attention,
    AttentionSubnetwork,
    Dropout,
    hidden_channels,
    position_code,
)

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("length", "channels"), [(1, 8), (12, 8), (64, 128), (5, 2)])
def test_the_position_code_by_loops(length: int, channels: int) -> None:
    code, half = position_code(length, channels), channels // 2
    assert code.shape == (length, channels)
    for position in range(length):
        for i in range(half):
            angle = position * math.exp(-i * math.log(10000) / (half - 1)) if half > 1 else position
            assert float(code[position, i]) == pytest.approx(math.sin(angle), abs=2e-6)
            assert float(code[position, half + i]) == pytest.approx(math.cos(angle), abs=2e-6)


def attention_by_loops(attention: Attention, x: Any) -> Any:
    """Self-attention on one [C, h, w] in numpy, token by token and head by head."""
    channels, height, width = x.shape
    weights = attention.project.parametrizations.weight
    g, v = (p.detach().numpy() for p in (weights.original0, weights.original1))
    matrix = np.stack([g[row, 0] * v[row] / np.sqrt(np.sum(v[row] ** 2)) for row in range(len(v))])
    heads, each = attention.heads, channels // attention.heads
    tokens = np.empty((height * width, channels))
    for y in range(height):
        for column in range(width):
            tokens[y * width + column] = x[:, y, column]
    tokens += attention.code.numpy()
    key, value, query = (tokens @ part.T for part in np.split(matrix, 3))
    out = np.empty_like(tokens)
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        for i in range(len(tokens)):
            logits = np.array(
                [query[i, part] @ key[j, part] / math.sqrt(each) for j in range(len(tokens))]
            )
            weight = np.exp(logits - logits.max())
            out[i, part] = (weight / weight.sum()) @ value[:, part]
    return out.T.reshape(channels, height, width)


def subnet(
    c_in: int = 5, c_out: int = 6, dropout: float = 0.2, values: bool = False
) -> AttentionSubnetwork:
    torch.manual_seed(0)
    made = AttentionSubnetwork(c_in, c_out, 8, 2, Dropout(dropout, values), (3, 4)).double().eval()
    weights: Any = made.attention.project.parametrizations.weight
    torch.nn.init.uniform_(
        weights.original0, 1, 3
    )  # otherwise the norm of the directions would not count
    torch.nn.init.normal_(weights.original1)
    return made


def test_attention_by_loops() -> None:
    """Key, value, query; the code in the branch only; row by row; no projection of the heads."""
    attention = subnet().attention
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    with torch.inference_mode():
        got = attention(x)
    for one, expected in zip(got, x, strict=True):
        np.testing.assert_allclose(
            one, attention_by_loops(attention, expected.numpy()), rtol=1e-9, atol=1e-12
        )


def test_the_sub_network_is_the_literal_one() -> None:
    made = subnet()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    with torch.inference_mode():
        h = F.conv2d(x, made.first.weight, made.first.bias)
        assert made.first.kernel_size == made.last.kernel_size == (1, 1)
        h = h + F.conv2d(h, made.conv.weight, made.conv.bias, padding=1)
        h = h + torch.from_numpy(
            np.stack([attention_by_loops(made.attention, one.numpy()) for one in h])
        )
        close(made(x), F.conv2d(h, made.last.weight, made.last.bias))
        body = made.fused_body()  # the exported one, with its constants folded
        close(
            F.conv2d(
                body(F.conv2d(x, made.first.weight, made.first.bias)),
                made.last.weight,
                made.last.bias,
            ),
            made(x),
        )


@pytest.mark.parametrize("values", [False, True])
def test_dropout_takes_whole_channels_and_weights_of_the_attention_in_training_alone(
    values: bool,
) -> None:
    made = subnet(dropout=0.5, values=values)
    x = torch.randn(3, 5, 3, 4, dtype=torch.float64)
    seen: list[Any] = []
    made.dropout.register_forward_hook(lambda _, given, result: seen.append((given[0], result)))
    with torch.inference_mode():
        assert torch.equal(made(x), made(x))
        made.train()
        torch.manual_seed(0)
        made(x)
        given, dropped = seen[-1]
        kept = dropped.flatten(2).abs().amax(2) > 0
        assert 0 < int(kept.sum()) < kept.numel()
        close(dropped, 2 * given * kept[..., None, None], 1e-12)
        # The mean over many draws is what eval gives.
        many = x.new_tensor(np.random.default_rng(0).normal(size=(1, 8, 3, 4))).expand(
            4000, -1, -1, -1
        )
        drawn, whole = made.attention(many), made.attention.eval()(many[:1])[0]
        assert not torch.equal(drawn[0], drawn[1])
        assert float((drawn.mean(0) - whole).abs().max()) < 5 * float(
            drawn.std(0).max()
        ) / math.sqrt(4000)


def test_dropped_values_are_the_same_positions_for_all_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each head drops positions of its own, and the rest is scaled to keep the mean."""
    attention = subnet(dropout=0.5, values=True).attention
    given: list[Any] = []
    whole = F.scaled_dot_product_attention

    def recorded(query: Any, key: Any, value: Any, dropout_p: float) -> Any:
        given.append((value, dropout_p))
        return whole(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    x = torch.randn(3, 8, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        attention(x)
        attention.train()(x)
    (plain, _), (dropped, rate) = given
    assert rate == 0
    kept = dropped.abs().amax(3) > 0  # [images, heads, positions]
    assert 0.2 < float(kept.double().mean()) < 0.8
    assert not torch.equal(kept[:, 0], kept[:, 1])
    close(dropped, 2 * plain * kept[..., None], 1e-12)


def test_a_wrong_number_of_heads_is_an_error() -> None:
    with pytest.raises(TrainError, match="12 hidden channels are no multiple of twice the 4 heads"):
        AttentionSubnetwork(5, 6, 12, 4, Dropout(0.2), (3, 4))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(384, 128), (256, 128), (192, 96), (152, 72)],  # 152 are those of EfficientNet-Lite0
)
def test_hidden_channels_suit_the_heads_where_the_features_are_few(
    channels: int, expected: int
) -> None:
    assert hidden_channels(128, channels, 4) == expected
