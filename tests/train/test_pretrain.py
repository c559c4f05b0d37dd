"""Pretraining on textures: the images, the training that names them, the weights that ship."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from torch.nn import functional as F

from flawline.train import TrainError
from flawline.train.backbones import create_backbone, resnet
from flawline.train.pretrain import schedule, training
from flawline.train.pretrain.__main__ import main
from flawline.train.pretrain.network import Classifier
from flawline.train.pretrain.schedule import PretrainingSettings, learning_rate
from flawline.train.pretrain.textures import COMPOSITES, FAMILIES, Textures
from flawline.train.pretrain.textures.faults import with_faults
from flawline.train.pretrain.textures.parts import ASSEMBLED, WHOLE, with_parts
from flawline.train.pretrain.textures.view import View
from flawline.train.pretrain.training import Pretraining, pretrain
from flawline.train.pretrain.weights import float16_weights
from flawline.train.progress import no_progress

pytestmark = pytest.mark.torch

TINY = PretrainingSettings(classes=15, batch=4, size=32, final_size=32)
CPU = torch.device("cpu")
WEIGHTS = Path(resnet.__file__).parent / "weights"
NEVER = 10**6  # images of a run whose learning rate does not fall within a test


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- textures


@pytest.mark.parametrize("kind", [*FAMILIES, *COMPOSITES])
def test_every_family_renders_finite_and_varied_images(kind: str) -> None:
    textures = Textures(90, 0)
    labels = torch.arange(textures.kinds.index(kind), 90, len(textures.kinds))
    images = textures.render(labels, None, 48, generator()).images
    assert images.shape == (6, 3, 48, 48)
    assert images.isfinite().all()
    assert 0 <= images.min() < images.max() <= 1
    assert (images.std((1, 2, 3)) > 0.01).all()
    assert len({image.numpy().tobytes() for image in images}) == 6
    again = textures.render(labels, None, 48, generator(1)).images
    assert (images - again).abs().mean() > 0.02, "one class, but always the same image"


def test_images_follow_from_the_seeds_alone() -> None:
    first = Textures(30, 5).batch(8, 40, generator(3))
    second = Textures(30, 5).batch(8, 40, generator(3))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.images, Textures(30, 5).batch(8, 40, generator(4)).images)
    assert not torch.equal(Textures(30, 5).parameters, Textures(30, 6).parameters)


def test_a_mixed_image_has_the_share_of_its_other_texture() -> None:
    batch = Textures(30, 0).batch(32, 48, generator(), mixed=True)
    assert batch.share.shape == (32, 1, 48, 48)
    assert batch.share.min() >= 0
    assert batch.share.max() <= 1
    assert torch.equal(batch.others.sort()[0], batch.labels.sort()[0])
    mixed = batch.share.mean((1, 2, 3)) > 0
    assert 0.1 < mixed.float().mean() < 0.6


def test_a_composite_shows_both_of_its_classes() -> None:
    textures = Textures(30, 0)
    composites = torch.arange(len(FAMILIES), len(textures.kinds))
    parents = textures.parents[composites]
    assert (textures.kind[parents] < len(FAMILIES)).all()
    for label in composites:
        images = textures.render(label.expand(2), None, 32, generator(1)).images
        assert images.isfinite().all()


def test_faults_are_small_and_their_damage_is_where_they_are() -> None:
    images = Textures(30, 0).batch(64, 64, generator()).images
    faulty, damage = with_faults(images, images, View.upright(64, 64, generator()))
    assert faulty.isfinite().all()
    assert damage.shape == (64, 1, 64, 64)
    assert damage.min() == 0
    assert damage.max() == pytest.approx(1)
    change = (faulty - images).abs().amax(1, keepdim=True)
    assert change[damage < 0.01].max() < 0.05
    assert change[damage > 0.99].min() > 0.05
    clear = (damage > 0.5).float()
    assert 0.003 < clear.mean() < 0.05
    assert 0.6 < clear.amax((1, 2, 3)).mean() < 1
    assert clear.mean((1, 2, 3)).max() < 0.3


def test_parts_lie_on_some_images_and_some_of_these_lack_one() -> None:
    images = Textures(30, 0).batch(200, 48, generator()).images
    whole, lacking, bare = with_parts(images, View.upright(200, 48, generator()))
    assert torch.equal(whole[bare], images[bare])
    assert torch.equal(lacking[bare], images[bare])
    assert bare.float().mean() == pytest.approx(1 - ASSEMBLED, abs=0.1)
    covered = ((whole - images).abs().amax(1) > 0.02).float().mean((1, 2))[~bare]
    assert covered.min() > 0.05
    assert 0.2 < covered.mean() < 0.8
    missing = ((whole - lacking).abs().amax(1) > 0.02).float().mean((1, 2))[~bare]
    assert (missing > 0).float().mean() == pytest.approx(1 - WHOLE, abs=0.2)
    assert missing.max() < 0.5


def test_a_missing_part_counts_as_damage() -> None:
    sound = torch.zeros(2, 3, 32, 32)
    lacking = sound.clone()
    lacking[1, :, 8:24, 8:24] = 0.5
    _, damage = with_faults(lacking, sound, View.upright(2, 32, generator(1)))
    assert damage[1, 0, 10:22, 10:22].min() > 0.9


def test_an_image_with_parts_has_no_class_to_name() -> None:
    """Its labels do not change the loss; a bare image's do."""
    net = Classifier(TINY)
    batch = Textures(15, 0).batch(8, 32, generator(2), mixed=True, paired=True)
    assert 0 < batch.bare.sum() < 16

    def loss(others: torch.Tensor) -> float:
        labels = torch.where(others, (batch.labels + 1) % 15, batch.labels)
        return float(net.eval()(replace(batch, labels=labels), generator()).detach())

    assert loss(~batch.bare) == loss(torch.zeros_like(batch.bare))
    assert loss(batch.bare) != loss(torch.zeros_like(batch.bare))


