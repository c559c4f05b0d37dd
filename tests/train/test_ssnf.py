"""SSNF against its specification in numpy, its training, and what is exported of it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from rounding import RoundingEvaluator
from test_flow import ATTENTION, close, counted, literal_flow, trained_like
from torch.nn import functional as F

from flawline.export.graphs.to_fp16 import in_island, to_fp16
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.attention import Attention, SubNet, position_code
from flawline.train.blocks.flow import latent, negative_log_likelihood
from flawline.train.blocks.fused import fp32_islands, resize_matrix
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.data.demo import render
from flawline.train.method import Fit
from flawline.train.methods import ssnf
from flawline.train.methods.ssnf import SSNF, SSNFSettings, contrast

pytestmark = pytest.mark.torch
Size = int | tuple[int, int]
SIZE = 64


def quiet(*_: Any) -> None:
    pass


def net(size: Size = SIZE, seed: int | None = 0, **hyperparameters: Any) -> SSNF:
    """A small SSNF with a random trunk; with a seed as a long training might leave it, without as it is made."""
    height, width = (size, size) if isinstance(size, int) else size
    settings = {
        "stride": 16,
        "projected": 24,
        "blocks": 2,
        "hidden": 8,
        "heads": 2,
        **hyperparameters,
    }
    torch.manual_seed(0)
    geometry = Geometry("stretch", height, width)
    model = SSNF(SSNFSettings("resnet18", geometry, **settings)).eval()
    model.backbone.load("random", 0)
    model.backbone.estimate_batchnorm(list(picture(8, 5, size)))
    if seed is not None:
        model._initialise(seed)
        trained_like(model.flow, seed)
        generator = torch.Generator().manual_seed(seed)
        model.mean.normal_(0, 1, generator=generator)
        model.std.uniform_(0.5, 2, generator=generator)
    return model


def picture(n: int = 2, seed: int = 0, size: Size = SIZE) -> Any:
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def boards(n: int = 10) -> list[Any]:
    return [render("board", None, seed, SIZE)[0] for seed in range(n)]


def upsampled(heat: Any, size: tuple[int, int]) -> Any:
    """Bilinear, half-pixel centres, the edge held: numpy [N, h, w] to [N, H, W]."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = heat.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, source - 1), at - low
        shape = [1, 1, 1]
        shape[axis] = -1
        part = part.reshape(shape)
        heat = heat.take(low, axis) * (1 - part) + heat.take(high, axis) * part
    return heat


# ---------------------------------------------------------------- the sub-network


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
    """methods.md 2.4 on one [C, h, w] in numpy, token by token and head by head."""
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


def subnet(c_in: int = 5, c_out: int = 6, dropout: float = 0.2) -> SubNet:
    torch.manual_seed(0)
    made = SubNet(c_in, c_out, 8, 2, dropout, (3, 4)).double().eval()
    weights: Any = made.attention.project.parametrizations.weight
    torch.nn.init.uniform_(
        weights.original0, 1, 3
    )  # so that the norm is not that of the directions
    torch.nn.init.normal_(weights.original1)
    return made


def test_attention_by_loops() -> None:
    """Key, value, query; the code inside the branch alone; row after row; nothing behind the heads."""
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
        middle = made.fused_middle()  # the exported one, with its constants folded
        close(
            F.conv2d(
                middle(F.conv2d(x, made.first.weight, made.first.bias)),
                made.last.weight,
                made.last.bias,
            ),
            made(x),
        )


def test_dropout_takes_whole_channels_and_weights_of_the_attention_in_training_alone() -> None:
    made = subnet(dropout=0.5)
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


# ---------------------------------------------------------------- features and standardisation


