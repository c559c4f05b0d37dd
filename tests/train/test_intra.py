"""InTra against its specification: windows, the literal pipeline, the training and the export."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import board_images, exported, fit_method
from oracles import assert_fused_equals_literal

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.gradient_similarity import gradient_loss, similarity_map
from flawline.train.blocks.inpainting_transformer import skipped_block
from flawline.train.blocks.patch_windows import image_of, patches_of, window_table
from flawline.train.blocks.structural_similarity import GaussianMean, similarity_loss
from flawline.train.methods.intra import InTra, InTraSettings

pytestmark = pytest.mark.torch
SIZE = (112, 128)


def settings(size: tuple[int, int] = SIZE, setting: Any = "light") -> InTraSettings:
    return InTraSettings("", Geometry("stretch", *size), setting)


def trained_like(seed: int = 0) -> InTra:
    """A detector none of whose parameters has its initial value."""
    model = InTra(settings())
    generator = torch.Generator().manual_seed(seed)
    model.network.initialise(generator, torch.full((3,), 0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.standardised.offset.uniform_(0, 1, generator=generator)
    model.standardised.scale.uniform_(0.1, 1, generator=generator)
    return model.eval()


def oblong_images(count: int = 2) -> Any:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *SIZE, 3), generator=generator, dtype=torch.uint8)


# ---------------------------------------------------------------- patches and windows


def test_patches_are_numbered_row_by_row_and_can_be_put_together() -> None:
    image = torch.rand(2, 3, 32, 48)
    patches = patches_of(image)
    assert patches.shape == (2, 6, 768)
    assert torch.equal(patches[1, 4].view(3, 16, 16), image[1, :, 16:32, 16:32])
    assert torch.equal(image_of(patches, (32, 48)), image)


def test_windows_are_centred_and_moved_into_the_image_at_its_border() -> None:
    rows, columns = 8, 16
    table = window_table(rows, columns).view(rows, columns, 7, 7)
    for row in range(rows):
        top = min(max(row - 3, 0), 1)
        for column in range(columns):
            left = min(max(column - 3, 0), 9)
            expected = np.arange(rows * columns).reshape(rows, columns)
            expected = expected[top : top + 7, left : left + 7]
            np.testing.assert_array_equal(table[row, column], expected)


def test_the_windows_of_a_step_lie_in_their_images_and_are_all_drawn() -> None:
    model = InTra(settings((128, 144)))
    table, own = model._draw_windows(200, np.random.default_rng(0))
    assert table.shape == (200, 8, 49)
    windows = table.view(-1, 7, 7)
    row = windows // 9
    column = windows % 9
    assert (row == row[:, :1, :1] + torch.arange(7)[:, None]).all()
    assert (column == column[:, :1, :1] + torch.arange(7)).all()
    assert set(windows[:, 0, 0].tolist()) == {9 * y + x for y in range(2) for x in range(3)}
    places = (table == own[..., None]).nonzero()[:, 2]
    assert len(places) == own.numel()
    assert set(places.tolist()) == set(range(49))


def test_the_second_half_of_the_blocks_adds_the_first_half_in_the_opposite_order() -> None:
    sources = [skipped_block(block, 13) for block in range(13)]
    assert sources == [None] * 7 + [6, 5, 4, 3, 2, 1]
    assert [skipped_block(block, 4) for block in range(4)] == [None, None, None, 1]


def test_a_size_without_a_whole_window_or_whole_patches_is_refused() -> None:
    with pytest.raises(TrainError, match="--size 96 is below 112"):
        InTra(settings((96, 96)))
    with pytest.raises(TrainError, match="--size 120 is not a multiple of 16"):
        InTra(settings((120, 120)))


# ---------------------------------------------------------------- the literal pipeline


def test_forward_by_hand() -> None:
    """One window after the other, in which the hidden patch is replaced before the first block."""
    model = trained_like().double()
    network = model.network
    image = oblong_images(1)
    x = image.permute(0, 3, 1, 2).double() / 255
    reconstruction = torch.full_like(x, torch.nan)
    with torch.inference_mode():
        score, anomaly_map = model(image)
        for row in range(7):
            for column in range(8):
                left = min(max(column - 3, 0), 1)
                tokens = []
                for y in range(7):
                    for z in range(left, left + 7):
                        patch = x[0, :, 16 * y : 16 * y + 16, 16 * z : 16 * z + 16]
                        token = network.embedding(patch.reshape(-1))
                        if (y, z) == (row, column):
                            token = network.hidden
                        tokens.append(token + network.code[8 * y + z])
                state = torch.stack(tokens)[None]
                results = []
                for number, block in enumerate(network.blocks):
                    if number == 3:
                        state = state + results[1]
                    state = block(state)
                    results.append(state)
                patch = network.last(network.norm(state).mean(1)).view(3, 16, 16)
                down = slice(16 * row, 16 * row + 16)
                reconstruction[0, :, down, 16 * column : 16 * column + 16] = patch
        residual = (1 - similarity_map(x, reconstruction, 3)).mean(1)
    padded = np.pad(residual[0].numpy(), 10)
    expected = np.lib.stride_tricks.sliding_window_view(padded, (21, 21)).mean((2, 3))
    expected = (expected - model.standardised.offset.numpy()) / model.standardised.scale.numpy()
    np.testing.assert_allclose(anomaly_map[0], expected, rtol=1e-8)
    assert float(score) == pytest.approx(expected.max(), rel=1e-8)


def test_attention_by_hand() -> None:
    block = trained_like().double().network.blocks[0]
    attention = block.attention
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        got = attention(x)
        query, key = attention.query(x), attention.key(x)
        assert query.shape == key.shape == (2, 5, 48)
        value = attention.value(x)
        mixed = torch.empty_like(value)
        for head in range(4):
            narrow = slice(12 * head, 12 * head + 12)
            wide = slice(24 * head, 24 * head + 24)
            products = query[..., narrow] @ key[..., narrow].transpose(1, 2) / 12**0.5
            mixed[..., wide] = products.softmax(2) @ value[..., wide]
        torch.testing.assert_close(got, attention.project(mixed), rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- training


def test_the_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawline.train.loop._multiplies_bfloat16", lambda: False)
    model = trained_like()
    image = oblong_images()
    x = image.permute(0, 3, 1, 2) / 255
    mean = GaussianMean(16, 16)
    # In this size, the windows of the first column of patches begin there.
    own = torch.tensor([[24], [8]])
    table = window_table(7, 8)[own]
    with torch.inference_mode():
        loss = float(model.loss(image, table, own, mean))
        whole = model.reconstruct(x)
    expected = torch.stack([x[0, :, 48:64, :16], x[1, :, 16:32, :16]])
    got = torch.stack([whole[0, :, 48:64, :16], whole[1, :, 16:32, :16]])
    value = float(((expected - got) ** 2).mean())
    value += 0.01 * float(similarity_loss(expected, got, mean) + gradient_loss(expected, got, 3))
    assert loss == pytest.approx(value, rel=1e-4)


def test_training_lowers_the_loss_and_standardises_the_maps() -> None:
    images = board_images(112, 4)
    batch = torch.from_numpy(np.stack(images))
    losses = []
    for steps in (1, 12):
        model = InTra(settings((112, 112)))
        fit_method(model, images, steps)
        windows = model._draw_windows(4, np.random.default_rng(0))
        with torch.inference_mode():
            losses.append(float(model.loss(batch, *windows, GaussianMean(16, 16))))
    assert losses[1] < 0.8 * losses[0]
    with torch.inference_mode():
        maps = np.stack([model(torch.from_numpy(image)[None])[1][0] for image in images])
    np.testing.assert_allclose(maps.mean(0), 0, atol=1e-3)
    deviation = maps.std(0) * model.standardised.scale.numpy()
    np.testing.assert_allclose(model.standardised.scale.numpy() - deviation, 0.02, rtol=2e-2)
    assert not settings((256, 256), "published").training.standardised


def test_the_published_setting_is_that_of_the_code() -> None:
    published = settings((256, 256), "published")
    training = published.training
    assert (training.width, training.heads, training.blocks) == (512, 8, 13)
    assert InTra.steps(published, 300, None) == 2 * 2000
    light = InTra.settings_for("")
    assert light.setting == "light"
    assert InTra.steps(light, 300, None) == light.training.schedule.steps
    assert InTra.steps(light, 300, 2) == 2 * 38


# ---------------------------------------------------------------- the exported form


def test_fused_equals_literal_on_an_oblong_input() -> None:
    assert_fused_equals_literal(trained_like(1), oblong_images(2))


def test_one_batch_of_windows_whose_tokens_are_computed_once() -> None:
    nodes = onnx.load_model_from_string(exported(trained_like())).graph.node
    backbone = Counter(node.op_type for node in nodes if node.name.startswith("/backbone/"))
    # Tokens, queries, keys and values of the first block.
    assert backbone["Gather"] == 4
    assert backbone["LayerNormalization"] == 2 * 4 + 1
    assert backbone["Softmax"] == 4
    assert backbone["Conv"] == 1


def test_the_marked_parts_are_those_of_the_specification() -> None:
    islands = fp32_islands(trained_like().fused())
    blocks = []
    for number in range(4):
        for part in ("norm1", "softmax", "norm2"):
            blocks.append(f"/backbone/blocks.{number}/{part}")
    assert islands == (*blocks, "/backbone/norm", "/residual", "/standardised", "/largest")
