"""The backbone of our own: textures from formulas, the training that tells them apart, the weights that ship."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch.nn import functional as F

from flawline.train import TrainError
from flawline.train.backbones import resnet
from flawline.train.backbones.resnet import ResNet
from flawline.train.pretrain import __main__ as pretrain
from flawline.train.pretrain.__main__ import Classifier, Pretraining, Run, learning_rate
from flawline.train.pretrain.textures import COMPOSITES, FAMILIES, Textures
from flawline.train.pretrain.textures.defects import damaged
from flawline.train.pretrain.textures.parts import ASSEMBLED, WHOLE, assembled
from flawline.train.pretrain.textures.view import View

pytestmark = pytest.mark.torch

TINY = Run(classes=15, batch=4, size=32, final_size=32)
CPU = torch.device("cpu")
WEIGHTS = Path(resnet.__file__).parent / "weights"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- textures


@pytest.mark.parametrize("kind", [*FAMILIES, *COMPOSITES])
def test_every_family_renders_finite_and_varied_pictures(kind: str) -> None:
    textures = Textures(90, 0)
    labels = torch.arange(textures.kinds.index(kind), 90, len(textures.kinds))
    images = textures.render(labels, None, 48, generator()).images
    assert images.shape == (6, 3, 48, 48)
    assert images.isfinite().all()
    assert 0 <= images.min() < images.max() <= 1
    assert (images.std((1, 2, 3)) > 0.01).all()
    assert len({image.numpy().tobytes() for image in images}) == 6
    again = textures.render(labels, None, 48, generator(1)).images
    assert (images - again).abs().mean() > 0.02, "one class, but always the same picture"


def test_pictures_follow_from_the_seeds_alone() -> None:
    first, second = (Textures(30, 5).batch(8, 40, generator(3)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.images, Textures(30, 5).batch(8, 40, generator(4)).images)
    assert not torch.equal(Textures(30, 5).knobs, Textures(30, 6).knobs)


def test_a_mixed_picture_says_where_its_other_texture_lies() -> None:
    batch = Textures(30, 0).batch(32, 48, generator(), mixed=True)
    assert batch.share.shape == (32, 1, 48, 48)
    assert batch.share.min() >= 0
    assert batch.share.max() <= 1
    assert torch.equal(batch.others.sort()[0], batch.labels.sort()[0])
    mixed = batch.share.mean((1, 2, 3)) > 0
    assert 0.1 < mixed.float().mean() < 0.6


def test_faults_are_small_and_told_where_they_are() -> None:
    picture = Textures(30, 0).batch(64, 64, generator()).images
    still = torch.zeros(64, 1, 1)
    faulty, damage = damaged(picture, picture, View(64, still, still, still, generator()))
    assert faulty.isfinite().all()
    assert damage.shape == (64, 1, 64, 64)
    assert damage.min() == 0
    assert damage.max() == pytest.approx(1)
    change = (faulty - picture).abs().amax(1, keepdim=True)
    assert change[damage < 0.01].max() < 0.05
    assert change[damage > 0.99].min() > 0.05
    clear = (damage > 0.5).float()
    assert 0.003 < clear.mean() < 0.05
    assert 0.6 < clear.amax((1, 2, 3)).mean() < 1
    assert clear.mean((1, 2, 3)).max() < 0.3


def test_parts_lie_on_some_pictures_and_here_and_there_one_is_missing() -> None:
    picture, still = Textures(30, 0).batch(200, 48, generator()).images, torch.zeros(200, 1, 1)
    whole, lacking, bare = assembled(picture, View(48, still, still, still, generator()))
    assert torch.equal(whole[bare], picture[bare])
    assert torch.equal(lacking[bare], picture[bare])
    assert bare.float().mean() == pytest.approx(1 - ASSEMBLED, abs=0.1)
    covered = ((whole - picture).abs().amax(1) > 0.02).float().mean((1, 2))[~bare]
    assert covered.min() > 0.05
    assert 0.2 < covered.mean() < 0.8
    missing = ((whole - lacking).abs().amax(1) > 0.02).float().mean((1, 2))[~bare]
    assert (missing > 0).float().mean() == pytest.approx(1 - WHOLE, abs=0.2)
    assert missing.max() < 0.5


def test_a_missing_part_counts_as_damage() -> None:
    sound, still = torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 1)
    lacking = sound.clone()
    lacking[1, :, 8:24, 8:24] = 0.5
    _, damage = damaged(lacking, sound, View(32, still, still, still, generator(1)))
    assert damage[1, 0, 10:22, 10:22].min() > 0.9


def test_a_picture_with_parts_is_not_named() -> None:
    """Its labels change nothing in the loss; a bare picture's do."""
    net = Classifier(TINY)
    batch = Textures(15, 0).batch(8, 32, generator(2), mixed=True, paired=True)
    assert 0 < batch.bare.sum() < 16

    def loss(others: torch.Tensor) -> float:
        labels = torch.where(others, (batch.labels + 1) % 15, batch.labels)
        return float(net.eval()(replace(batch, labels=labels), generator()).detach())

    assert loss(~batch.bare) == loss(torch.zeros_like(batch.bare))
    assert loss(batch.bare) != loss(torch.zeros_like(batch.bare))


def test_a_paired_batch_photographs_all_twice() -> None:
    batch, again = (
        Textures(30, 5).batch(8, 40, generator(3), mixed=True, paired=True) for _ in range(2)
    )
    assert torch.equal(batch.images, again.images)
    for values in (batch.labels, batch.others, batch.share, batch.bare):
        assert torch.equal(*values.chunk(2))
    faulty, sound = batch.damage.chunk(2)
    assert faulty.max() > 0.5
    assert sound.max() == 0
    first, second = batch.images.chunk(2)
    assert not torch.equal(first, second)
    alike = [
        torch.corrcoef(torch.stack([a, b]).flatten(1))[0, 1]
        for a, b in zip(first, second, strict=True)
    ]
    assert min(alike) > 0.4