def test_a_paired_batch_photographs_every_scene_twice() -> None:
    textures = Textures(30, 5)
    batch = textures.batch(8, 40, generator(3), mixed=True, paired=True)
    again = textures.batch(8, 40, generator(3), mixed=True, paired=True)
    assert torch.equal(batch.images, again.images)
    for values in (batch.labels, batch.others, batch.share, batch.bare):
        assert torch.equal(*values.chunk(2))
    damaged, undamaged = batch.damage.chunk(2)
    assert damaged.max() > 0.5
    assert undamaged.max() == 0
    first, second = batch.images.chunk(2)
    assert not torch.equal(first, second)
    for one, other in zip(first, second, strict=True):
        pixels = torch.stack([one, other]).flatten(1)
        assert torch.corrcoef(pixels)[0, 1] > 0.4


# ---------------------------------------------------------------- training


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    rates = [learning_rate(done, 100_000, done // 10) for done in range(0, 100_001, 100)]
    assert rates[0] < rates[5] < max(rates) == rates[100] == rates[600]
    assert rates[800] == pytest.approx(max(rates) * 2 / 3)
    assert rates[-1] == 0


def test_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on the same batch lower its loss."""
    monkeypatch.setattr(schedule, "WARMUP", 1)
    monkeypatch.setattr(training, "LOSS_EVERY", 1)
    run = Pretraining(PretrainingSettings(classes=4, batch=4, size=32, final_size=32), CPU)
    fixed = run.textures.batch(4, 32, generator())
    monkeypatch.setattr(run.textures, "batch", lambda *_, **__: fixed)
    losses = []
    for _ in range(6):
        run.one_step(NEVER)
        losses.append(run.loss)
    assert losses[-1] < 0.5 * losses[0]


def test_training_separates_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on the same paired batch move the vectors of faulty positions apart."""
    monkeypatch.setattr(schedule, "WARMUP", 1)
    run = Pretraining(PretrainingSettings(classes=4, batch=8, size=48, final_size=48), CPU)
    fixed = run.textures.batch(4, 48, generator(), mixed=True, paired=True)
    monkeypatch.setattr(run.textures, "batch", lambda *_, **__: fixed)
    damage = F.adaptive_max_pool2d(fixed.damage[:4], 6)[:, 0]

    def contrast() -> float:
        """Return the distance in layer2 where faults are, relative to the distance elsewhere."""
        level = run.net.backbone(fixed.images)[0].detach()
        distance = (level[:4] - level[4:]).norm(dim=1)
        return float(distance[damage > 0.9].mean() / distance[damage == 0].mean())

    before = contrast()
    for _ in range(6):
        run.images = 800  # in the part of the run in which the rate falls
        run.one_step(1000)
    assert contrast() > 1.5 * before


def test_an_interrupted_run_continues_exactly(tmp_path: Path) -> None:
    total = 6 * TINY.batch
    state = tmp_path / "a.state.pt"
    straight = Pretraining(TINY, CPU)
    for _ in range(6):
        straight.one_step(total)
    cut = Pretraining(TINY, CPU)
    for _ in range(2):
        cut.one_step(total)
    cut.save(state)
    resumed = pretrain(TINY, total, CPU, state, no_progress)
    assert resumed.step == 6
    expected = straight.net.state_dict()
    for name, value in resumed.net.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_an_interruption_within_a_step_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Classifier, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, 100, CPU, tmp_path / "a.state.pt", no_progress)
    assert not list(tmp_path.iterdir())


def test_the_state_before_the_decay_serves_a_longer_run(tmp_path: Path) -> None:
    state = tmp_path / "a.state.pt"
    pretrain(TINY, 4 * TINY.batch, CPU, state, no_progress)
    constant = tmp_path / "a.state.constant.pt"
    constant.rename(state)
    longer = Pretraining.resume(state, TINY, CPU)
    assert longer.step == 3
    assert longer.images == 3 * TINY.batch


def test_a_run_of_other_flags_is_not_continued(tmp_path: Path) -> None:
    state = tmp_path / "a.state.pt"
    Pretraining(TINY, CPU).save(state)
    with pytest.raises(TrainError, match="other flags"):
        Pretraining.resume(state, replace(TINY, classes=30), CPU)


@pytest.mark.parametrize("content", [b"not a state", None])
def test_another_file_is_not_a_state(content: bytes | None, tmp_path: Path) -> None:
    state = tmp_path / "a.state.pt"
    if content is None:
        torch.save({"schema": 1}, state)
    else:
        state.write_bytes(content)
    with pytest.raises(TrainError, match="not a state of this version; delete it"):
        Pretraining.resume(state, TINY, CPU)


def test_weights_beyond_float16_are_refused() -> None:
    layer = torch.nn.Linear(2, 2)
    assert float16_weights(layer)["weight"].dtype == torch.float16
    layer.weight.data[0, 0] = 1e6
    with pytest.raises(TrainError, match="weight: float16 does not hold its values"):
        float16_weights(layer)


def test_the_command_writes_weights_that_load_and_their_card(tmp_path: Path) -> None:
    out = tmp_path / "own.pth"
    flags = "--classes 15 --batch 4 --size 32 --final-size 32 --images 12 --device cpu --out"
    assert main([*flags.split(), str(out)]) == 0
    card = json.loads(out.with_suffix(".json").read_text())
    digest = card["sha256"]
    assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (card["pictures"], card["steps"]) == (12, 3)
    assert card["command"] == f"python -m train.pretrain {flags} {out}"
    loaded = create_backbone("resnet18", (2, 3)).load(str(out))
    assert loaded == f"own.pth sha256:{digest[:16]}"


def test_the_default_output_is_named_after_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--classes 15 --batch 2 --size 32 --final-size 32 --images 2 --device cpu"
    assert main([*flags.split(), "--backbone", "resnet34"]) == 0
    assert (tmp_path / "runs" / "resnet34-texture.pth").exists()
    card = json.loads((tmp_path / "runs" / "resnet34-texture.json").read_text())
    assert card["what"].startswith("resnet34 up to level 3, float16")


def test_the_command_draws_what_is_trained_on(tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["--picture", str(sheet), "--classes", "15"]) == 0
    assert sheet.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--backbone resnet19", "is unknown"),
        ("--device tpu9", "--device"),
        ("--picture /proc/nowhere/a.png", "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags.split(), "--classes", "15", "--out", str(tmp_path / "a.pth")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--size 16", "32 or more"),
        ("--images 0", "--images 0 is not above 0"),
        ("--threads 0", "--threads 0 is not above 0"),
        ("--seed -1", "--seed -1 is not from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags.split())
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- the weights that ship


def test_the_shipped_weights_load_and_are_those_of_their_card() -> None:
    card = json.loads((WEIGHTS / "resnet18-texture.json").read_text())
    content = (WEIGHTS / "resnet18-texture.pth").read_bytes()
    assert len(content) <= 6_000_000
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    backbone = create_backbone("resnet18", (2, 3))
    assert backbone.load("texture") == f"texture sha256:{card['sha256'][:16]}"
    types = {value.dtype for value in backbone.state_dict().values()}
    assert types == {torch.float32, torch.int64}
    levels = backbone.eval()(Textures(15, 0).batch(2, 64, generator()).images)
    for level in levels:
        assert level.isfinite().all()
        assert level.std() > 0


def test_a_backbone_without_texture_weights_says_so() -> None:
    with pytest.raises(
        TrainError,
        match=r"none of resnet34, only of .*resnet18.*train\.pretrain --backbone resnet34",
    ):
        create_backbone("resnet34", (2, 3)).load("texture")
