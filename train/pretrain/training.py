"""A pretraining run: its steps, and its state on disk, from which an interrupted run continues."""

from __future__ import annotations

import io
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flawline.runtime.console import log
from flawline.runtime.files import write_file
from flawline.train import TrainError
from flawline.train.loop import SAVE_EVERY_S, half_precision
from flawline.train.pretrain.network import Classifier
from flawline.train.pretrain.schedule import (
    LEARNING_RATE,
    PretrainingSettings,
    is_decaying,
    learning_rate,
)
from flawline.train.pretrain.textures import Batch, Textures
from flawline.train.progress import Progress

STATE_SCHEMA = 2
WEIGHT_DECAY = 0.02
# Steps between readings of the loss, because reading it waits for the device.
LOSS_EVERY = 20


class Pretraining:
    """A run in progress: everything that is saved and restored.

    The images of a step depend on the seed and the number of the step only, so a run that is
    restored continues exactly as it would have without the interruption.
    """

    def __init__(self, settings: PretrainingSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.net = Classifier(settings)
        self.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.textures = Textures(settings.classes, settings.seed, device)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        self.images = 0
        self.step = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.in_step = False

    def one_step(self, total: int) -> None:
        """Train on the next batch of a run of `total` images."""
        start = self._clock()
        self.in_step = True
        generator = torch.Generator(self.device).manual_seed((self.settings.seed << 32) + self.step)
        decaying = is_decaying(self.images, total)
        batch = self._draw_batch(generator, decaying)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.images, total, self.step)
        self.net.train()
        with half_precision(self.device):
            loss = self.net(batch, generator if decaying else None)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        if self.step % LOSS_EVERY == 0:
            self.loss = float(loss.detach())
        self.step += 1
        self.images += len(batch.images)
        self.seconds += self._clock() - start
        self.in_step = False

    def _draw_batch(self, generator: torch.Generator, decaying: bool) -> Batch:
        settings = self.settings
        if not decaying:
            return self.textures.batch(settings.batch, settings.size, generator)
        # A paired batch has two photographs of each scene.
        scenes = (settings.batch + 1) // 2
        return self.textures.batch(scenes, settings.final_size, generator, mixed=True, paired=True)

    def _clock(self) -> float:
        """Return seconds, of processor time on a CPU: pauses and other work do not count."""
        if self.device.type == "cuda":
            return time.monotonic()
        return time.process_time()

    def save(self, path: Path) -> None:
        """Write the state of the run. Raises TrainError where it cannot be written."""
        content = {
            "schema": STATE_SCHEMA,
            "run": asdict(self.settings),
            "progress": {"images": self.images, "step": self.step, "seconds": self.seconds},
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        write_torch(path, content)

    @classmethod
    def resume(cls, path: Path, settings: PretrainingSettings, device: torch.device) -> Pretraining:
        """Read the state of a run with these settings.

        Raises TrainError for a file that is not such a state, and for other settings.
        """
        content = _read_state(path)
        if content["run"] != asdict(settings):
            raise TrainError(
                f"{path} is from a run with other flags; repeat those, or delete it to start again"
            )
        training = cls(settings, device)
        training.net.load_state_dict(content["net"])
        training.optimiser.load_state_dict(content["optimiser"])
        progress = content["progress"]
        training.images = progress["images"]
        training.step = progress["step"]
        training.seconds = progress["seconds"]
        return training


def _read_state(path: Path) -> dict[str, Any]:
    problem = f"{path}: not a state of this version; delete it to start again"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no exceptions
        raise TrainError(problem) from error
    if not isinstance(content, dict) or content.get("schema") != STATE_SCHEMA:
        raise TrainError(problem)
    return content


def write_torch(path: Path, content: Any) -> bytes:
    """Write what torch.save makes of `content`, atomically, and return the bytes.

    Raises TrainError where the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    write_file(path, data, TrainError, "--out")
    return data


def pretrain(
    settings: PretrainingSettings,
    images: int,
    device: torch.device,
    state: Path,
    progress: Progress,
) -> Pretraining:
    """Train until `images` images were seen, and keep `state` up to date.

    A run continues from `state` where it exists. `<state>.constant.pt` is the state at which the
    learning rate began to fall; renamed to `state`, it is where a run with more images continues.
    """
    if state.exists():
        training = Pretraining.resume(state, settings, device)
        log(f"continuing from {state} at {training.images} images")
    else:
        training = Pretraining(settings, device)
    try:
        _run(training, images, state, progress)
    finally:
        # Also when interrupted, but never in the middle of a step, which resuming would apply
        # twice.
        if not training.in_step:
            training.save(state)
    return training


def _run(training: Pretraining, images: int, state: Path, progress: Progress) -> None:
    saved_at = time.monotonic()
    while training.images < images:
        was_decaying = is_decaying(training.images, images)
        training.one_step(images)
        progress("pretraining", min(training.images, images), images)
        if is_decaying(training.images, images) and not was_decaying:
            training.save(state.with_suffix(".constant.pt"))
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            speed = training.images / training.seconds
            log(f"{training.images} images, loss {training.loss:.3f}, {speed:.0f}/s")
            training.save(state)
            saved_at = time.monotonic()
