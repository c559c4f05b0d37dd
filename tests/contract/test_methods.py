"""What every listed method must do, over METHODS: a method that is listed is tested."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import re
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import board_images, exported, random_images
from oracles import TOLERANCES, assert_equal_state, assert_fused_equals_literal
from rounding import RoundingEvaluator

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.engines import open_reference
from flawline.runtime.good_images.out_of_fold import OutOfFold
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry
from flawline.runtime.precisions import islands_of
from flawline.runtime.teaching import TEACHERS
from flawline.runtime.teaching.exempting_graph import exempting_graph
from flawline.train import METHODS, TrainError
from flawline.train.backbones import BACKBONES
from flawline.train.blocks.fused import fp32_islands
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.fit import add_method_arguments, add_training_arguments
from flawline.train.fold_training import FoldTraining, SharedFeatures, plan_parts
from flawline.train.judging import evaluate
from flawline.train.method import Fit, Method, Phase, flag_fields, resolve_method
from flawline.train.recipe import Recipe
from flawline.train.tuning_sets import TUNING_SETS

pytestmark = pytest.mark.torch
SMALLEST_SIZE = 64
IMAGES = 6
STEPS = 4
# Nodes that an engine executes slowly or not at all; each has a cheaper exact form.
FORBIDDEN_NODES = {
    "Unfold",
    "Shape",
    "Range",
    "TopK",
    "NonZero",
    "Loop",
    "If",
    "Einsum",
    "ScatterND",
}


def small_settings(kind: type[Method]) -> Any:
    """The default settings of a method at the smallest size that it accepts."""
    settings = kind.settings_for(kind.default_backbone)
    size = max(SMALLEST_SIZE, kind.smallest_size)
    return dataclasses.replace(settings, geometry=Geometry("stretch", size, size))


def new_method(kind: type[Method], images: Any, global_seed: int = 0) -> Method:
    """A method before `fit`; its initial values may depend on torch's global generator."""
    torch.manual_seed(global_seed)
    method = kind(small_settings(kind))
    method.load_weights("random", 0, images)
    return method


def steps_of(kind: type[Method]) -> int:
    return min(kind.steps(small_settings(kind), IMAGES, None) or 1, STEPS)


@pytest.fixture(scope="module", params=METHODS)
def kind(request: pytest.FixtureRequest) -> type[Method]:
    return resolve_method(request.param)


@pytest.fixture(scope="module")
def good(kind: type[Method]) -> list[Any]:
    return board_images(small_settings(kind).geometry.height, IMAGES)


@pytest.fixture(scope="module")
def unfitted(kind: type[Method], good: list[Any]) -> Method:
    """A method before `fit`; tests must copy it."""
    return new_method(kind, good)


class RecordedFit(Fit):
    """A record that remembers which phases were begun, and all reports of work by their label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.phases: list[str] = []
        self.reports: dict[str, list[tuple[int, int]]] = {}
        self.progress = self._report

    def phase(self, name: str) -> Phase:
        self.phases.append(name)
        return super().phase(name)

    def _report(self, label: str, done: int, total: int) -> None:
        self.reports.setdefault(label, []).append((done, total))


@pytest.fixture(scope="module")
def whole_fit(kind: type[Method], unfitted: Method, good: list[Any]) -> tuple[Method, RecordedFit]:
    """A method after a short `fit` with seed 3, and its record; tests must not change them."""
    method = copy.deepcopy(unfitted)
    steps = steps_of(kind)
    record = RecordedFit(good, steps, 3)
    assert method.fit(record) == steps
    return method, record


@pytest.fixture(scope="module")
def fitted(whole_fit: tuple[Method, RecordedFit]) -> Method:
    """The method of `whole_fit`."""
    return whole_fit[0]


@pytest.fixture(scope="module")
def graph(fitted: Method) -> bytes:
    """The exported FP32 graph; no warning may be raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return exported(fitted)


