"""Measuring one method, in a process of its own: what it has found is in a file at any time.

A library that crashes, and a plan whose building takes too long, then end this method alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.gpu_check.calls import Absent
from flawline.benchmarks.studies.gpu_check.stages import (
    Stage,
    Stages,
    measure_stage,
    stages_on_frames,
    stages_on_images,
)
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.benchmarks.studies.results import StudyError
from flawline.extras import missing_package
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import describe_failure, first_line
from flawline.runtime.engines import ENGINES, EngineOptions, engine_class, unusable_here
from flawline.runtime.engines.cuda import driver_missing, gpu_name
from flawline.runtime.environment import cpu_name
from flawline.runtime.files import write_atomically
from flawline.runtime.source_frame import parse_source
from flawline.train import TrainError

CPU = "cpu"
MEASURE = f"{__name__}:measure_method"
DEVICE = f"{__name__}:find_device"
# In the folder of a network, next to its bundles; written last.
FACTS = "network.json"
TORCH = "PyTorch"


@dataclass(frozen=True)
class Task:
    """What is measured: a network and the frames of its camera, as `parse_source` reads them.

    `device` is cuda or cpu. `folder` has the bundles of the network, or gets them, and `record` is
    the file for the results. After `seconds`, no further stage begins.
    """

    method: str
    backbone: str
    size: int | None
    frame: str
    device: str
    folder: str
    record: str
    seconds: float

    def asked(self) -> dict[str, Any]:
        """Return what the bundles in `folder` depend on."""
        return {"backbone": self.backbone, "size": self.size, "frame": self.frame}


@dataclass
class Record:
    """The results so far: the network, its rows, what is absent, and what is being done."""

    network: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    step: str = "starting"

    def write(self, path: Path, step: str) -> None:
        """Write all of it, with what is done next."""
        self.step = step
        write_atomically(path, json.dumps(asdict(self)).encode(), durable=False)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` has written; an empty one if it was not called yet."""
        if not path.exists():
            return cls()
        content = json.loads(path.read_text())
        content["absent"] = [Absent(*entry) for entry in content["absent"]]
        return cls(**content)


def find_device(device: str) -> dict[str, str]:
    """Return the product name of the device, or the reason why there is none, as "missing"."""
    if device == CPU:
        return {"name": cpu_name()}
    reason = driver_missing()
    return {"name": gpu_name()} if reason is None else {"missing": reason}


def measure_method(values: dict[str, Any]) -> None:
    """Measure what the values of a Task say, and write the record after every step."""
    task = Task(**values)
    deadline = time.monotonic() + task.seconds
    path = Path(task.record)
    record = Record()
    record.write(path, "making the network")
    try:
        method, record.network = _network(task)
    except Exception as error:
        record.absent.append(Absent("all", _reason(error)))
        record.write(path, "")
        return
    images, frames = [read_bundle(Path(task.folder) / name) for name in ("images", "frames")]
    spread = images.manifest.score.std
    for name, stages in _subjects(task, method, images, frames):
        record.write(path, f"opening {name}")
        try:
            with closing(stages):
                for description, stage in stages:
                    if time.monotonic() > deadline:
                        raise StudyError("out of time; give it more --minutes")
                    record.write(path, f"{name}, {stage.name}")
                    _measure(record, name, description, stage, spread)
                    record.write(path, f"{name}, after {stage.name}")
        except Exception as error:
            record.absent.append(Absent(name, _reason(error)))
    record.write(path, "")


def _measure(record: Record, name: str, description: str, stage: Stage, spread: float) -> None:
    """Add the row of a stage to the record, or the reason why it has none."""
    try:
        row = measure_stage(stage, spread)
    except Exception as error:
        record.absent.append(Absent(f"{name}, {stage.name}", _reason(error)))
    else:
        record.rows.append({"engine": description, **row})


def _network(task: Task) -> tuple[Any, dict[str, Any]]:
    """Return the method, None where its bundles were there already, and facts of the network."""
    folder = Path(task.folder)
    facts = folder / FACTS
    if facts.exists():
        content = json.loads(facts.read_text())
        if content["asked"] != task.asked():
            raise StudyError(
                f"{folder} has a network of {content['asked']}; give another --networks folder"
            )
        return None, content["network"]
    if find_spec("torch") is None:
        raise TrainError(f"making a network {missing_package('torch')}")
    from flawline.benchmarks.studies.gpu_check.networks import make_network

    options = NetworkOptions(task.method, task.backbone, task.size, "random", None, seed=0)
    method, network = make_network(options, parse_source(task.frame), folder)
    content = {"asked": task.asked(), "network": network}
    write_atomically(facts, json.dumps(content).encode(), durable=False)
    return method, network


def _subjects(
    task: Task, method: Any, images: Bundle, frames: Bundle
) -> Iterator[tuple[str, Stages]]:
    """Yield the name of everything that is measured, and its stages."""
    if method is not None:
        from flawline.benchmarks.studies.gpu_check.torch_stages import torch_stages

        for name, stages in torch_stages(method, task.device, images.golden()):
            yield f"{TORCH} {name}", stages
    for name in ENGINES:
        kind = engine_class(name)
        # On a GPU, those that compute on it; else those of the CPU.
        if kind.needs_server or kind.compiles == (task.device == CPU):
            continue
        reason = unusable_here(name)
        if reason is not None:
            yield name, _absent(reason)
            continue
        precision = kind.precisions[0]
        options = EngineOptions(precision=precision)
        yield f"{name} {precision}", stages_on_images(images, frames, name, options)
        yield f"{name} {precision} on frames", stages_on_frames(frames, name, options)


def _absent(reason: str) -> Stages:
    """Raise StudyError where the first stage is asked for."""
    raise StudyError(reason)
    yield


def _reason(error: Exception) -> str:
    """Say in one line why something was not measured."""
    # A bug of one method must not hide the results of the others; the type of the error names it.
    return describe_failure(error) or f"{type(error).__name__}: {first_line(error)}"