# ---------------------------------------------------------------- training


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [learning_rate(done, 100_000, done // 10) for done in range(0, 100_001, 100)]
    assert rates[0] < rates[5] < max(rates) == rates[100] == rates[600]
    assert rates[800] == pytest.approx(max(rates) * 2 / 3)
    assert rates[-1] == 0


def test_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one batch again and again: what a step does to the weights lowers the loss."""
    monkeypatch.setattr(pretrain, "WARMUP", 1)
    training = Pretraining(Run(classes=4, batch=8, size=32, final_size=32), CPU)
    fixed = training.textures.batch(8, 32, torch.Generator().manual_seed(0), mixed=False)
    monkeypatch.setattr(training.textures, "batch", lambda *_, **__: fixed)
    losses = []
    for _ in range(21):
        training.one_step(10**6)
        losses.append(training.loss)
    assert losses[-1] < 0.7 * losses[0]


def test_training_drives_faults_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one batch again and again, in the last part of a run."""
    monkeypatch.setattr(pretrain, "WARMUP", 1)
    training = Pretraining(Run(classes=4, batch=8, size=64, final_size=64), CPU)
    fixed = training.textures.batch(4, 64, generator(), mixed=True, paired=True)
    monkeypatch.setattr(training.textures, "batch", lambda *_, **__: fixed)
    level_damage = F.adaptive_max_pool2d(fixed.damage[:4], 8)[:, 0]

    def contrast() -> float:
        """Distance where faults are over distance elsewhere, in layer2."""
        level = training.net.trunk(fixed.images)[0].detach()
        apart = (level[:4] - level[4:]).norm(dim=1)
        return float(apart[level_damage > 0.9].mean() / apart[level_damage == 0].mean())

    before = contrast()
    for _ in range(25):
        training.images = 800
        training.one_step(1000)
    assert contrast() > 1.5 * before


def test_an_older_state_without_curves_goes_on(tmp_path: Path) -> None:
    state, training = tmp_path / "a.state.pt", Pretraining(TINY, CPU)
    training.one_step(10**6)
    training.save(state)
    content = torch.load(state, weights_only=True)
    new = [
        i
        for i, (name, _) in enumerate(training.net.named_parameters())
        if name.startswith("curves.")
    ]
    content["net"] = {
        name: value for name, value in content["net"].items() if not name.startswith("curves.")
    }
    for i in new:
        content["optimiser"]["state"].pop(i, None)
        content["optimiser"]["param_groups"][0]["params"].remove(i)
    torch.save(content, state)
    resumed = Pretraining.resume(state, TINY, CPU)
    resumed.one_step(resumed.images)
    assert resumed.step == 2
    moments = resumed.optimiser.state[resumed.net.heads[0].bias]
    assert moments["step"] == 2


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    total = 12 * TINY.batch
    straight, cut = Pretraining(TINY, CPU), Pretraining(TINY, CPU)
    for _ in range(12):
        straight.one_step(total)
    for _ in range(5):
        cut.one_step(total)
    cut.save(tmp_path / "a.state.pt")
    resumed = pretrain.train(TINY, total, CPU, tmp_path / "a.state.pt", lambda *_: None)
    assert resumed.step == 12
    for name, value in straight.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name


def test_a_run_of_other_flags_is_not_continued(tmp_path: Path) -> None:
    state = tmp_path / "a.state.pt"
    Pretraining(TINY, CPU).save(state)
    with pytest.raises(TrainError, match="other flags"):
        Pretraining.resume(state, Run(classes=30, batch=4, size=32, final_size=32), CPU)
    state.write_bytes(b"not a state")
    with pytest.raises(TrainError, match="delete it"):
        Pretraining.resume(state, TINY, CPU)


def test_the_command_writes_weights_that_load_and_their_card(tmp_path: Path) -> None:
    out = tmp_path / "own.pth"
    flags = "--classes 15 --batch 4 --size 32 --final-size 32 --images 12 --device cpu --out"
    assert pretrain.main([*flags.split(), str(out)]) == 0
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (card["pictures"], card["steps"]) == (12, 3)
    assert f"own.pth sha256:{card['sha256'][:16]}" == ResNet("resnet18").load(str(out))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--backbone resnet19", "is unknown"),
        ("--device tpu9", "--device"),
        ("--picture /proc/nowhere/a.png", "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    flags: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main([*flags.split(), "--classes", "15", "--out", str(tmp_path / "a.pth")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error


def test_too_small_pictures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        pretrain.main(["--size", "16"])
    assert "32 or more" in capsys.readouterr().err


# ---------------------------------------------------------------- the weights that ship


def test_the_shipped_weights_load_and_are_those_of_their_card() -> None:
    card = json.loads((WEIGHTS / "resnet18-texture.json").read_text())
    content = (WEIGHTS / "resnet18-texture.pth").read_bytes()
    assert len(content) <= 6_000_000
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    trunk = ResNet("resnet18")
    assert trunk.load("texture") == f"texture sha256:{card['sha256'][:16]}"
    assert {value.dtype for value in trunk.state_dict().values()} == {torch.float32, torch.int64}
    levels = trunk.eval()(Textures(15, 0).batch(2, 64, generator()).images)
    assert all(level.isfinite().all() and level.std() > 0 for level in levels)


def test_a_backbone_without_texture_weights_says_so() -> None:
    with pytest.raises(
        TrainError,
        match=r"none of resnet34, only of .*resnet18.*train\.pretrain --backbone resnet34",
    ):
        ResNet("resnet34").load("texture")
