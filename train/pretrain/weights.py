"""The result of a pretraining run: the backbone's weights, and a card that documents them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from flawline.runtime.environment import versions
from flawline.runtime.files import write_file
from flawline.train import TrainError
from flawline.train.pretrain.schedule import DECAY
from flawline.train.pretrain.training import Pretraining, write_torch


def write_weights(training: Pretraining, out: Path, command: str) -> None:
    """Write the backbone's weights to `out`, and next to it their card as JSON.

    `command` is the command line to repeat the run with. Raises TrainError where float16 cannot
    hold a weight and where the files cannot be written.
    """
    data = write_torch(out, float16_weights(training.net.backbone))
    card = _card(training, out.name, data, command)
    text = json.dumps(card, indent=2) + "\n"
    write_file(out.with_suffix(".json"), text.encode(), TrainError, "--out")


def float16_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of a backbone as float16.

    Raises TrainError for values that float16 cannot hold.
    """
    weights = {}
    for name, value in backbone.state_dict().items():
        value = value.cpu()
        stored = value
        if value.is_floating_point():
            stored = value.half()
        if not torch.allclose(stored.to(value.dtype), value, rtol=2e-3, atol=1e-6):
            raise TrainError(
                f"{name}: float16 does not hold its values; the training diverged; "
                "use another --seed"
            )
        weights[name] = stored
    return weights


def _card(training: Pretraining, file: str, data: bytes, command: str) -> dict[str, object]:
    settings = training.settings
    families = len(training.textures.kinds)
    backbone = training.net.backbone
    return {
        "weights": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "what": (
            f"{settings.backbone} up to level {max(backbone.levels)}, float16, the names of its "
            f"state_dict; RGB with mean {backbone.mean_rgb} and std {backbone.std_rgb}"
        ),
        "data": (
            f"none but formulas: {settings.classes} procedural textures of {families} families, "
            f"rendered endlessly by train.pretrain.textures (seed {settings.seed})"
        ),
        "pictures": training.images,
        "steps": training.step,
        "sizes": (
            f"{settings.size} px, the last {DECAY:.0%} {settings.final_size} px, "
            f"{settings.batch} a step"
        ),
        "minutes": round(training.seconds / 60, 1),
        "device": _device_name(training.device),
        "versions": versions(),
        "command": command,
        "licence": "Apache-2.0, as Flawline itself: no image file and no other weights were used",
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU (minutes of processor time), threads: {torch.get_num_threads()}"
