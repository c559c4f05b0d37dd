"""Checkpoints: a method, its settings, provenance and resumable state in a file of data only."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flawline.commands import command_line, program_of
from flawline.runtime.files import write_file
from flawline.runtime.fixture import Fixture, fixture_from_json
from flawline.runtime.good_images.out_of_fold import (
    OutOfFold,
    out_of_fold_from_json,
    out_of_fold_to_json,
)
from flawline.runtime.image import Geometry
from flawline.runtime.inspected_area import InspectedArea, area_from_json
from flawline.runtime.source_images import SourceSizes, sizes_from_json, sizes_to_json
from flawline.runtime.tiles import Tiling, tiling_from_json
from flawline.runtime.training_length import TrainingLength, length_from_json, length_to_json
from flawline.train import TrainError
from flawline.train.method import Method, resolve_method

SCHEMA = 2
# That of checkpoints with tiles, an inspected area or a fixture.
FRAMES_SCHEMA = 3
# That of checkpoints with excluded images.
EXCLUDED_SCHEMA = 4
# Schema 1 calls the settings `hyperparameters`, and has no phases. The attribute `backbone` of the
# methods, whose name begins those of its tensors, was called `trunk` there.  # style: old name
OLDEST_SCHEMA = 1
OLD_BACKBONE = "trunk."  # style: old name


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    `training` is None if the training was finished. `trained_on` are the content hashes of the
    training images; it is empty in checkpoints of older versions. These lack `length` and
    `source_sizes` too. `missing_phases` are the phases that a training cut short did not begin.
    `out_of_fold` are scores of the training images; None if other images are held out. `tiles`,
    `inspected_area` and `fixture` are those of a manifest. `excluded` are the content hashes of
    good images that were left out of the training.
    """

    method: Method
    provenance: dict[str, str]
    training: dict[str, Any] | None = None
    trained_on: tuple[str, ...] = ()
    length: TrainingLength | None = None
    missing_phases: tuple[str, ...] = ()
    source_sizes: SourceSizes | None = None
    out_of_fold: OutOfFold | None = None
    tiles: Tiling | None = None
    inspected_area: InspectedArea | None = None
    fixture: Fixture | None = None
    excluded: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """False if the training was cut short; older checkpoints count as finished."""
        if self.training is not None:
            return False
        return self.length is None or self.length.finished


def save_checkpoint(
    path: Path,
    method: Method,
    provenance: dict[str, str],
    training: dict[str, Any] | None = None,
    trained_on: Sequence[str] = (),
    length: TrainingLength | None = None,
    missing_phases: Sequence[str] = (),
    source_sizes: SourceSizes | None = None,
    out_of_fold: OutOfFold | None = None,
    tiles: Tiling | None = None,
    inspected_area: InspectedArea | None = None,
    fixture: Fixture | None = None,
    excluded: Sequence[str] = (),
) -> None:
    """Write a checkpoint atomically.

    `training` is what `fit` needs to resume, `trained_on` the content hashes of the training
    images; the others are as in `Checkpoint`. Raises TrainError for a path that cannot be written.
    """
    content = {
        "schema": SCHEMA,
        "method": method.name,
        "settings": dataclasses.asdict(method.settings),
        "provenance": provenance,
        "state_dict": method.state_dict(),
        "training": training,
        "trained_on": list(trained_on),
        "length": length_to_json(length),
        "missing_phases": list(missing_phases),
        "source_sizes": sizes_to_json(source_sizes),
        "out_of_fold": out_of_fold_to_json(out_of_fold),
    }
    # Older versions would take no notice of these.
    if tiles is not None:
        content.update(schema=FRAMES_SCHEMA, tiles=tiles.to_json())
    if inspected_area is not None:
        content.update(schema=FRAMES_SCHEMA, inspected_area=inspected_area.to_json())
    if fixture is not None:
        content.update(schema=FRAMES_SCHEMA, fixture=fixture.to_json())
    if excluded:
        content.update(schema=EXCLUDED_SCHEMA, excluded=list(excluded))
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue(), TrainError, "--out")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of this or an older schema; the method is in eval mode.

    Runs no code from the file. Raises TrainError for a file that is missing, foreign or damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _parse(content)
    except FileNotFoundError:
        raise TrainError(
            f"checkpoint {path}: there is no such file; train one: "
            f"{command_line('train', '--data', 'DATA', '--out', path)}"
        ) from None
    except TrainError:
        raise
    except pickle.UnpicklingError as error:
        # torch's message is about the safety of a load that Flawline never does.
        raise TrainError(
            f"checkpoint {path}: is no checkpoint, or is damaged; give the file that "
            f"{program_of('train')} wrote"
        ) from error
    except Exception as error:
        # A foreign file can fail in many ways, and each means the same to the user.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainError(
            f"checkpoint {path}: is not one of this version ({lines[0][:120]}); "
            f"train it again: {command_line('train', '--data', 'DATA', '--out', path)}"
        ) from error


def _parse(content: dict[str, Any]) -> Checkpoint:
    schema = content["schema"]
    if schema not in (OLDEST_SCHEMA, SCHEMA, FRAMES_SCHEMA, EXCLUDED_SCHEMA):
        raise KeyError(f"schema {schema!r}")
    if schema == OLDEST_SCHEMA:
        content = _upgraded(content)
    kind = resolve_method(content["method"])
    fields = dict(content["settings"])
    fields["geometry"] = Geometry(**fields["geometry"])
    method = kind(kind.Settings(**fields))
    method.load_state_dict(content["state_dict"])
    return Checkpoint(
        method=method.eval(),
        provenance=content["provenance"],
        training=content["training"],
        trained_on=tuple(content.get("trained_on", ())),
        length=length_from_json(content.get("length")),
        missing_phases=tuple(content.get("missing_phases", ())),
        source_sizes=sizes_from_json(content.get("source_sizes")),
        out_of_fold=out_of_fold_from_json(content.get("out_of_fold")),
        tiles=tiling_from_json(content.get("tiles")),
        inspected_area=area_from_json(content.get("inspected_area")),
        fixture=fixture_from_json(content.get("fixture")),
        excluded=tuple(content.get("excluded", ())),
    )


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a checkpoint of schema 1."""
    state_dict = {}
    for name, value in content["state_dict"].items():
        if name.startswith(OLD_BACKBONE):
            name = "backbone." + name.removeprefix(OLD_BACKBONE)
        state_dict[name] = value
    training = content["training"]
    if training is not None:
        state = dict(training)
        if "optimiser" in state:
            state["optimisers"] = [state.pop("optimiser")]
        training = {"phase": "training", "state": state, "finished": []}
    return {
        "method": content["method"],
        "settings": content["hyperparameters"],
        "provenance": content["provenance"],
        "state_dict": state_dict,
        "training": training,
    }