def judged_images(good: list[Any]) -> Any:
    """Images uint8 [4, H, W, 3] that are good, noise, all black and all white."""
    size = len(good[0])
    noise = random_images(size, 1)[0].numpy()
    return np.stack([good[0], noise, np.zeros_like(noise), np.full_like(noise, 255)])


def map_size(method: Method) -> tuple[int, int]:
    """Height and width of the maps; (0, 0) of a method without."""
    return method.settings.size if "map" in method.outputs else (0, 0)


# ---------------------------------------------------------------- interface


def test_the_name_is_the_listed_one(kind: type[Method]) -> None:
    assert resolve_method(kind.name) is kind


def test_the_sets_that_it_was_tuned_on_are_its_own_statement(kind: type[Method]) -> None:
    """A method that derives from another one must not inherit its sets: it has more settings."""
    assert "tuned_on" in vars(kind)
    assert set(kind.tuned_on) <= set(TUNING_SETS)
    assert len(set(kind.tuned_on)) == len(kind.tuned_on)


def test_a_method_that_can_be_taught_has_a_teacher(fitted: Method) -> None:
    """`tests/contract/test_teachers.py` compares the two."""
    assert (fitted.teaching() is not None) == (fitted.name in TEACHERS)


def test_score_and_map_have_the_signature(fitted: Method, good: list[Any]) -> None:
    with torch.inference_mode():
        score, anomaly_map = fitted(torch.from_numpy(np.stack(good[:3])))
    assert score.shape == (3,)
    assert anomaly_map.shape == (3, *map_size(fitted))
    assert score.dtype == anomaly_map.dtype == torch.float32
    assert torch.isfinite(score).all()
    assert torch.isfinite(anomaly_map).all()


def test_steps_follow_epochs_and_images(kind: type[Method]) -> None:
    settings = kind.settings_for(kind.default_backbone)
    assert 1 <= kind.images_used(settings, 100) <= 100
    cases = ((100, None), (100, 1), (100, 3), (1000, 1))
    steps = [kind.steps(settings, images, epochs) for images, epochs in cases]
    if None in steps:
        assert steps == [None] * len(cases)  # a closed form
        return
    default, one, three, many = steps
    assert default >= 1
    assert 1 <= one <= three
    assert one <= many


def test_every_flag_has_help_and_parses(kind: type[Method]) -> None:
    """No flag collides with those of training, and the default of a field is a valid value."""
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    add_method_arguments(parser, kind.name)
    settings = kind.settings_for(kind.default_backbone)
    for field in flag_fields(kind.Settings):
        assert field.metadata["help"]
        flag = "--" + field.name.replace("_", "-")
        assert flag in parser.format_help()
        value = getattr(settings, field.name)
        if value is not None:
            args = parser.parse_args([flag, str(value)])
            assert getattr(args, field.name) == value


def test_every_setting_has_help(kind: type[Method]) -> None:
    for field in dataclasses.fields(kind.Settings):
        if field.name not in ("backbone", "geometry"):
            assert field.metadata["help"], field.name


def test_a_size_below_the_smallest_is_refused(kind: type[Method]) -> None:
    if kind.smallest_size <= 32:
        pytest.skip("no image of this size can be described")
    settings = dataclasses.replace(small_settings(kind), geometry=Geometry("stretch", 32, 32))
    with pytest.raises(TrainError, match="--size"):
        kind(settings)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_is_taken_or_refused_in_one_line(kind: type[Method], backbone: str) -> None:
    """Without --size, so that no message may say to leave it out."""
    settings = kind.settings_for(backbone)
    message = ""
    try:
        kind.steps(settings, 20, None)
        with torch.device("meta"):
            kind(settings)
    except TrainError as error:
        message = str(error)
    assert "\n" not in message
    assert "--size" not in message


# ---------------------------------------------------------------- training


def test_fit_is_a_function_of_the_seed(kind: type[Method], fitted: Method, good: list[Any]) -> None:
    """Neither the global generators nor the values before `fit` have an influence."""
    again = new_method(kind, good, global_seed=77)
    np.random.seed(77)  # noqa: NPY002
    again.fit(Fit(good, steps_of(kind), 3))
    assert_equal_state(again, fitted)


