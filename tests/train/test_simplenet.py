from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.runtime.image import Geometry
from flawline.train import TrainError, loop
from flawline.train.backbones.resnet import ARCHITECTURES, ResNet
from flawline.train.blocks.patches import gaussian
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import Fit, resolve_method
from flawline.train.methods.simplenet import (
    RELATIVE_NOISE,
    SimpleNet,
    SimpleNetSettings,
    relative_noise,
)

pytestmark = pytest.mark.torch


def net(
    backbone: str = "resnet18",
    size: int = 64,
    level: int = 48,
    target: int = 48,
    vectors: int | None = None,
) -> SimpleNet:
    """A small SimpleNet whose BatchNorms and biases are not at their defaults."""
    torch.manual_seed(0)
    geometry = Geometry("stretch", size, size)
    settings = SimpleNetSettings(backbone, geometry, level, target, hidden=32, vectors=vectors)
    model = SimpleNet(settings)
    model.backbone.load("random", 0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def picture(size: int = 64, n: int = 2, seed: int = 0) -> Any:
    return torch.randint(
        0, 256, (n, size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


# ---------------------------------------------------------------- backbone


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_trunk_is_torchvisions(name: str, torchvision_models: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    reference = getattr(torchvision_models, name)(weights=None).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    trunk = ResNet(name).eval()
    trunk.load(str(tmp_path / "weights.pth"))
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        level2 = reference.layer2(reference.layer1(y))
        got2, got3 = trunk(x)
        assert trunk.channels == (got2.shape[1], got3.shape[1])
        torch.testing.assert_close(got2, level2)
        torch.testing.assert_close(got3, reference.layer3(level2))


def test_wrong_weights_are_told(tmp_path: Any) -> None:
    trunk = ResNet("resnet18")
    path = tmp_path / "w.pth"
    for content, message in (
        (ResNet("resnet34").state_dict(), "not of resnet18"),
        ({"a": torch.zeros(1)}, "no conv1.weight"),
        ([1, 2], "not a torchvision state_dict"),
    ):
        torch.save(content, path)
        with pytest.raises(TrainError, match=message):
            trunk.load(str(path))
    path.write_bytes(b"rubbish")
    with pytest.raises(TrainError, match="not a torch state_dict"):
        trunk.load(str(path))
    with pytest.raises(TrainError, match="cannot be read"):
        trunk.load(str(tmp_path / "absent.pth"))


def test_a_download_that_fails_says_how_to_pass_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        TrainError,
        match=r"resnet18-f37072fd\.pth cannot be downloaded.*--weights resnet18-f37072fd",
    ):
        ResNet("resnet18").load("imagenet")


def test_random_weights_are_a_function_of_the_seed_and_calibration_keeps_activations_sane() -> None:
    trunks = [ResNet("resnet18").eval() for _ in range(3)]
    for trunk, seed in zip(trunks, (1, 1, 2), strict=True):
        trunk.load("random", seed)
    assert torch.equal(trunks[0].layer3[1].conv2.weight, trunks[1].layer3[1].conv2.weight)
    assert not torch.equal(trunks[0].conv1.weight, trunks[2].conv1.weight)
    images = list(picture(n=16).numpy())
    trunks[0].estimate_batchnorm(images)
    with torch.inference_mode():
        level3 = trunks[0](trunks[0].normalise(torch.from_numpy(np.stack(images))))[1]
    assert 0.1 < level3.std() < 3


def test_normalise_is_rgb_with_imagenet_statistics() -> None:
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    image[..., 2] = 255  # red, in BGR
    normalised = ResNet("resnet18").normalise(image)
    assert normalised[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)
    assert normalised[0, 2, 0, 0] == pytest.approx(-0.406 / 0.225)


# ---------------------------------------------------------------- the literal pipeline


def test_features_by_loops() -> None:
    """Unfold, per-plane resize and both poolings, written as loops over one image."""
    model = net(level=40, target=36)
    image = picture(n=1)
    with torch.inference_mode():
        level2, level3 = (x[0].double() for x in model.backbone.extract(image))
        got = model.features(image)[0].double()
    h, w = level2.shape[1:]

    def patches(level: Any) -> Any:
        padded = torch.nn.functional.pad(level, (1, 1, 1, 1))
        rows = [
            padded[:, ky : ky + level.shape[1], kx : kx + level.shape[2]]
            for ky in range(3)
            for kx in range(3)
        ]
        return torch.stack(rows, 1).flatten(0, 1)  # [9 C, h, w], index 9c + 3ky + kx

    def pool(values: Any, n_out: int) -> Any:
        n = len(values)
        return torch.stack(
            [values[i * n // n_out : -(-(i + 1) * n // n_out)].mean(0) for i in range(n_out)]
        )

    planes3 = torch.nn.functional.interpolate(patches(level3)[None], size=(h, w), mode="bilinear")[
        0
    ]
    expected = pool(torch.cat([pool(patches(level2), 40), pool(planes3, 40)]), 36)
    torch.testing.assert_close(got.permute(2, 0, 1), expected, rtol=1e-5, atol=1e-5)


def test_score_is_the_maximum_before_smoothing_and_the_map_is_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    heat = torch.randn(1, 1, 64, 48, dtype=torch.float64)
    expected = ndimage.gaussian_filter(heat[0, 0].numpy(), sigma=4)
    np.testing.assert_allclose(gaussian(heat, 4)[0, 0].numpy(), expected, atol=1e-12)
    model = net()
    with torch.inference_mode():
        score, smoothed = model(picture())
    assert score.shape == (2,)
    assert smoothed.shape == (2, 64, 64)
    assert (smoothed.amax((1, 2)) < score).all()


# ---------------------------------------------------------------- fused equals literal

SETTINGS = [
    ("resnet18", 64, 384, 384),
    ("resnet18", 64, 1536, 1536),
    ("resnet18", 64, 1024, 1536),
    ("resnet18", 96, 100, 70),
    ("resnet34", 64, 384, 384),
    ("wide_resnet50_2", 64, 1536, 1536),
    ("resnet18", 72, 384, 384),
    ("resnet18", 90, 384, 384),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize(("backbone", "size", "level", "target"), SETTINGS)
def test_fused_equals_literal(
    backbone: str, size: int, level: int, target: int, dtype: str, tolerance: float
) -> None:
    model = net(backbone, size, level, target).to(getattr(torch, dtype)).eval()
    image = picture(size)
    with torch.inference_mode():
        score, heat = model(image)
        fused_score, fused_heat = model.fused()(image)
    scale = float(heat.std() + score.std())
    assert float((score - fused_score).abs().max()) < tolerance * scale
    assert float((heat - fused_heat).abs().max()) < tolerance * scale


# ---------------------------------------------------------------- training


def quiet(*_: Any) -> None:
    pass


def fit(
    model: SimpleNet, steps: int, resumed: Any = None, minutes: float | None = None
) -> tuple[int, list[Any]]:
    images = list(picture(n=12).numpy())
    saved: list[Any] = []
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    record = Fit(images, steps, 3, deadline, quiet, saved.append, resumed)
    return model.fit(record), saved


def test_training_is_a_function_of_the_seed_and_lowers_the_loss() -> None:
    a, b = net(), net()
    fit(a, 12)
    fit(b, 12)
    assert torch.equal(a.adapter.weight, b.adapter.weight)
    vectors = a.features(picture(n=12)).flatten(0, 2)
    untrained = net()
    untrained._initialise(3)
    fit(a, 150)
    before, after = (
        m.train().loss(vectors, 0.015, torch.Generator().manual_seed(0)) for m in (untrained, a)
    )
    assert after < 0.9 * before


def test_where_a_cpu_multiplies_bfloat16_the_loss_and_its_gradient_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = net().train()
    vectors = torch.randn(400, part.settings.target_dim, generator=torch.Generator().manual_seed(1))
    found = []
    for native in (False, True):
        monkeypatch.setattr(loop, "_multiplies_bfloat16", lambda native=native: native)
        part.zero_grad()
        loss = part.loss(vectors, 0.25, torch.Generator().manual_seed(0))
        loss.backward()
        found.append((float(loss.detach()), part.adapter.weight.grad.flatten().clone()))
    (exact, gradient), (rounded, half) = found
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    assert float(torch.nn.functional.cosine_similarity(gradient, half, 0)) > 0.98


def test_relative_noise_follows_the_features_scale() -> None:
    features = np.random.default_rng(0).normal(5, 2, (100, 30, 8)).astype(np.float32)
    assert relative_noise(features) == pytest.approx(2 * RELATIVE_NOISE, rel=0.05)
    assert relative_noise(7 * features) == pytest.approx(7 * relative_noise(features), rel=1e-5)


def test_the_trunk_stays_as_it_was() -> None:
    model = net()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    fit(model, 5)
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in before.items())


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Any) -> None:
    whole, part = net(vectors=64), net(vectors=64)
    assert fit(whole, 10)[0] == 10
    snapshots: list[Any] = []

    def stop_at_four(what: str, done: int, _: int) -> None:
        if what == "training" and done == 4:
            raise KeyboardInterrupt

    images = list(picture(n=12).numpy())
    with pytest.raises(KeyboardInterrupt):
        part.fit(Fit(images, 10, 3, progress=stop_at_four, save=snapshots.append))
    assert [s["state"]["step"] for s in snapshots] == [4]
    save_checkpoint(tmp_path / "c.pt", part, {"a": "b"}, snapshots[0])
    loaded, told, state = load_checkpoint(tmp_path / "c.pt")
    assert isinstance(loaded, SimpleNet)
    assert told == {"a": "b"}
    assert fit(loaded, 10, state)[0] == 10
    for key, value in whole.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


def test_the_light_setting_averages_its_last_steps() -> None:
    """Over 30 steps the mean decays by 2/3 a step: it lies between the last weights and those before."""
    averaged, plain = net(vectors=64), net(vectors=64)
    plain._decay = lambda steps: 0.0  # type: ignore[method-assign]
    fit(averaged, 30)
    fit(plain, 30)
    shorter = net(vectors=64)
    shorter._decay = lambda steps: 0.0  # type: ignore[method-assign]
    fit(shorter, 20)
    a, p, s = (m.discriminator[0].weight for m in (averaged, plain, shorter))
    assert 0 < (a - p).norm() < (s - p).norm()


def test_max_minutes_stops_and_saves_where_it_is() -> None:
    model = net()
    done, saved = fit(model, 100_000, minutes=1e-9)
    assert done == 1
    assert saved[-1]["state"]["step"] == done
    assert not model.training


def test_large_features_are_mapped_from_disk_and_train_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_memory, on_disk = net(), net()
    fit(in_memory, 4)
    monkeypatch.setattr("flawline.train.blocks.patches.MEMORY_MAP_ABOVE", 0)
    fit(on_disk, 4)
    assert torch.equal(in_memory.adapter.weight, on_disk.adapter.weight)


def test_a_checkpoint_is_data_only_and_a_foreign_file_is_told(tmp_path: Any) -> None:
    import pickle

    path = tmp_path / "c.pt"
    path.write_bytes(pickle.dumps({"schema": 1}))
    for data in (path.read_bytes(), b"", b"rubbish"):
        path.write_bytes(data)
        with pytest.raises(TrainError, match="not one of this version"):
            load_checkpoint(path)
    torch.save({"schema": 99}, path)
    with pytest.raises(TrainError, match="schema 99"):
        load_checkpoint(path)
    with pytest.raises(TrainError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(TrainError, match="known: simplenet"):
        resolve_method("complexnet")
