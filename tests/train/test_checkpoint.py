"""Checkpoints: files of data only, older schemas, and foreign files."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import small_simplenet
from oracles import assert_equal_state

from flawline.train import TrainError
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.method import resolve_method

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("optimisers", ["optimiser", "optimisers"])
def test_schema_1_is_read(optimisers: str, tmp_path: Path) -> None:
    """It calls the settings hyperparameters and the backbone otherwise, and knows no phases."""
    model = small_simplenet()
    state_dict = {}
    for name, value in model.state_dict().items():
        state_dict[name.replace("backbone.", "trunk.")] = value  # style: old name
    saved = {"optimiser": {"a": 1}, "optimisers": [{"a": 1}]}[optimisers]
    content = {
        "schema": 1,
        "method": "simplenet",
        "hyperparameters": dataclasses.asdict(model.settings),
        "provenance": {"data": "x"},
        "state_dict": state_dict,
        "training": {"step": 4, optimisers: saved, "average": {}},
    }
    torch.save(content, tmp_path / "c.pt")
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded.method.settings == model.settings
    assert_equal_state(loaded.method, model)
    state = {"step": 4, "optimisers": [{"a": 1}], "average": {}}
    assert loaded.training == {"phase": "training", "state": state, "finished": []}
    content["training"] = None
    torch.save(content, tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt").training is None


def test_a_training_state_is_read_as_it_was_saved(tmp_path: Path) -> None:
    model = small_simplenet()
    state: dict[str, Any] = {"phase": "training", "state": {"step": 3}, "finished": ["teacher"]}
    save_checkpoint(tmp_path / "c.pt", model, {"a": "b"}, state)
    method, provenance, training, *_ = load_checkpoint(tmp_path / "c.pt")
    assert method.settings == model.settings
    assert provenance == {"a": "b"}
    assert training == state


def test_a_foreign_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    for data in (pickle.dumps({"schema": 1}), b"", b"rubbish"):
        path.write_bytes(data)
        with pytest.raises(TrainError, match="not one of this version"):
            load_checkpoint(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    message = "is no checkpoint, or is damaged; give the file that flawline train wrote$"
    with pytest.raises(TrainError, match=message):
        load_checkpoint(path)
    torch.save({"schema": 99}, path)
    with pytest.raises(TrainError, match="schema 99"):
        load_checkpoint(path)
    with pytest.raises(TrainError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"schema": 2, "method": Harmful()}, tmp_path / "c.pt")
    with pytest.raises(TrainError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "harm").exists()


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"cannot be written .*choose another --out"):
        save_checkpoint(tmp_path / "file" / "c.pt", small_simplenet(), {})


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(TrainError, match=r"method 'complexnet' is unknown.*; known: .*simplenet"):
        resolve_method("complexnet")