def test_the_named_backbone_is_one_of_its_backbones(unfitted: Method) -> None:
    names = [backbone.name for backbone in unfitted.backbones().values()]
    assert set(names) <= set(BACKBONES)
    assert unfitted.settings.backbone == (names[0] if names else "")


def test_backbones_stay_in_eval_mode_and_frozen(unfitted: Method) -> None:
    method = copy.deepcopy(unfitted).train()
    assert method.training
    for backbone in method.backbones().values():
        assert not any(module.training for module in backbone.modules())
        assert not any(p.requires_grad for p in backbone.parameters())


def test_fit_does_not_change_the_backbones(unfitted: Method, fitted: Method) -> None:
    before = unfitted.backbones()
    after = fitted.backbones()
    assert before.keys() == after.keys()
    for name, backbone in after.items():
        assert_equal_state(before[name], backbone)
        assert not any(p.requires_grad for p in backbone.parameters())


def test_device_and_type_are_those_of_the_tensors(unfitted: Method) -> None:
    assert unfitted.device == torch.device("cpu")
    assert unfitted.dtype == torch.float32
    assert copy.deepcopy(unfitted).double().dtype == torch.float64
    assert copy.deepcopy(unfitted).to("meta").device == torch.device("meta")


def test_an_interrupted_fit_resumes_exactly(
    kind: type[Method],
    unfitted: Method,
    whole_fit: tuple[Method, RecordedFit],
    good: list[Any],
    tmp_path: Path,
) -> None:
    """Interrupted in the middle of every work and resumed from the file, fit ends the same."""
    fitted, whole = whole_fit
    steps = steps_of(kind)
    method = copy.deepcopy(unfitted)
    state = None
    saved_phases = set()
    path = tmp_path / "unfinished.pt"
    for label in whole.reports:
        interrupt(method, label, Fit(good, steps, 3, state=state), path)
        method = copy.deepcopy(unfitted)
        if path.exists():  # without a file, the next run begins again
            method, _, state, *_ = load_checkpoint(path)
            assert state is not None
            saved_phases.update((state["phase"], *state["finished"]))
        torch.manual_seed(77)  # another process has other global generators
    resumed = Fit(good, steps, 3, state=state)
    assert method.fit(resumed) == steps
    assert_equal_state(method, fitted)
    assert resumed.notes == whole.notes
    assert resumed.facts == whole.facts
    assert set(whole.phases) <= saved_phases


