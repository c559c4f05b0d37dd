"""The loop of methods that train by gradient: batches by seed, bars, deadline, snapshots that resume exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from flawline.train.method import Budget
from flawline.train.progress import Progress

SAVE_EVERY_S = 60.0


def deadline_of(budget: Budget) -> float:
    """When `time.monotonic()` says that the budget's minutes, which begin now, are over."""
    return math.inf if budget.max_minutes is None else time.monotonic() + 60 * budget.max_minutes


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device multiplies it natively; emulated it would be slower than float32."""
    native = device.type == "cuda" or (device.type == "cpu" and _multiplies_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


@lru_cache
def _multiplies_bfloat16() -> bool:
    # Asked one by one: torch.cpu.get_capabilities() came later than torch 2.5.
    asked = (
        getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")
    )
    return any(ask() for ask in asked if ask is not None)


def batches(n: int, size: int, seed: int, start_step: int) -> Iterator[Any]:
    """Indices of the images of each step, from `start_step` on; a new order every epoch, a function of seed alone."""
    per_epoch = math.ceil(n / size)
    epoch, skip = divmod(start_step, per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(n)
        for i in range(skip, per_epoch):
            yield np.sort(order[i * size : (i + 1) * size])
        epoch, skip = epoch + 1, 0


def run_steps(
    loss_of: Callable[[int, Any], Tensor],
    optimisers: Sequence[Optimizer],
    chosen: Iterator[Any],
    start: int,
    steps: int,
    deadline: float,
    progress: Progress,
    snapshot: Callable[[int], None],
    after: Callable[[int], None] = lambda step: None,
) -> int:
    """Minimise `loss_of(step, batch)` from step `start` on; how many steps are done in all.

    `after` follows each update and belongs to it. `snapshot(step)` is called now and then, and at the end of an
    unfinished run, also when interrupted, but never amid an update: resuming would take half of it twice.
    """
    saved_at, step, whole = time.monotonic(), start, True
    try:
        for batch in chosen:
            if step >= steps or (step > start and time.monotonic() > deadline):
                break
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss_of(step, batch).backward()  # type: ignore[no-untyped-call]
            whole = False
            for optimiser in optimisers:
                optimiser.step()
            after(step)
            step, whole = step + 1, True
            progress("training", step, steps)
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                snapshot(step)
                saved_at = time.monotonic()
    finally:
        if whole and start < step < steps:
            snapshot(step)
    return step
