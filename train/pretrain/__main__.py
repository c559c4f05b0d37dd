"""python -m train.pretrain: a backbone from formulas alone. Renders endless textures and learns to tell them apart.

No file is read and none is written but the weights. That features of procedural pictures carry over to photographs is
from Kataoka et al., "Pre-training without natural images" (2020; FractalDB), Baradad et al., "Learning to see by
looking at noise" (2021) and "Procedural image programs for representation learning" (2022).

The network names a picture's texture from the means of layer2 and layer3. In the last part, while the learning rate
falls, pictures are larger, two textures may meet in one, and single positions of both levels name what they see.
Onto some, parts of others are laid. All are photographed twice there, once with small faults in them and once, in other
light and a little moved, without: vectors of one position are to be far apart where a fault is, and close elsewhere.
That is what a detector of anomalies reads. What was tried beside it is in the card of the weights.
"""

from __future__ import annotations

from flawline.train import TrainError, require_extra

require_extra("train.pretrain")

import argparse
import hashlib
import io
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.console import log
from flawline.runtime.environment import versions
from flawline.runtime.files import write_atomically
from flawline.train.backbones.resnet import ARCHITECTURES, ResNet
from flawline.train.loop import choose_device, half_precision
from flawline.train.pretrain.textures import Batch, Textures
from flawline.train.pretrain.textures.sheet import write_sheet
from flawline.train.progress import Bars, Progress

STATE_SCHEMA = 1
LEARNING_RATE = 1.5e-3  # of AdamW, after WARMUP steps
WARMUP = 200
WEIGHT_DECAY = 0.02
SMOOTHING = 0.05
DENSE = 0.5  # weight of the loss of single positions, once the rate falls
FAULTS = 14.0  # weight of telling faults from the distance of two photographs, then too
NEAR = 1e-3  # squared distances below this share of the usual one between pictures are all alike
POSITIONS = 12  # of each level and picture: neighbours are alike, a few teach as much as all
# The rate is constant and falls to nothing over the last part: an unfinished run can be given more images, or fewer.
DECAY = 0.3
SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class Run:
    """What is trained. `size` is the pictures' until the learning rate falls, `final_size` from then on."""

    backbone: str = "resnet18"
    classes: int = 480
    batch: int = 64
    size: int = 64
    final_size: int = 96
    seed: int = 0


class Classifier(nn.Module):
    """A trunk with one linear head on each level's positions and one on the means of both.

    `curves` are each level's logarithm of the slope and the offset of a fault's logit over a distance's logarithm.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.trunk = ResNet(run.backbone)
        self.trunk.load("random", run.seed)
        generator = torch.Generator().manual_seed(run.seed)
        self.heads = nn.ModuleList(
            nn.Linear(c, run.classes) for c in (sum(self.trunk.channels), *self.trunk.channels)
        )
        for head in self.heads:
            nn.init.normal_(head.weight, 0, 0.01, generator=generator)  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        # Last, where a state that lacks them keeps the optimiser's order.
        self.curves = nn.ParameterList(torch.zeros(2) for _ in self.trunk.channels)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch; with a generator, which draws positions, that of single positions and faults too: of a
        paired batch."""
        mean, std = (
            batch.images.new_tensor(v).view(3, 1, 1) for v in (ResNet.mean_rgb, ResNet.std_rgb)
        )
        images = ((batch.images - mean) / std).contiguous(memory_format=torch.channels_last)
        levels = self.trunk(images)
        means = torch.cat([level.mean((2, 3)) for level in levels], 1)
        loss = _mixed_loss(self.heads[0](means), batch, batch.share.mean((2, 3), keepdim=True))
        if generator is None:
            return loss
        for head, level, curve in zip(list(self.heads)[1:], levels, self.curves, strict=True):
            share = F.adaptive_avg_pool2d(batch.share, level.shape[2:]).flatten(2)
            order = torch.rand(len(share), share.shape[2], generator=generator, device=share.device)
            chosen = order.topk(min(POSITIONS, share.shape[2]))[1][:, None]
            vectors = level.flatten(2).gather(2, chosen.expand(-1, level.shape[1], -1))
            loss = loss + DENSE * _mixed_loss(
                head(vectors.transpose(1, 2)), batch, share.gather(2, chosen)
            )
            loss = loss + FAULTS * _fault_loss(level.float(), batch.damage, curve)
        return loss