@pytest.mark.parametrize("projected", [None, 24])
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [64, (72, 90)])
def test_features_by_loops(size: Size, stride: int, projected: int | None) -> None:
    """Means over 3x3 with zeros outside, divided by nine everywhere; layer3 resized to layer2's grid, or layer2 thinned
    to layer3's; then the rotation."""
    model = net(size, stride=stride, projected=projected)
    image = torch.from_numpy(picture(1, 0, size))
    with torch.inference_mode():
        got = model.features(image)[0].numpy()
        level2, level3 = (x[0].numpy() for x in model.backbone.extract(image))
    height, width = (size, size) if isinstance(size, int) else size
    assert got.shape[1:] == model.grid == (-(-height // stride), -(-width // stride))

    def averaged(level: Any) -> Any:
        padded = np.pad(level.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
        h, w = level.shape[1:]
        return sum(padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)) / 9

    fine, coarse = averaged(level2), averaged(level3)
    if stride == 8:
        rows, columns = (
            resize_matrix(a, b).numpy()
            for a, b in zip(coarse.shape[1:], fine.shape[1:], strict=True)
        )  # the matrices are held to torch's resize in test_fusion
        coarse = rows @ coarse @ columns.T
        np.testing.assert_allclose(coarse, upsampled(averaged(level3), fine.shape[1:]), atol=1e-9)
    else:
        fine = fine[:, ::2, ::2]
    expected = np.concatenate([fine, coarse])
    if projected:
        expected = np.einsum("rc,chw->rhw", model.rotation.double().numpy(), expected)
    assert expected.shape == got.shape
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_the_rotation_is_one_and_a_function_of_the_seed() -> None:
    one, again, other = net(seed=0), net(seed=0), net(seed=1)
    rotation = one.rotation.double()
    assert rotation.shape == (24, 384)
    close(rotation @ rotation.T, torch.eye(24, dtype=torch.float64), 1e-5)
    assert torch.equal(one.rotation, again.rotation)
    assert not torch.equal(one.rotation, other.rotation)
    assert not len(net(projected=None).rotation)


def test_standardisation_is_of_all_positions_of_the_good_images() -> None:
    features = np.random.default_rng(0).normal(3000, 1, (6, 24, 4, 4)).astype(np.float32)
    features *= np.linspace(0.5, 2, 24, dtype=np.float32)[:, None, None]
    features[:, 7] = 5  # a silent channel
    model = net(seed=None)
    model._standardise(features)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(model.mean.numpy(), exact.mean((0, 2, 3)), rtol=1e-6)
    loud = np.arange(24) != 7
    np.testing.assert_allclose(model.std.numpy()[loud], exact.std((0, 2, 3))[loud], rtol=1e-4)
    assert float(model.std[7]) > 0.01 * float(model.std.mean())
    got = model.standardised(torch.from_numpy(features)).numpy()
    expected = (exact - model.mean.double().numpy()[:, None, None]) / model.std.double().numpy()[
        :, None, None
    ]
    np.testing.assert_allclose(got, expected, atol=1e-3)


# ---------------------------------------------------------------- the scores


@pytest.mark.parametrize("size", [64, (72, 90)])
def test_both_scores_by_numpy(size: Size) -> None:
    model = net(size)
    z = 2 * torch.randn(
        3, 24, *model.grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    whole = (size, size) if isinstance(size, int) else size
    heats = {
        True: 0.5 * np.mean(z.numpy() ** 2, 1),
        False: -np.mean(np.exp(-(z.numpy() ** 2) / 2) / math.sqrt(2 * math.pi), 1),
    }
    for by_energy, expected in heats.items():
        score, heat = model.judge(z, by_energy)
        np.testing.assert_allclose(heat, upsampled(expected, whole), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(score, upsampled(expected, whole).max((1, 2)), rtol=1e-9)


def test_forward_is_the_literal_pipeline() -> None:
    model = net().double()
    image = torch.from_numpy(picture())
    for by_energy in (True, False):
        model.by_energy.fill_(by_energy)
        with torch.inference_mode():
            standard = (model.features(image) - model.mean[:, None, None]) / model.std[
                :, None, None
            ]
            z = literal_flow(model.flow, standard)[0]
            score, heat = model(image)
            expected = model.judge(z, by_energy)
        close(score, expected[0])
        close(heat, expected[1])


@pytest.mark.parametrize("by_energy", [True, False])
def test_the_score_is_chosen_on_synthetic_images(
    by_energy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of latents, of which one score finds one worse and the other the other."""
    model = net(seed=None)
    peak, flat = torch.zeros(1, 24, 4, 4), torch.ones(1, 24, 4, 4)
    peak[:, 0] = 6  # energy 18 / 24 against 1 / 2; mean density 23/24 p(0) against p(1)
    pictures = list(picture(4, 1))
    known = {p.tobytes() for p in pictures}
    told: list[bool] = []

    def features(image: Any) -> Any:
        told.append(image[0].numpy().tobytes() in known)
        good, bad = (flat, peak) if by_energy else (peak, flat)
        return good if told[-1] else bad

    monkeypatch.setattr(model, "features", features)
    monkeypatch.setattr(model, "standardised", lambda x: x)
    monkeypatch.setattr(ssnf, "latent", lambda _, x: (x, torch.zeros(1)))
    model.by_energy.fill_(not by_energy)
    fit = Fit(pictures, 1)
    model._choose_score(pictures, fit)
    assert bool(model.by_energy) == by_energy
    assert told.count(True) >= len(pictures)
    assert told.count(False) >= len(pictures)
    assert ("mean energy" if by_energy else "mean density") in fit.notes[0]


# ---------------------------------------------------------------- the loss


def nats(*values: float) -> Any:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_contrast_limited_keeps_what_is_likelier_than_the_worst_and_near() -> None:
    """Of a shape whose cap lies at 50 nats."""
    shape = (1, 1, round(50 / ssnf.CAP))
    cap = ssnf.CAP * shape[2]
    likely, unlikely = nats(10, 60, 20), nats(5, 59, 61, cap - 1)
    loss = contrast(likely, unlikely, shape, limited=True)
    assert float(loss.detach()) == pytest.approx(0.5 * 30 - 0.5 * (5 + cap - 1) / 2)
    loss.backward()
    # The worst good one is a bound, and a bound carries no gradient.
    assert likely.grad.tolist() == pytest.approx([1 / 6] * 3)
    assert unlikely.grad.tolist() == pytest.approx([-0.25, 0, 0, -0.25])


def test_contrast_limited_by_the_worst_good_one() -> None:
    likely, unlikely = nats(1, 3), nats(2, 3, 4, 2.5)
    loss = contrast(likely, unlikely, (100, 10, 10), limited=True)
    assert float(loss.detach()) == pytest.approx(0.5 * 2 - 0.5 * 2.25)


def test_contrast_with_none_kept_is_the_mean_of_the_good() -> None:
    for likely, unlikely, shape in (
        (nats(1, 3), nats(3, 9), (100, 10, 10)),  # all less likely than the worst
        (
            nats(1e6, 3e6),
            nats(2e6, 2.5e6),
            (10, 10, 10),
        ),  # all beyond the cap, as early in training
    ):
        loss = contrast(likely, unlikely, shape, limited=True)
        assert float(loss.detach()) == float(likely.detach().mean())
        loss.backward()
        assert likely.grad.tolist() == [0.5, 0.5]
        assert unlikely.grad is None


def test_contrast_with_all_keeps_all() -> None:
    likely, unlikely = nats(1, 3), nats(2, 1e9)
    loss = contrast(likely, unlikely, (1, 1, 1), limited=False)
    assert float(loss.detach()) == pytest.approx(1 - 0.25 * (2 + 1e9))
    loss.backward()
    assert unlikely.grad.tolist() == [-0.25, -0.25]


def test_nll_is_of_the_standardised_features() -> None:
    model = net()
    x = 3 * torch.randn(2, 24, 4, 4) + 1
    with torch.inference_mode():
        z, log_det = model.flow((x - model.mean[:, None, None]) / model.std[:, None, None])
        expected = negative_log_likelihood(z, log_det)
        np.testing.assert_allclose(
            model.nll(x), expected, rtol=0.05
        )  # its sub-networks run in bfloat16


# ---------------------------------------------------------------- training


def fit(
    model: SSNF, steps: int, images: Any = None, resumed: Any = None, progress: Any = quiet
) -> list[Any]:
    saved: list[Any] = []
    model.recorded_notes = []
    record = Fit(images or boards(), steps, 3, progress=progress, save=saved.append, state=resumed)
    record.notes = model.recorded_notes
    assert model.fit(record) == steps
    return saved


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Any) -> None:
    """Dropout, blended images, learning rate and the choice of the score included."""
    whole, part = net(seed=None, dropout=0.3), net(seed=None, dropout=0.3)
    fit(whole, 4)
    snapshots: list[Any] = []

    def stop_at_two(what: str, done: int, _: int) -> None:
        if what == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.fit(Fit(boards(), 4, 3, progress=stop_at_two, save=snapshots.append))
    assert [s["state"]["step"] for s in snapshots] == [2]
    save_checkpoint(tmp_path / "c.pt", part, {"a": "b"}, snapshots[0])
    loaded, _, state = load_checkpoint(tmp_path / "c.pt")
    assert isinstance(loaded, SSNF)
    torch.manual_seed(77)  # another process stands elsewhere
    fit(loaded, 4, resumed=state)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    assert whole.recorded_notes == loaded.recorded_notes


def test_training_is_a_function_of_the_seed() -> None:
    one, again = net(seed=None), net(seed=None)
    torch.manual_seed(5)
    for (
        layer
    ) in again.flow.modules():  # as a process would make them whose generator stands elsewhere
        if isinstance(layer, Attention):
            weights: Any = layer.project.parametrizations.weight
            for parameter in (weights.original0, weights.original1):
                torch.nn.init.uniform_(parameter, 0.1, 1)
    fit(one, 1)
    fit(again, 1)
    for key, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("negatives", ["none", "limited"])
def test_good_images_become_likelier_and_the_trunk_stays_as_it_was(negatives: str) -> None:
    model, before = net(seed=None, negatives=negatives), net(seed=None, negatives=negatives)
    trunk = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    fit(model, 8)
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in trunk.items())
    assert not any(module.training for module in model.modules())
    before._initialise(3)
    before.mean.copy_(model.mean)
    before.std.copy_(model.std)
    x = model.features(torch.from_numpy(np.stack(boards())))
    with torch.inference_mode():
        likely = [
            negative_log_likelihood(*latent(m.flow, m.standardised(x))) for m in (before, model)
        ]
    assert float(likely[1].mean()) < float(likely[0].mean())
    assert int((likely[1] < likely[0]).sum()) >= 9
    assert (
        float(before.standardised(x).mean((0, 2, 3)).abs().max()) < 0.5
    )  # of those that were trained on


@pytest.mark.parametrize("negatives", ["limited", "all", "none"])
def test_negatives_are_as_asked(negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, bool, Any]] = []

    def spied(likely: Any, unlikely: Any, shape: Any, limited: bool) -> Any:
        assert model.flow.training  # so that dropout drops
        assert not model.backbone.training
        seen.append((len(likely), len(unlikely), limited, tuple(shape)))
        return contrast(likely, unlikely, shape, limited)

    monkeypatch.setattr(ssnf, "contrast", spied)
    model = net(seed=None, negatives=negatives)
    fit(model, 1)
    if negatives == "none":
        assert not seen
    else:
        ((good, bad, limited, shape),) = seen
        assert good == model.settings.batch
        assert 0 < bad <= model.batch
        assert limited == (negatives == "limited")
        assert shape == (24, 4, 4)


@pytest.mark.parametrize(
    ("shots", "used", "held"), [(None, 18, 2), (10, 10, 0), (3, 3, 0), (50, 18, 2)]
)
def test_shots_and_held_out_images(
    shots: int | None, used: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What chooses the score was not trained on, unless the shots are too few to spare any."""
    images = boards(20)
    model = net(seed=None, shots=shots)
    trained: list[bytes] = []
    judged: list[bytes] = []

    def training(pictures: Any, features: Any, *_: Any) -> int:
        trained.extend(p.tobytes() for p in pictures)
        assert len(features) == len(pictures)
        return 1

    monkeypatch.setattr(model, "_train", training)
    monkeypatch.setattr(
        model, "_choose_score", lambda pictures, *_: judged.extend(p.tobytes() for p in pictures)
    )
    fit(model, 1, images)
    assert len(set(trained)) == used
    assert set(trained) | set(judged) <= {p.tobytes() for p in images}
    if held:
        assert len(judged) == held
        assert not set(trained) & set(judged)
    else:
        assert set(judged) == set(trained)


def test_shots_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = net(seed=None, shots=3), boards(20)
    drawn: list[Any] = []
    monkeypatch.setattr(
        model, "_train", lambda pictures, *_: drawn.append([p.tobytes() for p in pictures]) or 1
    )
    monkeypatch.setattr(model, "_choose_score", quiet)
    for seed in (0, 0, 1):
        model.fit(Fit(images, 1, seed))
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) != set(drawn[2])


def test_a_single_shot_is_enough() -> None:
    model = net(seed=None, shots=1)
    fit(model, 2)
    with torch.inference_mode():
        score, heat = model(torch.from_numpy(np.stack(boards(2))))
    assert bool(heat.isfinite().all())
    assert bool(score.isfinite().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": "some"}, "--negatives some is unknown; known: limited, all, none"),
        ({"shots": 0}, "--shots 0 is not above 0"),
        ({"shots": -2}, "--shots -2 is not above 0"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        net(seed=None, **settings)


# ---------------------------------------------------------------- the exported form


@pytest.mark.parametrize("by_energy", [True, False])
@pytest.mark.parametrize("projected", [None, 24])
@pytest.mark.parametrize(("size", "stride"), [(64, 8), (64, 16), ((72, 90), 8), ((90, 72), 16)])
def test_fused_equals_literal(
    size: Size, stride: int, projected: int | None, by_energy: bool
) -> None:
    model = net(size, 1, stride=stride, projected=projected, blocks=3)
    model.by_energy.fill_(by_energy)
    image = torch.from_numpy(picture(2, 0, size))
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.float64, 1e-9)):
        model = model.to(dtype)
        fused = model.fused()
        with torch.inference_mode():
            score, heat = model(image)
            fused_score, fused_heat = fused(image)
        assert fused_heat.dtype == dtype
        scale = float(heat.std() + score.std())
        assert float((score - fused_score).abs().max()) < tolerance * scale
        assert float((heat - fused_heat).abs().max()) < tolerance * scale


def exported(model: SSNF, by_energy: bool = True) -> bytes:
    model.by_energy.fill_(by_energy)
    return onnx_from_module(model.fused(), model.geometry)


def nodes_of(data: bytes) -> list[Any]:
    return list(onnx.load_model_from_string(data).graph.node)


@pytest.mark.parametrize("by_energy", [True, False])
@pytest.mark.parametrize("settings", [{"projected": None}, {"stride": 8}])
def test_the_graph_has_what_the_form_needs_and_no_more(
    settings: dict[str, Any], by_energy: bool
) -> None:
    data = exported(net(blocks=3, **settings), by_energy)
    nodes = nodes_of(data)
    flow = counted(n for n in nodes if n.name.startswith("/flow"))
    assert flow == Counter({kind: 3 * count for kind, count in ATTENTION.items()})
    assert ATTENTION.total() == 23
    assert not {
        "Gather",
        "Split",
        "Slice",
        "Concat",
        "Log",
        "ReduceSum",
        "ReduceMean",
        "Softplus",
    } & set(flow)
    whole = node_types(data)
    assert not {
        "Log",
        "Gather",
        "Split",
        "Slice",
        "Einsum",
        "Expand",
        "Softplus",
        "BatchNormalization",
    } & set(whole)
    score = counted(n for n in nodes if n.name.startswith("/score"))
    expected = {"Mul": 1, "Conv": 1} if by_energy else {"Mul": 3, "Exp": 1, "ReduceSum": 1}
    assert score == Counter(expected)
    # Standardisation has no node of its own: per level an average, with a rotation one more.
    levels = counted(n for n in nodes if n.name.startswith("/levels"))
    assert levels == Counter({"Conv": 2 if "projected" in settings else 4})


# ---------------------------------------------------------------- FP16


def parts(level: int) -> Any:
    """Two good images, grey with a little noise, and one with a square that is `level` grey levels off."""
    images = (
        np.random.default_rng(0).normal(120, 4, (10, SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
    )
    bad = images[0].astype(int)
    bad[16:40, 16:40] += (level, level, -level)
    return images[:8], np.concatenate([images[8:], bad.clip(0, 255).astype(np.uint8)[None]])


@torch.no_grad()
def sensitive(
    level: int, factor: float, by_energy: bool, last_scale: float = 10, norm: float = 0.6
) -> tuple[SSNF, Any, Any]:
    """An SSNF standardised on such good images, an anomaly far out, and the scores that torch gives. `factor` is of
    the sub-networks' last weights, `norm` of the rows of their projections; as they begin, 1 and 0.6."""
    good, images = parts(level)
    model = net(seed=None, projected=None, blocks=4, hidden=16)
    model.backbone.estimate_batchnorm(list(good))
    trained_like(model.flow, 0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.flow.named_parameters():
        if name.endswith("global_scale"):
            parameter.normal_(10, 0.5, generator=generator)
        elif name.endswith("global_offset"):
            parameter.normal_(0, 0.1, generator=generator)
        elif name.endswith("original0"):
            parameter.fill_(norm)
        elif ".last." in name:
            parameter.mul_(factor / 15)
    model.flow.module_list[-1].global_scale.fill_(last_scale)
    model._standardise(model.features(torch.from_numpy(good)).numpy())
    model.by_energy.fill_(by_energy)
    return model, images, model(torch.from_numpy(images))[0].numpy()


def rounded(model: SSNF, images: Any, islands: Any) -> Any:
    return RoundingEvaluator(to_fp16(exported(model, bool(model.by_energy)), islands))(image=images)


def peak_of(model: SSNF, images: Any) -> float:
    with torch.inference_mode():
        z = model.flow(model.standardised(model.features(torch.from_numpy(images))))[0]
    return float(z[-1].abs().max())


@pytest.mark.parametrize("by_energy", [True, False])
def test_islands_keep_an_anomaly_finite_and_above_every_good_image(by_energy: bool) -> None:
    model, images, reference = sensitive(20, 3, by_energy)
    assert 300 < peak_of(model, images) < 6e4
    got = rounded(model, images, fp32_islands(model.fused()))
    assert np.isfinite(got["map"]).all()
    np.testing.assert_allclose(got["score"], reference, rtol=0.05)
    assert got["score"][2] > got["score"][:2].max()
    control = rounded(model, images, ())
    assert np.isfinite(control["score"][:2]).all()
    if by_energy:
        assert not np.isfinite(control["score"][2])
    else:  # the density saturates: what overflows has none
        assert not np.isfinite(control["/score/Mul_output_0"]).all()


def test_which_islands_are_needed() -> None:
    """With latents three times as large: the largest energy is beyond FP16 as well."""
    model, images, reference = sensitive(20, 3, True, last_scale=30)
    assert reference[2] > 65504

    def finite(islands: Any) -> bool:
        found = rounded(model, images, islands)
        return bool(np.isfinite(found["score"]).all() and np.isfinite(found["map"]).all())

    assert finite(fp32_islands(model.fused()))
    for needed in ("/score", "/upsample"):
        assert not finite([island for island in fp32_islands(model.fused()) if island != needed]), (
            needed
        )


@pytest.mark.parametrize("by_energy", [True, False])
def test_every_declared_island_is_there(by_energy: bool) -> None:
    model = net()
    names = [n.name for n in nodes_of(exported(model, by_energy))]
    for island in fp32_islands(model.fused()):
        assert [name for name in names if in_island(name, (island,))], island


def test_the_affine_of_every_coupling_is_in_an_island() -> None:
    model = net(blocks=3)
    outside = [
        n.name
        for n in nodes_of(exported(model))
        if n.name.startswith("/flow/")
        and n.op_type in ("Exp", "Tanh")
        and not in_island(n.name, fp32_islands(model.fused()))
    ]
    assert not outside


def test_what_the_last_coupling_stretches_beyond_fp16_is_finite() -> None:
    """Nothing reads it but the score."""
    model, images, _ = sensitive(80, 1, True, norm=0.05)
    with torch.no_grad():
        for block in model.flow.module_list[-2:]:
            bias = block.subnet.last.bias
            bias[: len(bias) // 2] = 1000  # a log-scale of 2
        reference = model(torch.from_numpy(images))[0].numpy()
    assert peak_of(model, images) > 65504
    without = [island for island in fp32_islands(model.fused()) if "affine" not in island]
    assert not np.isfinite(rounded(model, images, without)["score"]).all()
    got = rounded(model, images, fp32_islands(model.fused()))
    assert np.isfinite(got["map"]).all()
    np.testing.assert_allclose(got["score"], reference, rtol=0.05)


@pytest.mark.parametrize("by_energy", [True, False])
def test_a_plain_defect_is_finite_too(by_energy: bool) -> None:
    """40 grey levels off, where the latent is still far from FP16's end, but not the square of what is attended to."""
    model, images, _ = sensitive(40, 1, by_energy, norm=1.5)
    assert 300 < peak_of(model, images) < 6e4
    got = rounded(model, images, fp32_islands(model.fused()))
    assert np.isfinite(got["map"]).all()
    assert got["score"][2] > got["score"][:2].max()
