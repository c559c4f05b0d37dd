"""The training loop: batches by seed, deadline, snapshots, and methods of several phases."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from oracles import assert_equal_state
from torch import nn

from flawline.train import TrainError, loop
from flawline.train.loop import Steps, batch_indices, choose_device, raise_at_deadline
from flawline.train.method import Fit

pytestmark = pytest.mark.torch


class TwoPhases(nn.Module):
    """Trains a teacher towards the seed, then a student towards the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(3, 3)
        self.student = nn.Linear(3, 3)
        for layer in (self.teacher, self.student):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def fit(self, fit: Fit) -> int:
        half = fit.steps // 2
        teacher = fit.phase("teacher")
        if not teacher.done:
            done = self._train(fit, teacher, self.teacher, half)
            if done < half:
                return done
            teacher.finish()
        return half + self._train(fit, fit.phase("student"), self.student, fit.steps - half)

    def _train(self, fit: Fit, phase: Any, layer: nn.Linear, total: int) -> int:
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
        steps = Steps(fit, phase, [optimiser], total)

        def loss_of(step: int, batch: Any) -> Any:
            generator = torch.Generator().manual_seed(fit.seed + step)
            x = torch.randn(4, 3, generator=generator)
            if layer is self.teacher:
                return (layer(x) - x.flip(1)).square().mean()
            return (layer(x) - self.teacher(x).detach()).square().mean()

        return steps.run(itertools.count(steps.start), loss_of)


class Recorder:
    """Saves deep copies, as a file does, with the weights of that moment."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.saved: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def __call__(self, state: dict[str, Any]) -> None:
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.saved.append((weights, torch_copy(state)))


def torch_copy(state: Any) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def interrupt_at(phase: str, step: int) -> Any:
    def progress(label: str, done: int, total: int) -> None:
        if (label, done) == (phase, step):
            raise KeyboardInterrupt

    return progress


def test_a_deadline_in_the_first_phase_leaves_the_second_one_missing() -> None:
    phases = ("teacher", "student")
    cut = Fit([], 11, 5, deadline=0.0)
    assert TwoPhases().fit(cut) == 1
    assert cut.missing(phases) == ("student",)
    later = Fit(
        [], 11, 5, deadline=0.0, state={"phase": "", "state": None, "finished": ["teacher"]}
    )
    assert TwoPhases().fit(later) == 6
    assert later.missing(phases) == ()


@pytest.mark.parametrize(("phase", "step"), [("teacher", 2), ("student", 1), ("student", 4)])
def test_each_phase_resumes_exactly(phase: str, step: int) -> None:
    whole = TwoPhases()
    assert whole.fit(Fit([], 11, 5)) == 11
    part = TwoPhases()
    recorder = Recorder(part)
    with pytest.raises(KeyboardInterrupt):
        part.fit(Fit([], 11, 5, progress=interrupt_at(phase, step), save=recorder))
    weights, state = recorder.saved[-1]
    assert state["phase"] == phase
    assert state["state"]["step"] == step
    assert state["finished"] == ([] if phase == "teacher" else ["teacher"])
    resumed = TwoPhases()
    resumed.load_state_dict(weights)
    assert resumed.fit(Fit([], 11, 5, state=state)) == 11
    assert_equal_state(resumed, whole)


def test_a_finished_phase_is_saved_and_not_repeated() -> None:
    model = TwoPhases()
    recorder = Recorder(model)
    model.fit(Fit([], 10, 5, save=recorder))
    weights, state = recorder.saved[0]
    assert state == {"phase": "", "state": None, "finished": ["teacher"], "facts": {}}
    resumed = TwoPhases()
    resumed.load_state_dict(weights)
    labels: set[str] = set()
    resumed.fit(Fit([], 10, 5, progress=lambda label, *_: labels.add(label), state=state))
    assert labels == {"student"}
    assert_equal_state(resumed, model)


def test_an_interrupt_in_the_middle_of_an_update_saves_nothing() -> None:
    model = nn.Linear(2, 2)
    fit = Fit([], 10)
    fit.save = lambda state: pytest.fail("a snapshot of half an update was saved")
    steps = Steps(fit, fit.phase("training"), [torch.optim.SGD(model.parameters(), 0.1)], 10)
    calls = itertools.count()

    def after() -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.run(itertools.count(), lambda *_: model.weight.sum(), after)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverges_ends_without_a_snapshot(value: float) -> None:
    model = nn.Linear(2, 2)
    fit = Fit([], 10)
    fit.save = lambda state: pytest.fail("weights that diverged were saved")
    steps = Steps(fit, fit.phase("training"), [torch.optim.SGD(model.parameters(), 0.1)], 10)

    def loss_of(step: int, batch: Any) -> Any:
        return model.weight.sum() * (value if step == 3 else 1.0)

    with pytest.raises(TrainError, match="the loss of step 4 is not finite; try another --seed"):
        steps.run(itertools.count(), loss_of)


def test_the_deadline_leaves_at_least_one_step_and_saves_it() -> None:
    model = nn.Linear(2, 2)
    saved: list[Any] = []
    fit = Fit([], 1000, deadline=time.monotonic(), save=saved.append)
    steps = Steps(fit, fit.phase("training"), [torch.optim.SGD(model.parameters(), 0.1)], 1000)
    assert steps.run(itertools.count(), lambda *_: model.weight.sum()) == 1
    assert [state["state"]["step"] for state in saved] == [1]


def test_a_snapshot_is_saved_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    model = nn.Linear(2, 2)
    saved: list[Any] = []
    fit = Fit([], 3, save=saved.append)
    steps = Steps(fit, fit.phase("training"), [torch.optim.SGD(model.parameters(), 0.1)], 3)
    assert steps.run(itertools.count(), lambda *_: model.weight.sum()) == 3
    assert [state["state"]["step"] for state in saved] == [1, 2, 3]


def test_batches_are_a_function_of_the_seed_and_continue_anywhere() -> None:
    batches = [tuple(b) for b in itertools.islice(batch_indices(10, 4, 7, 0), 9)]
    assert [len(batch) for batch in batches[:3]] == [4, 4, 2]
    for epoch in range(3):
        images = np.concatenate(batches[3 * epoch : 3 * epoch + 3])
        assert sorted(images) == list(range(10))
    assert batches[:3] != batches[3:6]
    for start in (1, 3, 7):
        continued = itertools.islice(batch_indices(10, 4, 7, start), 9 - start)
        assert [tuple(batch) for batch in continued] == batches[start:]
    assert tuple(next(batch_indices(10, 4, 8, 0))) != batches[0]


def test_a_method_of_one_pass_reports_the_deadline() -> None:
    reported: list[tuple[str, int, int]] = []
    fit = Fit([], 1, deadline=0.0, progress=lambda *now: reported.append(now))
    progress = raise_at_deadline(fit, "padim")
    progress("features", 4, 4)
    message = r"--max-minutes ended at features 1 of 4, and padim is fitted.*allow more minutes"
    with pytest.raises(TrainError, match=message):
        progress("features", 1, 4)
    assert reported == [("features", 4, 4), ("features", 1, 4)]


def test_a_device_that_is_not_there_is_one_line() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "rubbish"):
        with pytest.raises(TrainError, match=rf"--device {name}: .*; use --device cpu"):
            choose_device(name)