def _fault_loss(level: Tensor, damage: Tensor, curve: Tensor) -> Tensor:
    """Cross entropy of naming the faults of a paired batch from the distance of its halves, position by position."""
    faulty, sound = level.chunk(2)
    usual = (sound - sound.roll(1, 0)).square().sum(1).mean().clamp(min=1e-12)
    squared = (faulty - sound).square().sum(1, keepdim=True)
    logits = curve[0].exp() * torch.log(squared / usual + NEAR) + curve[1]
    return F.binary_cross_entropy_with_logits(
        logits, F.adaptive_max_pool2d(damage, level.shape[2:])[: len(faulty)]
    )


def _mixed_loss(logits: Tensor, batch: Batch, share: Tensor) -> Tensor:
    """Cross entropy with smoothed labels of the pictures to be named; logits [n, ..., classes], share [n, 1, h, w] of
    the other texture."""
    n, classes = len(logits), logits.shape[-1]
    logits = logits.reshape(n, -1, classes)
    other = share.reshape(n, -1)
    log_sum = torch.logsumexp(logits.float(), -1)
    index = torch.stack([batch.labels, batch.others], -1)[:, None].expand(-1, logits.shape[1], -1)
    two = logits.gather(2, index).float()
    target = (1 - other) * two[..., 0] + other * two[..., 1]
    each = log_sum - (1 - SMOOTHING) * target - SMOOTHING * logits.mean(-1, dtype=torch.float32)
    return (each.mean(1) * batch.bare).sum() / batch.bare.sum().clamp(min=1)


