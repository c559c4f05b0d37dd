"""The plan of a sweep, its files, and which of its cells are trained and measured."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_tiny_bundle

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks.sweep import plan as plans
from flawline.benchmarks.sweep import store as stores
from flawline.benchmarks.sweep.__main__ import main
from flawline.benchmarks.sweep.flags import parse_flags
from flawline.benchmarks.sweep.measure_cell import has_rows, machine_of_rows
from flawline.benchmarks.sweep.plan import (
    Cell,
    Plan,
    cells_of,
    choices_of,
    complete,
    precisions_of,
    read_plan,
    write_plan,
)
from flawline.benchmarks.sweep.progress import Rest
from flawline.benchmarks.sweep.store import Store, SweepError, only_one_sweep, write_json
from flawline.benchmarks.sweep.train_cell import (
    FAILED,
    LEFT,
    TRAINED,
    Outcome,
    is_trained,
    lacks_graphs,
)
from flawline.benchmarks.sweep.training import train_cells
from flawline.runtime.engines import EngineError
from flawline.train import METHODS, TrainError
from flawline.train.data import open_data
from flawline.train.data.split import samples_hash

pytestmark = pytest.mark.torch
# Of rows.
IDENTITY = {"bundle_id": "b", "test_sha256": "t"}


@pytest.fixture
def data(tmp_path: Path) -> str:
    counts = {"train/good": 3, "test/good": 1, "test/square": 1}
    return str(write_squares(tmp_path / "squares", counts))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sweep")


def small_plan(data: str, **changes: object) -> Plan:
    plan = Plan(data=(data,), methods=("padim",), weights="random")
    return complete(replace(plan, **changes))  # type: ignore[arg-type]


class FakeTrainings:
    """Writes a tiny bundle instead of training, and fails for some seeds."""

    def __init__(self, store: Store, failing: tuple[int, ...] = ()) -> None:
        self.store = store
        self.failing = failing
        self.refused: dict[str, str] = {}
        self.trained: list[str] = []

    def __call__(self, cell: Cell, deadline: float | None) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(self._outcome(cell, deadline))
        return future

    def _outcome(self, cell: Cell, deadline: float | None) -> Outcome:
        if deadline is not None and time.time() > deadline:
            return Outcome(cell.name, LEFT)
        self.trained.append(cell.name)
        if cell.seed in self.failing:
            return Outcome(cell.name, FAILED, "the disk is full")
        bundle = write_tiny_bundle(self.store.bundle(cell.name))
        facts = {"status": TRAINED, **cell.identity(), "bundle_id": bundle.short_id}
        facts |= {"weights_found": "random", "steps": 1, "minutes": 0.1, "device": "a CPU"}
        write_json(self.store.facts(cell.name), {**facts, "refused": self.refused})
        return Outcome(cell.name, TRAINED, minutes=0.1)


def train(store: Store, plan: Plan, failing: tuple[int, ...] = ()) -> tuple[list[str], Rest]:
    trainings = FakeTrainings(store, failing)
    rest = Rest()
    train_cells(store, cells_of(plan), precisions_of(plan), trainings, None, rest)
    return trainings.trained, rest


# ---------------------------------------------------------------- plan


def test_a_method_without_backbone_is_one_cell_for_all_backbones(data: str) -> None:
    methods = ("padim", "ae_ssim")
    plan = small_plan(data, methods=methods, backbones=("resnet18", "resnet34"), seeds=(0, 3))
    cells = cells_of(plan)
    assert [cell.name for cell in cells] == [
        "padim-resnet18-squares-0",
        "padim-resnet34-squares-0",
        "ae_ssim-none-squares-0",
        "padim-resnet18-squares-3",
        "padim-resnet34-squares-3",
        "ae_ssim-none-squares-3",
    ]
    # `flawline build` refuses both flags there.
    assert "--weights" not in cells[2].build_flags()
    assert "--backbone" not in cells[2].build_flags()


def test_all_leaves_out_what_the_weights_do_not_fit(
    data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # The texture weights are those of one small backbone.
    plan = small_plan(data, methods=("all",), backbones=("resnet34",), weights="texture")
    methods = [cell.method for cell in cells_of(plan)]
    assert "ae_ssim" in methods
    assert "padim" not in methods
    assert "note: left out padim resnet34: " in capsys.readouterr().err
    # One that was named is tried, and its cell says why it failed.
    named = small_plan(data, backbones=("resnet34",), weights="texture")
    assert [cell.method for cell in cells_of(named)] == ["padim"]
    every = small_plan(data, methods=("all",))
    assert [cell.method for cell in cells_of(every)] == list(METHODS)


def test_flags_are_of_single_methods(data: str) -> None:
    flags = parse_flags(["padim=--size 64 --channels 8"])
    plan = small_plan(data, methods=("padim", "patchcore"), flags=flags)
    padim, patchcore = cells_of(plan)
    assert padim.build_flags()[-4:] == ["--size", "64", "--channels", "8"]
    assert "--size" not in patchcore.build_flags()
    with pytest.raises(SweepError, match="is not METHOD="):
        parse_flags(["--size 64"])
    with pytest.raises(SweepError, match="known methods"):
        small_plan(data, flags={"pandim": "--size 64"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data x", "the sweep sets --data; use its own --data"),
        ("--size 64 --seed=3", "the sweep sets --seed; use its own --seeds"),
        ("--method stfpm", "use its own --methods"),
        ("--backbone resnet34", "use its own --backbones"),
        ("--weights texture", "use its own --weights"),
        ("--engine auto", "use its own --engines"),
        ("--precision int8", "use its own --engines"),
        ("--threads 2", "use its own --threads"),
        ("--out x", "the sweep sets --out; leave it out"),
        ("--folds 5", "the sweep sets --folds; leave it out"),
        ("--save-checkpoint x", "the sweep sets --save-checkpoint; leave it out"),
        ("--checkpoint x", "the sweep sets --checkpoint; leave it out"),
        ("--bundle x", "the sweep sets --bundle; leave it out"),
        ("--help", "the sweep sets --help; leave it out"),
        ("--sise 64", "unrecognized arguments: --sise 64 (did you mean --size?)"),
        ("--size large", "argument --size: invalid int value: 'large'"),
        ("--coreset 0.1", "--coreset is no option of padim"),
        ("--size '64", "No closing quotation; correct the quotes"),
    ],
)
def test_flags_that_no_training_takes_are_one_line_before_the_plan_is_written(
    flags: str, message: str, data: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", data, "--methods", "padim", "--flags", f"padim={flags}"]
    assert main([*words, "--weights", "random", "--out", str(store.root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'flawline sweep: --flags padim="{flags}": ')
    assert message in line
    assert not store.plan.exists()


def test_engines_are_resolved_to_precisions(data: str) -> None:
    plan = small_plan(data, engines=("openvino", "openvino:int8", "openvino:fp32"))
    found = [(choice.name, choice.options.precision) for choice in choices_of(plan)]
    assert found == [("openvino", "fp32"), ("openvino", "int8")]
    with pytest.raises(EngineError):
        small_plan(data, engines=("onyx",))
    with pytest.raises(SweepError, match="the precisions of "):
        small_plan(data, engines=("onnxruntime:int7",))


def test_wrong_plans_are_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="--data DATA or --demo"):
        complete(Plan())
    other = tmp_path / "other" / "squares"
    other.mkdir(parents=True)
    with pytest.raises(SweepError, match="another data set has the name squares"):
        complete(Plan(data=(data, str(other))))
    with pytest.raises(TrainError):
        cells_of(small_plan(data, methods=("pandim",)))


def test_the_plan_is_read_again(data: str, store: Store) -> None:
    plan = small_plan(data, seeds=(4, 5), flags={"padim": "--size 64"}, engines=("onnxruntime",))
    write_plan(store, plan, cells_of(plan))
    assert read_plan(store) == plan
    assert plans.read_cell(store, "padim-resnet18-squares-5") == cells_of(plan)[1]
    with pytest.raises(SweepError, match="has no cell"):
        plans.read_cell(store, "padim-resnet18-squares-6")


def test_an_unsuitable_data_set_does_not_become_the_plan(
    data: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", "padim", "--weights", "random", "--out", str(store.root)]
    words += ["--budget-minutes", "1e-9"]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nosuch"):
        assert main(["--data", data, str(tmp_path / name), *words]) == 2
        assert f"data {tmp_path / name}: " in capsys.readouterr().err
        assert not store.plan.exists()
    assert main(["--data", data, *words]) == 3
    assert main(["--data", str(tmp_path / "empty"), *words]) == 2
    # The plan is still that of the data set that could be opened.
    assert main(words) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": "0"}, "seeds is '0', not a list"),
        ({"seeds": [0, "1"]}, "seeds[1] is '1', not of type int"),
        ({"seeds": [True]}, "seeds[0] is True, not of type int"),
        ({"data": {}}, "data is {}, not a list"),
        ({"methods": [3]}, "methods[0] is 3, not of type str"),
        ({"weights": None}, "weights is None, not of type str"),
        ({"threads": "2"}, "threads is '2', not of type int"),
        ({"flags": {"padim": 64}}, "flags.padim is 64, not of type str"),
        ({"cells": []}, "cells is [], not an object"),
        ({"cells": {"a": {"method": "padim"}}}, "cells.a.backbone is missing"),
    ],
)
def test_a_plan_with_wrong_types_is_one_line(
    changes: dict[str, object],
    message: str,
    data: str,
    store: Store,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = small_plan(data)
    write_plan(store, plan, cells_of(plan))
    write_json(store.plan, {**json.loads(store.plan.read_text()), **changes})
    (store.root / "measured").mkdir()
    for words in (["--train-only"], ["--report-only"]):
        if words == ["--report-only"]:
            write_json(store.measured("a"), [])
        assert main(["--out", str(store.root), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert line.endswith("; correct it, or delete it and give all flags again")
    for text in ("{", "[]", "[" * 100_000):
        store.plan.write_text(text)
        assert main(["--out", str(store.root)]) == 2
        assert "is damaged" in capsys.readouterr().err


def test_a_cell_of_an_edited_plan_is_read(data: str, store: Store) -> None:
    plan = small_plan(data)
    (cell,) = cells_of(plan)
    write_plan(store, plan, [cell])
    record = json.loads(store.plan.read_text())
    record["cells"][cell.name]["comment"] = "mine"
    write_json(store.plan, record)
    assert plans.read_cell(store, cell.name) == cell


# ---------------------------------------------------------------- which cells are trained


def test_only_new_cells_are_trained(data: str, store: Store) -> None:
    plan = small_plan(data, seeds=(0,))
    assert train(store, plan)[0] == ["padim-resnet18-squares-0"]
    assert train(store, plan)[0] == []
    more = replace(plan, seeds=(0, 1))
    assert train(store, more)[0] == ["padim-resnet18-squares-1"]


def test_a_trained_cell_is_begun_for_a_graph_that_was_never_tried(data: str, store: Store) -> None:
    plan = small_plan(data)
    train(store, plan)
    # OpenVINO computes BF16 from the FP32 graph.
    assert train(store, replace(plan, engines=("onnxruntime", "openvino:bf16")))[0] == []
    with_int8 = replace(plan, engines=("openvino:int8",))
    (cell,) = cells_of(plan)
    assert lacks_graphs(store, cell, ["fp32", "int8"])
    assert train(store, with_int8)[0] == [cell.name]
    facts = json.loads(store.facts(cell.name).read_text())
    write_json(store.facts(cell.name), {**facts, "refused": {"int8": "too few images"}})
    assert train(store, with_int8)[0] == []


def test_a_cell_with_other_flags_images_or_weights_is_trained_again(
    data: str, store: Store, tmp_path: Path
) -> None:
    plan = small_plan(data)
    train(store, plan)
    assert train(store, replace(plan, flags={"padim": "--size 64"}))[0]
    assert train(store, replace(plan, weights="texture"))[0]
    # Another data set of the same name.
    moved = write_squares(tmp_path / "new" / "squares", {"train/good": 4, "test/good": 1})
    assert train(store, replace(plan, weights="texture", data=(str(moved),)))[0]


def test_a_failed_cell_is_reported_and_tried_again(
    data: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(data, seeds=(0, 1, 2))
    _trained, rest = train(store, plan, failing=(1,))
    assert rest.failed == {"padim-resnet18-squares-1": "the disk is full"}
    lines = capsys.readouterr().err
    assert "trained padim-resnet18-squares-1: failed: the disk is full" in lines
    assert " min left" in lines
    trained, rest = train(store, plan)
    assert trained == ["padim-resnet18-squares-1"]
    assert not rest.failed


def test_a_damaged_file_or_bundle_is_one_line_and_trained_again(
    data: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(data)
    (cell,) = cells_of(plan)
    train(store, plan)
    for content in ("{", "[]", '{"status": "trai'):
        store.facts(cell.name).write_text(content)
        capsys.readouterr()
        assert not is_trained(store, cell)
        (line,) = capsys.readouterr().err.splitlines()
        assert str(store.facts(cell.name)) in line
        assert "is damaged" in line
    assert train(store, plan)[0] == [cell.name]
    (store.bundle(cell.name) / "model.onnx").write_bytes(b"x")
    assert train(store, plan)[0] == [cell.name]
    assert is_trained(store, cell)


def test_facts_with_wrong_types_are_one_line_and_trained_again(
    data: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(data)
    (cell,) = cells_of(plan)
    for key, value in (("refused", []), ("minutes", "3"), ("status", 1), ("device", None)):
        train(store, plan)
        path = store.facts(cell.name)
        write_json(path, {**json.loads(path.read_text()), key: value})
        capsys.readouterr()
        assert not is_trained(store, cell)
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
        assert f"is damaged ({key} is {value!r}, not " in line
        assert train(store, plan)[0] == [cell.name]


def test_after_the_budget_no_cell_is_begun(data: str, store: Store) -> None:
    plan = small_plan(data, seeds=(0, 1))
    trainings = FakeTrainings(store)
    rest = Rest()
    train_cells(store, cells_of(plan), ["fp32"], trainings, time.time() - 1, rest)
    assert trainings.trained == []
    assert sorted(rest.left) == ["padim-resnet18-squares-0", "padim-resnet18-squares-1"]


def test_the_budget_is_in_the_exit_status(
    data: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", data, "--methods", "padim", "--weights", "random", "--jobs", "1"]
    words += ["--out", str(store.root), "--budget-minutes", "1e-9"]
    assert main(words) == 3
    lines = capsys.readouterr().err.splitlines()
    assert "left by --budget-minutes: padim-resnet18-squares-0; the same command continues" in lines
    # A bundle with other flags is none of this cell.
    FakeTrainings(store)(cells_of(small_plan(data, flags={"padim": "--size 64"}))[0], None)
    assert main(["--out", str(store.root), "--measure-only"]) == 3
    assert "not trained, and so not measured: padim-resnet18-squares-0" in capsys.readouterr().err


# ---------------------------------------------------------------- the folder


def test_two_sweeps_do_not_share_a_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LOCK_WAIT_S", 0.0)
    second = only_one_sweep(store)
    with only_one_sweep(store), pytest.raises(SweepError, match="in use by another sweep"):
        second.__enter__()
    with only_one_sweep(store):
        pass


def test_rows_of_another_kind_are_damaged(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.measured("cell")
    write_json(path, [{"a": 1}])
    assert stores.read_rows(path) == [{"a": 1}]
    wrong = ('[{"image_auroc": "0.9"}]', '[{"versions": 1}]', '[{"machine": {"gpus": {}}}]')
    for content in ("[1]", "{}", "[", "\udcff", *wrong):
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert stores.read_rows(path) == []
        assert "is damaged" in capsys.readouterr().err
    assert json.loads("[]") == stores.read_rows(store.measured("none"))


def test_test_images_and_masks_are_known_by_name_and_size(tmp_path: Path) -> None:
    counts = {"train/good": 3, "test/good": 2, "test/square": 2}
    root = write_squares(tmp_path / "squares", counts)
    seen = [samples_hash(open_data(root))]

    def changed() -> bool:
        seen.append(samples_hash(open_data(root)))
        return seen[-1] not in seen[:-1]

    (image, *_) = sorted((root / "test/square").iterdir())
    mask = root / "ground_truth/square" / f"{image.stem}_mask.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(image.read_bytes())
    assert changed()
    mask.write_bytes(mask.read_bytes() + b"1")
    assert changed()
    image.write_bytes(image.read_bytes() + b"1")
    assert changed()
    # What was good is now defective, with the same name and size.
    (root / "test/good").rename(root / "test/scratch")
    assert changed()
    mask.unlink()
    assert changed()
    image.unlink()
    assert changed()
    # The good images are not of the test, and the folder may be elsewhere.
    (root / "train/good/more.png").write_bytes(image.name.encode())
    moved = root.rename(tmp_path / "moved")
    assert samples_hash(open_data(moved)) == seen[-1]


def test_rows_with_times_count_for_the_same_threads_only() -> None:
    row = {**IDENTITY, "engine_name": "onnxruntime", "precision": "fp32", **machine_of_rows()}

    def has(wanted: int | None, **times: object) -> bool:
        plan = Plan(engines=("onnxruntime:fp32",), threads=wanted)
        return has_rows([row | times], IDENTITY, choices_of(plan))

    assert has(1, threads=1)
    assert not has(2, threads=1)
    assert not has(1, threads="all")
    assert has(None, threads="all")
    # A refusal states no threads.
    assert has(1)
    for key in IDENTITY:
        assert not has_rows([row], {**IDENTITY, key: "other"}, choices_of(Plan()))
