"""Training by gradient: batches by seed, bars, a deadline, and snapshots that resume exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from flawline.runtime.signals import DelayedSignals
from flawline.train import TrainError
from flawline.train.backbones import backbone_facts
from flawline.train.method import Fit, Phase
from flawline.train.progress import Progress

Indices = npt.NDArray[np.int64]

SAVE_EVERY_S = 60.0
# Names of torch.cpu's checks for instructions that multiply bfloat16, which differ by release.
BFLOAT16_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def choose_device(name: str) -> torch.device:
    """Return the device of this name; `auto` takes a GPU if there is one.

    Raises TrainError for a device that cannot be used on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainError(f"--device {name}: {reason}; use --device cpu") from error
    return device


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device multiplies it natively.

    Elsewhere it changes nothing, since emulated bfloat16 is slower than float32.
    """
    native = device.type == "cuda"
    if device.type == "cpu":
        native = _multiplies_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


@lru_cache
def _multiplies_bfloat16() -> bool:
    # Each check is looked up by name: torch.cpu.get_capabilities() came later than torch 2.5.
    for name in BFLOAT16_CHECKS:
        check = getattr(torch.cpu, name, None)
        if check is not None and check():
            return True
    return False


def choose_steps(
    backbone: str, images: int, epochs: int | None, *, batch: int, published: int, light: int
) -> int:
    """Return the steps of a training: those of so many epochs, the last batch of which is smaller.

    Without `epochs`, a light backbone gets `light` steps, and others the `published` epochs.
    """
    if epochs is None and backbone_facts(backbone).light:
        return light
    return (epochs or published) * math.ceil(images / batch)


def batch_indices(images: int, size: int, seed: int, start_step: int) -> Iterator[Indices]:
    """Yield the sorted indices of the images of each step, from `start_step` on, without end.

    Every epoch has a new order, which is a function of the seed and the epoch alone.
    """
    per_epoch = math.ceil(images / size)
    epoch, skip = divmod(start_step, per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(images)
        for index in range(skip, per_epoch):
            yield np.sort(order[index * size : (index + 1) * size])
        epoch += 1
        skip = 0


def half_cosine(share: float) -> float:
    """Return the learning rate after a share of the training, from 0 to 1, relative to the first.

    It falls from 1 to 0 along half a cosine.
    """
    return (1 + math.cos(math.pi * share)) / 2


def raise_at_deadline(fit: Fit, name: str) -> Progress:
    """Return `fit.progress` for a method that is fitted in one pass and so cannot resume.

    The returned callback raises TrainError if the deadline passes before the pass is complete.
    """

    def report(label: str, done: int, total: int) -> None:
        fit.progress(label, done, total)
        if done < total and time.monotonic() > fit.deadline:
            raise TrainError(
                f"--max-minutes ended at {label} {done} of {total}, and {name} is fitted in one "
                "pass; allow more minutes"
            )

    return report


class Stateful(Protocol):
    """An object whose state belongs to a snapshot: an optimiser, or an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Steps:
    """The steps of one phase: runs them, saves snapshots of them and continues from a snapshot.

    optimisers: are loaded from the snapshot, and stepped together.
    others: further objects that belong to a snapshot, by their name in it.
    total: the number of steps of this phase.
    """

    def __init__(
        self,
        fit: Fit,
        phase: Phase,
        optimisers: Sequence[Optimizer],
        total: int,
        others: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.fit = fit
        self.phase = phase
        self.optimisers = optimisers
        self.total = total
        self.others = others or {}
        self.start = 0
        if phase.state is not None:
            self._load(phase.state)

    def _load(self, state: dict[str, Any]) -> None:
        self.start = int(state["step"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name, other in self.others.items():
            other.load_state_dict(state[name])

    def _save(self, step: int) -> None:
        state: dict[str, Any] = {"step": step}
        state["optimisers"] = [optimiser.state_dict() for optimiser in self.optimisers]
        for name, other in self.others.items():
            state[name] = other.state_dict()
        self.phase.save(state)

    def run(
        self,
        batches: Iterator[Any],
        loss_of: Callable[[int, Any], Tensor],
        after: Callable[[], None] | None = None,
    ) -> int:
        """Minimise `loss_of(step, batch)` from `start` on; return how many steps are done in all.

        `batches` begins with the batch of step `start`. `after` runs after each update and belongs
        to it. A snapshot is saved once a minute and when the run ends early, also when it is
        interrupted, but never in the middle of an update, which resuming would apply twice. Ctrl-C
        and SIGTERM take effect at the end of a step; a second one takes effect at once. Raises
        TrainError if a loss is not finite.
        """
        with DelayedSignals() as signals:
            return self._run(batches, loss_of, after, signals)

    def _run(
        self,
        batches: Iterator[Any],
        loss_of: Callable[[int, Any], Tensor],
        after: Callable[[], None] | None,
        signals: DelayedSignals,
    ) -> int:
        step = self.start
        saved_at = time.monotonic()
        complete = True
        try:
            for batch in batches:
                if step >= self.total or self._out_of_time(step):
                    break
                for optimiser in self.optimisers:
                    optimiser.zero_grad(set_to_none=True)
                loss = loss_of(step, batch)
                # The weights of a training that diverged are not worth a snapshot.
                complete = bool(loss.detach().isfinite())
                if not complete:
                    raise TrainError(
                        f"the training diverged: the loss of step {step + 1} is not finite; "
                        "try another --seed"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                complete = False
                self._update(after)
                step += 1
                complete = True
                self.fit.progress(self.phase.name, step, self.total)
                signals.deliver()
                if time.monotonic() - saved_at > SAVE_EVERY_S:
                    self._save(step)
                    saved_at = time.monotonic()
        finally:
            if complete and self.start < step < self.total:
                self._save(step)
        return step

    def _out_of_time(self, step: int) -> bool:
        """Whether the deadline has passed; at least one step is done in every run."""
        return step > self.start and time.monotonic() > self.fit.deadline

    def _update(self, after: Callable[[], None] | None) -> None:
        for optimiser in self.optimisers:
            optimiser.step()
        if after is not None:
            after()