def learning_rate(done: int, total: int, step: int) -> float:
    """After `done` of `total` pictures: linear warm-up, constant, linear to nothing."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP, (total - done) / (DECAY * total))


class Pretraining:
    """A run in progress: what is saved and resumed. Each step's pictures depend on seed and step alone."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        self.net = Classifier(run).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.textures = Textures(run.classes, run.seed, device)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        self.images, self.step, self.seconds, self.loss = 0, 0, 0.0, math.nan
        self.whole = True  # not amid a step

    def one_step(self, total: int) -> None:
        start, self.whole = self._clock(), False
        late = self.images >= (1 - DECAY) * total
        size = self.run.final_size if late else self.run.size
        generator = torch.Generator(self.device).manual_seed((self.run.seed << 32) + self.step)
        count = (self.run.batch + 1) // 2 if late else self.run.batch
        batch = self.textures.batch(count, size, generator, mixed=late, paired=late)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.images, total, self.step)
        self.net.train()
        with half_precision(self.device):
            loss = self.net(batch, generator if late else None)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if self.step % 20 == 0:  # reading it waits for the device
            self.loss = float(loss.detach())
        self.step, self.images = self.step + 1, self.images + len(batch.images)
        self.seconds += self._clock() - start
        self.whole = True

    def _clock(self) -> float:
        # Processor time on a CPU: what other work or a pause takes does not count.
        return time.monotonic() if self.device.type == "cuda" else time.process_time()

    def save(self, path: Path) -> None:
        content = {
            "schema": STATE_SCHEMA,
            "run": asdict(self.run),
            "progress": {"images": self.images, "step": self.step, "seconds": self.seconds},
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        _write(path, content)

    @classmethod
    def resume(cls, path: Path, run: Run, device: torch.device) -> Pretraining:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            told, progress = Run(**content["run"]), content["progress"]
        except Exception as error:
            raise TrainError(
                f"{path}: not a state of this version; delete it to start anew"
            ) from error
        if told != run:
            raise TrainError(
                f"{path} is from a run with other flags; repeat those, or delete it to start anew"
            )
        self = cls(run, device)
        # A state from before the curves goes on with new ones.
        self.net.load_state_dict({**self.net.state_dict(), **content["net"]})
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict(
            {"state": content["optimiser"]["state"], "param_groups": groups}
        )
        self.images, self.step, self.seconds = (
            progress["images"],
            progress["step"],
            progress["seconds"],
        )
        return self

    def weights(self) -> dict[str, Tensor]:
        """The trunk alone, float16 under torchvision's names; TrainError where float16 cannot hold it."""
        state = {}
        for name, value in self.net.trunk.state_dict().items():
            state[name] = value.cpu().half() if value.is_floating_point() else value.cpu()
            if not torch.allclose(state[name].to(value.dtype), value.cpu(), rtol=2e-3, atol=1e-6):
                raise TrainError(
                    f"{name}: float16 does not hold its values; the training diverged; use another --seed"
                )
        return state


def _write(path: Path, content: Any) -> bytes:
    """torch.save, atomically; the bytes written."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise TrainError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    return buffer.getvalue()


def train(
    run: Run, images: int, device: torch.device, state: Path, progress: Progress
) -> Pretraining:
    """Train until `images` pictures were seen, going on from `state` where it exists; `state` is kept up to date.

    Beside it, `<state>.constant.pt` is where the learning rate began to fall: renamed to `state`, it goes on from
    there with more pictures.
    """
    training = (
        Pretraining.resume(state, run, device) if state.exists() else Pretraining(run, device)
    )
    if training.step:
        log(f"going on from {state} at {training.images} pictures")
    saved = time.monotonic()
    try:
        while training.images < images:
            rate_falls = training.images < (1 - DECAY) * images <= training.images + run.batch
            training.one_step(images)
            progress("pretraining", min(training.images, images), images)
            if rate_falls:
                training.save(state.with_suffix(".constant.pt"))
            if time.monotonic() - saved > SAVE_EVERY_S:
                log(
                    f"{training.images} pictures, loss {training.loss:.3f}, {training.images / training.seconds:.0f}/s"
                )
                training.save(state)
                saved = time.monotonic()
    finally:
        # Also when interrupted, but never amid a step: resuming would take half of it twice.
        if training.whole:
            training.save(state)
    return training


def write_weights(training: Pretraining, out: Path, command: str) -> None:
    """`out`, and beside it the card that says where they come from, as JSON."""
    run, content = training.run, _write(out, training.weights())
    card = {
        "weights": out.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "what": f"{run.backbone}, stem to layer3, float16, torchvision's names; RGB with ImageNet's mean and std",
        "data": f"none but formulas: {run.classes} procedural textures of {len(training.textures.kinds)} families, "
        f"rendered endlessly by train.textures (seed {run.seed})",
        "pictures": training.images,
        "steps": training.step,
        "sizes": f"{run.size} px, the last {DECAY:.0%} {run.final_size} px, {run.batch} a step",
        "minutes": round(training.seconds / 60, 1),
        "device": torch.cuda.get_device_name(training.device)
        if training.device.type == "cuda"
        else f"CPU (minutes of processor time), threads: {torch.get_num_threads()}",
        "versions": versions(),
        "command": command,
        "licence": "Apache-2.0, as Flawline itself: no picture and no other weights went into them",
    }
    out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train.pretrain", description="A backbone's weights from formulas alone."
    )
    parser.add_argument(
        "--backbone",
        default="resnet18",
        help=f"one of {', '.join(ARCHITECTURES)}; default %(default)s",
    )
    parser.add_argument(
        "--images", type=int, default=500_000, help="pictures to see in all; default %(default)s"
    )
    meanings = {
        "classes": "textures to tell apart",
        "batch": "pictures a step",
        "size": "of the pictures in pixels",
        "final_size": f"of those of the last {DECAY:.0%}".replace("%", "%%"),
        "seed": "of the textures, the pictures and the first weights",
    }
    for name, meaning in meanings.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=int, default=getattr(Run, name), help=f"{meaning}; default %(default)s"
        )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one"
    )
    parser.add_argument("--threads", type=int, help="of the CPU; one is best beside other work")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/resnet18-texture.pth"), help="default %(default)s"
    )
    parser.add_argument("--picture", type=Path, help="only draw what is trained on, as one PNG")
    args = parser.parse_args(argv)
    for name in ("images", "batch", "classes", "threads"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} {value} is not above 0")
    if min(args.size, args.final_size) < 32:
        parser.error("--size and --final-size must be 32 or more: layer3 sees 16 pixels as one")
    if not 0 <= args.seed < 2**31:
        parser.error(f"--seed {args.seed} is not from 0 to {2**31 - 1}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    bars = Bars()
    try:
        if args.picture:
            write_sheet(args.picture, args.classes, args.seed)
            return 0
        if args.threads:
            torch.set_num_threads(args.threads)
        run = Run(
            **{
                field.name: getattr(args, field.name)
                for field in fields(Run)
                if hasattr(args, field.name)
            }
        )
        state = args.out.with_suffix(".state.pt")
        training = train(run, args.images, choose_device(args.device), state, bars)
        write_weights(
            training, args.out, f"python -m train.pretrain {shlex.join(argv or sys.argv[1:])}"
        )
    except TrainError as error:
        log(f"train.pretrain: {error}")
        return 2
    except KeyboardInterrupt:
        log("interrupted; the same command goes on from the last saved step")
        return 130
    finally:
        bars.close()
    log(f"weights {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
