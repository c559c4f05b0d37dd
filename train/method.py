"""What every detector is: a torch module with one signature, a way to fit it, and a checkpoint that is data only."""

from __future__ import annotations

import abc
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flawline.runtime.files import write_atomically
from flawline.runtime.image import Geometry, Image
from flawline.train import METHODS, TrainError
from flawline.train.progress import Progress

CHECKPOINT_SCHEMA = 1


@dataclass(frozen=True)
class Budget:
    """How long to train: `steps` optimiser steps in all, and at most `max_minutes` in this run (resumable)."""

    steps: int
    max_minutes: float | None = None


Save = Callable[[dict[str, Any]], None]


class Method(nn.Module, abc.ABC):
    """A detector. `hyperparameters` are the keyword arguments that construct it again.

    `forward` maps uint8 [N, H, W, 3] BGR to score float32 [N] and map float32 [N, H, W], evaluated literally as the
    paper's code does. `fused` returns the module that is exported: the same function, rewritten.
    """

    name: ClassVar[str]
    # Prefixes of node names of the exported graph (module paths, as "/smooth") that FP16 would hurt.
    fp32_islands: tuple[str, ...] = ()
    # How many times as far as scores an exported graph's maps may be off.
    map_tolerance: ClassVar[float] = 1.0
    # Command-line flags of this method alone: flag -> (type, meaning). Each is a keyword argument of the constructor.
    options: ClassVar[dict[str, tuple[Any, str]]] = {}
    # What `fit` wants said when it is done, such as a size that it chose.
    notes: Sequence[str] = ()

    def __init__(self, **hyperparameters: Any) -> None:
        super().__init__()
        self.hyperparameters = hyperparameters

    @property
    def geometry(self) -> Geometry:
        return Geometry(**self.hyperparameters["geometry"])

    @property
    def backbone(self) -> str:
        return str(self.hyperparameters["backbone"])

    @classmethod
    @abc.abstractmethod
    def defaults(cls, backbone: str) -> dict[str, Any]:
        """The keyword arguments that suit this backbone, the geometry among them as JSON fields."""

    @classmethod
    @abc.abstractmethod
    def steps(cls, backbone: str, images: int, epochs: int | None) -> int:
        """How many optimiser steps `epochs` passes over so many images take; None asks for the default length."""

    @abc.abstractmethod
    def fit(
        self,
        images: Sequence[Image],
        budget: Budget,
        seed: int,
        progress: Progress,
        save: Save,
        resumed: dict[str, Any] | None,
    ) -> int:
        """Train on prepared good images (uint8 [H, W, 3]); the number of steps done, `budget.steps` if not cut short.

        Calls `save` now and then with a state that a later call takes as `resumed` to go on exactly where it was.
        """

    @abc.abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]: ...

    @abc.abstractmethod
    def fused(self) -> nn.Module: ...


def resolve_method(name: str) -> type[Method]:
    if name not in METHODS:
        raise TrainError(f"method {name!r} is unknown; known: {', '.join(METHODS)}")
    found: type[Method] = resolve_name(METHODS[name])
    return found


def create(name: str, hyperparameters: dict[str, Any]) -> Method:
    return resolve_method(name)(**hyperparameters)


def save_checkpoint(
    path: Path, method: Method, provenance: dict[str, str], state: dict[str, Any] | None = None
) -> None:
    """Write state_dict, hyper-parameters and provenance atomically; `state` is what `fit` needs to resume."""
    content = {
        "schema": CHECKPOINT_SCHEMA,
        "method": method.name,
        "hyperparameters": method.hyperparameters,
        "provenance": provenance,
        "state_dict": method.state_dict(),
        "training": state,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise TrainError(
            f"checkpoint {path}: cannot be written ({error.strerror}); choose another --out"
        ) from error


def load_checkpoint(path: str | Path) -> tuple[Method, dict[str, str], dict[str, Any] | None]:
    """The method in eval mode, its provenance and its resumable state. Runs no code from the file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["schema"] != CHECKPOINT_SCHEMA:
            raise KeyError(f"schema {content['schema']!r}")
        method = create(content["method"], content["hyperparameters"])
        method.load_state_dict(content["state_dict"])
        provenance, training = content["provenance"], content["training"]
    except FileNotFoundError:
        raise TrainError(
            f"checkpoint {path}: there is no such file; train one with python -m train.fit"
        ) from None
    except TrainError:
        raise
    except (
        Exception
    ) as error:  # a foreign file fails in many ways, and each means the same to the user
        first_line = (
            str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        )
        raise TrainError(
            f"checkpoint {path}: is not one of this version ({first_line}); train it again with python -m train.fit"
        ) from error
    return method.eval(), provenance, training


@torch.inference_mode()
def evaluate(
    method: nn.Module, images: Sequence[Image], progress: Progress | None = None
) -> tuple[Any, Any]:
    """Scores float32 [n] and maps float32 [n, H, W] of prepared images, one at a time, on the module's device."""
    device = next(method.parameters()).device
    scores, maps = [], []
    for i, image in enumerate(images):
        score, heat = method(torch.from_numpy(np.asarray(image))[None].to(device))
        scores.append(score.cpu().numpy()[0])
        maps.append(heat.cpu().numpy()[0])
        if progress:
            progress("torch reference", i + 1, len(images))
    return np.array(scores, np.float32), np.array(maps, np.float32)