def interrupt(method: Method, label: str, fit: Fit, path: Path) -> None:
    """Fit until the middle of the work `label`, saving to `path`."""

    def stop(current: str, done: int, total: int) -> None:
        if current == label and done >= max(1, total // 2):
            raise KeyboardInterrupt

    def save(state: dict[str, Any]) -> None:
        save_checkpoint(path, method, {}, state)

    with pytest.raises(KeyboardInterrupt):
        method.fit(dataclasses.replace(fit, progress=stop, save=save))


def test_a_deadline_ends_training_or_is_an_error(unfitted: Method, good: list[Any]) -> None:
    """A method that trains in steps does one and saves its state; others say what to do."""
    method = copy.deepcopy(unfitted)
    states: list[Any] = []
    record = Fit(good, 10_000, 3, deadline=time.monotonic(), save=states.append)
    message = ""
    done = 0
    try:
        done = method.fit(record)
    except TrainError as error:
        message = str(error)
    if message:
        assert "--max-minutes" in message
        assert not states
    elif done < record.steps:
        assert done >= 1
        assert states
        assert not method.training
    else:
        assert done == record.steps


def test_folds_score_every_image_as_a_training_of_its_own_would(
    kind: type[Method], unfitted: Method, good: list[Any], tmp_path: Path
) -> None:
    """The trainings of the folds share the features of the images, which must change nothing."""
    steps = None
    if kind.steps(small_settings(kind), IMAGES, None) is not None:
        steps = 1
    recipe = Recipe(kind.name, tmp_path, small_settings(kind), steps=steps, seed=3, device="cpu")
    paths = [Path(f"{index}.png") for index in range(IMAGES)]
    training = FoldTraining(
        recipe=recipe,
        model=unfitted,
        device=torch.device("cpu"),
        images=good,
        graph_input=GraphInput(unfitted.geometry),
        features=SharedFeatures(),
        unfinished=tmp_path / "fold.pt",
        provenance={},
    )
    records: list[OutOfFold] = []
    parts = plan_parts(recipe, paths, 2)
    record = OutOfFold(tuple(str(path) for path in paths), 2)
    assert training.run(parts, record, records.append) == 0
    assert records[-1].complete
    assert np.isfinite(records[-1].scores()).all()
    alone = copy.deepcopy(unfitted)
    alone.fit(Fit(good[IMAGES // 2 :], steps or 1, 3))
    scores, _ = evaluate(alone.eval(), good[: IMAGES // 2])
    np.testing.assert_array_equal(records[-1].scores()[: IMAGES // 2], scores)


def test_progress_counts_up_to_the_total(whole_fit: tuple[Method, RecordedFit]) -> None:
    _, record = whole_fit
    assert record.reports
    for reports in record.reports.values():
        (total,) = {total for _, total in reports}
        counts = [done for done, _ in reports]
        assert counts == sorted(set(counts))
        assert counts[0] > 0
        assert counts[-1] == total
    assert all(isinstance(note, str) and "\n" not in note for note in record.notes)


# ---------------------------------------------------------------- checkpoint


def test_a_checkpoint_contains_everything(fitted: Method, good: list[Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", fitted, {"data": "boards"})
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded.provenance == {"data": "boards"}
    assert loaded.training is None
    assert loaded.method.settings == fitted.settings
    assert not loaded.method.training
    assert_equal_state(loaded.method, fitted)
    images = torch.from_numpy(np.stack(good[:2]))
    with torch.inference_mode():
        for a, b in zip(fitted(images), loaded.method(images), strict=True):
            assert torch.equal(a, b)


# ---------------------------------------------------------------- the exported form


def test_fused_equals_literal(fitted: Method, good: list[Any]) -> None:
    """On images that are neither among those trained on nor far from them."""
    unseen = board_images(len(good[0]), IMAGES + 3)[IMAGES:]
    # Maps hardly vary after so few steps, which makes the rounding of float32 relatively large.
    tolerances = {**TOLERANCES, torch.float32: 3e-4}
    assert_fused_equals_literal(fitted, torch.from_numpy(np.stack(unseen)), tolerances=tolerances)


def test_a_graph_without_exempted_patches_is_as_before(
    fitted: Method, graph: bytes, good: list[Any]
) -> None:
    """False rejects can be added to it on a box; see `tests/runtime/test_exempting.py`."""
    if not fitted.settings.backbone:
        pytest.skip("without a backbone")
    exempting = exempting_graph(graph, fitted.settings.size[0])
    if exempting is None:
        pytest.skip("its score does not come from values of positions")
    height, width = exempting.value_shape[-2:]
    assert height * fitted.settings.size[1] == width * fitted.settings.size[0]
    images = judged_images(good)
    results = []
    for model in (graph, exempting.with_constants({})):
        with closing(open_reference(model, map_size(fitted))) as engine:
            results.append([values.copy() for values in engine(images)])
    for before, after in zip(*results, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_fused_leaves_the_method_as_it_is(fitted: Method) -> None:
    before = copy.deepcopy(fitted)
    assert not fitted.fused().training
    assert_equal_state(before, fitted)
    assert not hasattr(fitted, "keep_fp32")


def test_the_graph_gives_the_same_for_any_batch(
    fitted: Method, graph: bytes, good: list[Any]
) -> None:
    images = judged_images(good)
    engine = open_reference(graph, map_size(fitted), threads=1)
    with torch.inference_mode():
        score, anomaly_map = fitted(torch.from_numpy(images))
    spread = float((anomaly_map if "map" in fitted.outputs else score).std())
    for batch in (1, len(images)):
        got_score, got_map = engine(images[:batch])
        np.testing.assert_allclose(got_score, score[:batch], rtol=1e-3, atol=1e-3 * spread)
        np.testing.assert_allclose(got_map, anomaly_map[:batch], rtol=1e-3, atol=1e-3 * spread)


def test_the_graph_is_lean(graph: bytes) -> None:
    nodes = onnx.load_model_from_string(graph).graph.node
    readers = [node.op_type for node in nodes if "image" in node.input]
    assert readers == ["Cast"]  # TensorRT reads uint8 into no other node
    assert not FORBIDDEN_NODES & set(node_types(graph))


def test_every_fp32_mark_is_an_island_of_the_graph(fitted: Method, graph: bytes) -> None:
    islands = fp32_islands(fitted.fused())
    assert islands, "squares, sums over many terms and exponentials need fp32() in the fused form"
    names = [node.name for node in onnx.load_model_from_string(graph).graph.node]
    for island in islands:
        assert any(islands_of(name, [island]) for name in names), island
        # A module that is called again gets a number behind its name and would be no island then.
        again = re.compile(re.escape(island) + r"_\d+/")
        assert not any(again.match(name) for name in names), f"{island} is called more than once"


def test_fp16_is_finite_on_any_image(fitted: Method, graph: bytes, good: list[Any]) -> None:
    half = RoundingEvaluator(to_fp16(graph, fp32_islands(fitted.fused())))
    results = half(image=judged_images(good))
    for name in fitted.outputs:
        assert np.isfinite(results[name]).all()


def test_a_graph_without_map_gives_the_same_score(
    fitted: Method, graph: bytes, good: list[Any]
) -> None:
    short = onnx_from_module(fitted.fused(), fitted.geometry, ("score",))
    assert sum(node_types(short).values()) <= sum(node_types(graph).values())
    scores = []
    for model, size in ((graph, map_size(fitted)), (short, (0, 0))):
        engine = open_reference(model, size, threads=1)
        scores.append(engine(np.stack(good[:2]))[0].copy())
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)


@pytest.mark.alone
def test_the_current_builder_of_tensorrt_takes_it_in_fp16(
    unfitted: Method, good: list[Any], tmp_path: Path
) -> None:
    """NVIDIA's own parser and builder, which need no GPU: convolutions are HALF, islands FLOAT."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the rtx extra")
    from flawline.runtime.engines.tensorrt.build import parse

    method = copy.deepcopy(unfitted)
    method.fit(Fit(good, 1, 3))
    islands = fp32_islands(method.fused())
    path = tmp_path / "model.fp16.onnx"
    path.write_bytes(to_fp16(exported(method), islands))
    builder, network, parser = parse(trt, path.read_bytes(), path, typed=True)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    halves = set()
    in_islands = set()
    arithmetic = (
        trt.LayerType.ELEMENTWISE,
        trt.LayerType.REDUCE,
        trt.LayerType.MATRIX_MULTIPLY,
        trt.LayerType.UNARY,
    )
    for layer in layers:
        if islands_of(layer.name, islands):
            if layer.type in arithmetic:
                in_islands.add(layer.get_output(0).dtype)
        elif layer.type == trt.LayerType.CONVOLUTION:
            halves.add(layer.get_output(0).dtype)
    assert halves == {trt.float16}
    assert in_islands == {trt.float32}
    plan = builder.build_serialized_network(network, _config(trt, builder, network))
    assert plan is not None
    assert plan.nbytes > 0.9 * path.stat().st_size  # it contains the weights
    del parser  # it owns weights of the network, so it must live until here


def _config(trt: Any, builder: Any, network: Any) -> Any:
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("image", *((batch, *shape) for batch in (1, 1, 4)))
    config.add_optimization_profile(profile)
    return config
