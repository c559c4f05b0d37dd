"""False rejects of a method that is trained in steps: their patches are exempted in its graph."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny_bundle

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import fit_method, small_simplenet
from test_teach import bundle_of, noise, scores, write

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.log import AUDIT_LOG
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import open_reference
from flawline.runtime.image import Image
from flawline.runtime.teach import main
from flawline.runtime.teaching import exempting
from flawline.runtime.teaching.bank_of_patches import PatchBank
from flawline.runtime.teaching.exempting_graph import ExemptingGraph, exempting_graph
from flawline.runtime.teaching.exempting_nodes import ISLAND

pytestmark = pytest.mark.torch
SIZE = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that was trained on noise around 120."""
    method = small_simplenet()
    fit_method(method, noise(6, 1), steps=200)
    path = tmp_path_factory.mktemp("steps") / "bundle"
    return bundle_of(method, noise(6, 2), path, trained_images=("0" * 16,))


@pytest.fixture(scope="module")
def taught(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same, with dark lines as false rejects."""
    folder = tmp_path_factory.mktemp("taught")
    rates = ["--false-alarm-rate", "0.05", "--review-rate", "0.3"]
    good = [*noise(10, 4), *lines(10, 5)]
    assert append(trained, folder, lines(4, 3), good, *rates) == 0
    return read_bundle(folder / "new")


def append(
    bundle: Bundle, folder: Path, rejected: list[Image], good: list[Image], *flags: str
) -> int:
    words = ["--append", str(write(folder / "rejected", rejected))]
    words += ["--good", str(write(folder / "good", good)), "--out", str(folder / "new")]
    return main([str(bundle.path), *words, *flags])


def lines(count: int, seed: int) -> list[Image]:
    """Noise with a wide dark line across."""
    images = noise(count, seed)
    for image in images:
        image[:, 8:56] = 0
    return images


def graph_of(bundle: Bundle) -> ExemptingGraph:
    graph = exempting_graph(bundle.read_model(), SIZE)
    assert graph is not None
    return graph


def defects() -> list[Image]:
    images = noise(3, 7)
    for image in images:
        image[20:44, 20:44] = [255, 0, 0]
    return images


def test_false_rejects_are_exempted_and_defects_are_not(trained: Bundle, taught: Bundle) -> None:
    like_rejected = lines(5, 6)
    before, after = scores(trained, like_rejected), scores(taught, like_rejected)
    assert (before > trained.calibration.threshold).all()
    assert (after < before - 1).all()
    # What the bank does not know has the same score, and is still rejected.
    for images in (defects(), noise(3, 8)):
        np.testing.assert_allclose(scores(taught, images), scores(trained, images), rtol=1e-5)
    assert (scores(taught, defects()) > taught.calibration.threshold).all()


def test_it_is_a_whole_bundle(trained: Bundle, taught: Bundle) -> None:
    manifest = taught.manifest
    exempted = len(graph_of(taught).bank.rows)
    assert manifest.provenance["exempted_patches"] == str(exempted)
    assert 1 <= exempted <= exempting.MOST_ROWS
    assert manifest.provenance["train_good_images"] == "4 false rejects appended"
    assert manifest.provenance["taught_from"] == trained.short_id
    assert manifest.fp32_islands == (*trained.manifest.fp32_islands, ISLAND)
    assert len(manifest.trained_images) == 5
    assert taught.calibration.good_images == 20
    assert taught.calibration.review is not None
    assert taught.precisions == ("fp32",)
    (entry,) = check_log(taught.path / AUDIT_LOG).entries
    facts = f"4 false rejects appended, exempted patches: {exempted}"
    assert (entry.what, entry.old) == ("teach", None)
    assert entry.note == f"taught from bundle {trained.short_id}, {facts}"


def test_the_self_test_notices_an_engine_without_exemptions(
    trained: Bundle, taught: Bundle
) -> None:
    golden = taught.golden()
    with closing(open_reference(trained.read_model(), trained.map_size)) as engine:
        before = np.array([engine(image[None])[0][0] for image in golden.images])
    assert before[-1] > golden.scores[-1] + 1
    assert golden.scores[-1] < taught.calibration.threshold


def test_pictures_of_one_part_exempt_what_another_engine_exempts(
    trained: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The distances between their patches are those of the rounding."""
    still = [image.copy() for image in lines(1, 3) * 4]
    for level, image in enumerate(still):
        image[0, 0] = level
    assert append(trained, tmp_path, still, [*noise(10, 4), *lines(10, 5)]) == 0
    assert "give pictures of different parts" in capsys.readouterr().err
    bank = graph_of(read_bundle(tmp_path / "new")).bank
    lengths = np.square(bank.rows).sum(1)
    assert bank.radii.min() > 0.9 * exempting.SMALLEST_RADIUS * lengths.max()


def test_appending_again_extends_the_bank(
    taught: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = graph_of(taught).bank
    rejected, good = noise(4, 3, 30), [*noise(10, 4), *noise(10, 5, 30)]
    limit = str(len(old.rows) + 3)
    assert append(taught, tmp_path / "a", rejected, good, "--bank-limit", limit) == 0
    assert f"exempted: {len(old.rows)} patches and 3 of" in capsys.readouterr().err
    new = read_bundle(tmp_path / "a" / "new")
    bank = graph_of(new).bank
    assert len(bank.rows) == len(old.rows) + 3
    np.testing.assert_allclose(bank.rows[:-3], old.rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bank.radii[:-3], old.radii, rtol=1e-5)
    assert bank.cap == old.cap
    assert new.manifest.fp32_islands == taught.manifest.fp32_islands
    limit = str(len(old.rows))
    assert append(taught, tmp_path / "b", rejected, good, "--bank-limit", limit) == 2
    assert f"{len(old.rows)} patches are exempted already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        append(taught, tmp_path / "c", rejected, good, "--bank-limit", "0")
    assert "--bank-limit must be at least 1" in capsys.readouterr().err


def test_thresholds_of_a_bundle_with_exemptions_are_set_again(
    taught: Bundle, tmp_path: Path
) -> None:
    good = write(tmp_path / "good", noise(10, 11))
    assert main([str(taught.path), "--source", str(good), "--out", str(tmp_path / "new")]) == 0
    new = read_bundle(tmp_path / "new")
    assert new.short_id == taught.short_id
    assert new.manifest == taught.manifest


def test_the_parts_of_a_graph_are_the_graph(taught: Bundle) -> None:
    graph = graph_of(taught)
    image = lines(1, 6)[0]
    with closing(open_reference(taught.read_model(), taught.map_size)) as engine:
        score, anomaly_map = (found.copy() for found in engine(image[None]))
    from flawline.runtime.engines.onnxruntime_cpu import open_session

    (packed,) = open_session(graph.backbone({})).run(None, {"image": image[None]})
    head = open_session(graph.head({}))
    results = head.run(None, {head.get_inputs()[0].name: packed})
    np.testing.assert_allclose(results[0], score, atol=5e-3)
    np.testing.assert_allclose(results[1], anomaly_map, atol=5e-3)
    channels, height, width = graph.feature_shape
    features, values = np.split(packed[0, :, 0, 0], [channels * height * width])
    share = graph.bank.share(features.reshape(channels, -1).T)
    assert share.max() == 1
    expected = graph.bank.lowered(values.astype(np.float64), share)
    np.testing.assert_allclose(results[2].ravel(), expected, atol=5e-3)


def test_another_engine_gives_the_same_scores(taught: Bundle) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    images = [*lines(3, 6), *defects(), *noise(2, 8)]
    with Detector(taught, "openvino") as detector:
        found = np.array([detector(image).score for image in images])
    # The self-test of the engine has passed with this tolerance.
    np.testing.assert_allclose(found, scores(taught, images), atol=taught.manifest.score_tolerance)


def test_exemptions_stay_fp32_in_fp16(taught: Bundle) -> None:
    half = to_fp16(taught.read_model(), taught.manifest.fp32_islands)
    images = [*lines(2, 6), *defects()]
    results = []
    for model in (taught.read_model(), half):
        with closing(open_reference(model, taught.map_size)) as engine:
            results.append(np.array([engine(image[None])[0][0] for image in images]))
    np.testing.assert_allclose(results[1], results[0], rtol=0.03)


def test_values_on_a_finer_grid_are_lowered_in_the_cell_of_their_patch() -> None:
    """A graph of a 4x4 level, whose values are the means of its channels, enlarged."""
    nodes = [
        onnx.helper.make_node("AveragePool", ["image"], ["level"], "/backbone/pool",
                              kernel_shape=[2, 2], strides=[2, 2]),
        onnx.helper.make_node("Resize", ["level", "", "scales"], ["wide"], "/resize"),
        onnx.helper.make_node("ReduceMean", ["wide"], ["values"], "/mean", axes=[1]),
        onnx.helper.make_node("Squeeze", ["values", "axis"], ["map"], "/squeeze"),
        onnx.helper.make_node("ReduceMax", ["map"], ["score"], "/max", axes=[1, 2], keepdims=0),
    ]  # fmt: skip
    constants = [
        onnx.numpy_helper.from_array(np.array([1, 1, 3, 3], np.float32), "scales"),
        onnx.numpy_helper.from_array(np.array([1]), "axis"),
    ]
    kinds = {"image": ["N", 3, 8, 8], "score": ["N"], "map": ["N", 12, 12]}
    values = [onnx.helper.make_tensor_value_info(n, 1, shape) for n, shape in kinds.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    exempting_graph_of = exempting_graph(model.SerializeToString(), 8)
    assert exempting_graph_of is not None
    assert exempting_graph_of.value_shape == (12, 12)
    assert exempting_graph_of.feature_shape == (3, 4, 4)
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (1, 3, 8, 8)).astype(np.float32)
    from flawline.runtime.engines.onnxruntime_cpu import open_session

    (packed,) = open_session(exempting_graph_of.backbone({})).run(None, {"image": image})
    first = packed[0, :48, 0, 0].reshape(3, 16)[:, 0].astype(np.float64)
    bank = PatchBank(np.zeros(3), first[None], np.array([1e-3]), -9.0)
    new = exempting_graph_of.with_constants(bank.constants())
    before = open_session(model.SerializeToString()).run(["map"], {"image": image})[0][0]
    after = open_session(new).run(["map"], {"image": image})[0][0]
    np.testing.assert_allclose(after[:3, :3], -9, atol=1e-4)
    after[:3, :3] = before[:3, :3]
    np.testing.assert_array_equal(after, before)


# ---------------------------------------------------------------- refusals


def refused(bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert append(bundle, folder, lines(4, 3), noise(10, 4)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not (folder / "new").exists()
    return error.splitlines()[-1]


def test_methods_without_features_or_values_of_positions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = write_tiny_bundle(tmp_path / "pixels", method="draem", backbone="")
    message = refused(pixels, tmp_path / "a", capsys)
    assert "draem has no backbone" in message
    assert "let good pictures set its thresholds with --source" in message
    other = write_tiny_bundle(tmp_path / "other")
    message = refused(other, tmp_path / "b", capsys)
    assert "does not come from values of positions" in message


def test_one_picture_does_not_show_how_much_harmless_things_differ(
    trained: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rejected = [*noise(1, 2), *lines(1, 3) * 2]
    assert append(trained, tmp_path, rejected, noise(10, 4)) == 2
    assert "the bundle rejects only one of the false rejects" in capsys.readouterr().err
    none = tmp_path / "none"
    none.mkdir()
    assert append(trained, none, noise(3, 2), noise(10, 4)) == 2
    assert "the bundle rejects none of the false rejects" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "other"], "engine 'other' is unknown"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "onnxruntime does not run bf16"),
        (["--precision", "int8"], "a taught bundle has the fp32 graph alone"),
        (["--server", "grpc://box:1/model"], "leave --server out"),
    ],
)
def test_flags_are_refused_before_pictures_are_taken(
    trained: Bundle,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--append", "absent", "--good", "absent", "--out", str(tmp_path / "new")]
    assert main([str(trained.path), *words, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
