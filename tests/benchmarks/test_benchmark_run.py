"""The benchmark over engines and precisions: which of them run, and what its rows state."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import write_tiny_bundle
from score_bundles import write_score_bundle

pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks import evaluate, interleaved, run
from flawline.benchmarks.evaluate import compare_with_reference
from flawline.benchmarks.interleaved import EngineRun
from flawline.runtime import engines
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.detector import Detector
from flawline.runtime.engines import ENGINES, EngineError, engine_class, missing, unusable_here
from flawline.runtime.engines.auto import Selection
from flawline.runtime.training_length import TrainingLength
from flawline.runtime.verdict import Verdict
from flawline.train.data import DataError

pytestmark = pytest.mark.torch
HERE = [name for name in ("onnxruntime", "openvino") if missing(name) is None]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Good parts are dark, defective ones bright.

    The tiny model's score is the brightest pixel, its threshold is 100.
    """
    for folder, grey in (("train/good", 20), ("test/good", 20), ("test/bright", 200)):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        for i in range(5):
            image = cv2.imencode(".png", np.full((40, 50, 3), grey + i, np.uint8))[1].tobytes()
            (tmp_path / "parts" / folder / f"{i}.png").write_bytes(image)
    return tmp_path / "parts"


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ENGINES", {name: ENGINES[name] for name in HERE})
    monkeypatch.setattr(interleaved, "SETTLE_S", 0.0)


def benchmark(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, Any, str]:
    """Run the command; return its exit code, its rows and its messages."""
    out = data.parent / "results"
    paths = ["--bundles", str(bundle.path), "--data", str(data), "--out", str(out)]
    code = run.main([*paths, "--threads", "1", "--repeats", "1", *flags])
    output = capsys.readouterr()
    if code:
        return code, [], output.err
    assert output.out == (out / "run.md").read_text(encoding="utf-8")
    return code, json.loads((out / "run.json").read_text()), output.err


def test_all_is_every_engine_here_in_every_precision_it_runs(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = add_model(bundle, "int8", bundle.model().read_bytes())
    code, rows, messages = benchmark(bundle, data, capsys, "--engines", "all")
    assert code == 0
    measured = [(row["engine"].split()[0], row["precision"]) for row in rows]
    assert ("onnxruntime", "fp32") in measured
    # BF16, for example, whose rounding error exceeds the tolerance of 0.01.
    lines = messages.splitlines()
    left_out = [line for line in lines if "left out" in line and not line.startswith("data ")]
    assert all(line.count(": ") >= 1 for line in left_out)
    tried = len(measured) + len(left_out)
    assert tried == sum(len(engine_class(name).precisions) for name in HERE)
    assert all(row["image_auroc"] == 1 for row in rows)
    assert all((row["flips"], row["clear_flips"]) == (0, 0) for row in rows)
    assert all(row["speedup"] > 0 for row in rows)
    assert [
        row["speedup"]
        for row in rows
        if row["engine"].startswith("onnxruntime") and row["precision"] == "fp32"
    ] == [1]
    table = (data.parent / "results" / "run.md").read_text()
    assert "| flips (clear) | x onnxruntime fp32 |" in table
    assert len(re.findall(r"\| 0 \(0\) +\|", table)) == len(rows)


def test_a_graph_that_the_bundle_lacks_is_reported_and_left_out(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows, messages = benchmark(bundle, data, capsys, "--engines", "all")
    assert code == 0
    assert re.search(
        r"note: left out openvino int8: .*holds no int8 graph; .* --precision int8", messages
    )
    assert "int8" not in {row["precision"] for row in rows}


@pytest.mark.skipif("openvino" not in HERE, reason="openvino is not installed")
def test_named_engines_run_their_default_and_nothing_is_compared_without_the_reference(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = add_model(bundle, "int8", bundle.model().read_bytes())
    _, rows, _ = benchmark(bundle, data, capsys)
    assert [(row["precision"], row["speedup"]) for row in rows] == [("fp32", 1)]
    _, rows, _ = benchmark(bundle, data, capsys, "--engine", "openvino", "--precision", "int8")
    assert [(row["precision"], row["speedup"], row["flips"]) for row in rows] == [
        ("int8", None, None)
    ]
    table = (data.parent / "results" / "run.md").read_text(encoding="utf-8")
    assert re.search(r"\| – +\| – +\|", table)


def test_a_named_engine_that_cannot_run_is_an_error(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, messages = benchmark(
        bundle, data, capsys, "--engines", "onnxruntime", "--precision", "bf16"
    )
    assert code == 2
    assert "onnxruntime does not run bf16" in messages.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_measured(
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("the measurement would be lost")

    monkeypatch.setattr(evaluate, "evaluate_bundles", unexpected)
    code, _, messages = benchmark(bundle, data, capsys, "--out", "/proc/results")
    assert code == 2
    (line,) = messages.splitlines()
    assert line.startswith("flawline bench: /proc/results: No such file or directory; ")


def test_a_measurement_is_printed_although_its_report_cannot_be_written(
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flawline.benchmarks import figure

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device", "results/run.json")

    monkeypatch.setattr(figure, "write_report", full_disk)
    paths = ["--bundles", str(bundle.path), "--data", str(data), "--out", str(data.parent / "out")]
    assert run.main([*paths, "--threads", "1", "--repeats", "1"]) == 2
    output = capsys.readouterr()
    assert "I-AUROC" in output.out
    assert f"| {bundle.path.name} " in output.out
    last = output.err.splitlines()[-1]
    assert last == "flawline bench: results/run.json: No space left on device; free disk space"


@pytest.mark.parametrize("error", [DataError("data x: is damaged; copy it"), KeyboardInterrupt()])
def test_data_sets_that_were_measured_before_an_error_are_reported(
    error: BaseException,
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure = evaluate.evaluate_bundles

    def fail_at_the_second(paths: list[Path], *rest: Any) -> list[evaluate.Row]:
        if paths[0].name == "second":
            raise error
        return measure(paths, *rest)

    monkeypatch.setattr(evaluate, "evaluate_bundles", fail_at_the_second)
    shutil.copytree(bundle.path, bundle.path.with_name("second"))
    other_data = data.with_name("other")
    shutil.copytree(data, other_data)
    paths = ["--bundles", str(bundle.path), str(bundle.path.with_name("second"))]
    paths += ["--data", str(data), str(other_data)]
    code, _, messages = benchmark(bundle, data, capsys, *paths)
    assert code in (2, 130)
    (row,) = json.loads((data.parent / "results" / "run.json").read_text())
    assert (row["bundle"], row["images"]) == (bundle.path.name, 10)
    last = messages.splitlines()[-1]
    assert last in ("flawline bench: data x: is damaged; copy it", "interrupted")


def test_bundles_with_the_same_data_take_turns_on_each_image(
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = bundle.path.with_name("second")
    shutil.copytree(bundle.path, second)
    judge = Detector.__call__
    judged = []

    def note_and_judge(self: Detector, image: Any) -> Verdict:
        judged.append((self.bundle.path.name, int(image[0, 0, 0])))
        return judge(self, image)

    monkeypatch.setattr(Detector, "__call__", note_and_judge)
    monkeypatch.setattr(interleaved, "WARM_UP", 0)
    paths = ["--bundles", str(bundle.path), str(second), "--engines", "onnxruntime"]
    code, rows, _ = benchmark(bundle, data, capsys, *paths)
    assert code == 0
    assert [row["bundle"] for row in rows] == [bundle.path.name, "second"]
    assert rows[0]["image_auroc"] == rows[1]["image_auroc"] == 1.0
    expected = []
    for grey in (*range(200, 205), *range(20, 25)):
        expected += [(bundle.path.name, grey), ("second", grey)]
    assert judged == expected


def test_the_results_of_an_earlier_run_stay_on_a_full_disk(
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    benchmark(bundle, data, capsys)
    folder = data.parent / "results"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device", "run.json")

    monkeypatch.setattr("os.fsync", full_disk)
    paths = ["--bundles", str(bundle.path), "--data", str(data), "--out", str(folder)]
    assert run.main([*paths, "--threads", "1", "--repeats", "1"]) == 2
    assert "I-AUROC" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_score_that_is_not_finite_is_an_error(
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Detector.__call__

    def judge_as_nan(self: Detector, image: Any) -> Verdict:
        verdict = judge(self, image)
        object.__setattr__(verdict, "score", float("nan"))
        object.__setattr__(verdict, "reason", "the score is nan")
        return verdict

    monkeypatch.setattr(Detector, "__call__", judge_as_nan)
    code, _, messages = benchmark(bundle, data, capsys)
    assert code == 2
    assert "cannot judge" in messages.splitlines()[-1]
    assert "the score is nan" in messages.splitlines()[-1]


def test_flips_are_counted_and_those_beyond_tolerance_are_clear(bundle: Bundle) -> None:
    """The threshold is 100, the tolerance 0.01; the drift is in standard deviations."""
    std = bundle.manifest.score.std
    reference = EngineRun("onnxruntime", "fp32", times_ms=[5.0], scores=[99.0, 100.005, 99.5])
    int8 = EngineRun("onnxruntime", "int8", times_ms=[2.0], scores=[99.0, 99.0, 101.0])
    compared = compare_with_reference(int8, reference, bundle)
    assert compared == {
        "speedup": 2.5,
        "flips": 2,
        "clear_flips": 1,
        "drift": pytest.approx(1.5 / std, rel=1e-3),
    }
    compared = compare_with_reference(reference, reference, bundle)
    assert compared == {"speedup": 1.0, "flips": 0, "clear_flips": 0, "drift": 0.0}
    compared = compare_with_reference(int8, None, bundle)
    assert compared == {"speedup": None, "flips": None, "clear_flips": None, "drift": None}


@pytest.mark.skipif("openvino" not in HERE, reason="openvino is not installed")
def test_engines_take_turns_on_each_image(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    judge = Detector.__call__

    def record_engine(self: Detector, image: Any) -> Verdict:
        calls.append(self.engine.name)
        return judge(self, image)

    monkeypatch.setattr(Detector, "__call__", record_engine)
    benchmark(bundle, data, capsys, "--engines", "onnxruntime", "openvino", "--precision", "fp32")
    taken = [name for name, _ in itertools.groupby(calls)]
    assert taken == ["onnxruntime", "openvino"] * 10
    # Each turn is one timed call; the first image has the untimed warm-up calls as well.
    assert calls.count("onnxruntime") == 10 + interleaved.WARM_UP


def test_throughput_mode_is_measured_besides_one_image_at_a_time(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With batches of 3, the 10 images twice are 20 and leave a last batch that is not full."""
    flags = ("--engines", "onnxruntime", "--repeats", "2", "--batch", "3")
    code, rows, _ = benchmark(bundle, data, capsys, *flags)
    assert code == 0
    assert [(row["batch"], row["streams"]) for row in rows] == [(1, None), (3, None)]
    alone, together = rows
    for key in ("image_auroc", "threshold", "false_alarms", "missed", "images"):
        assert together[key] == alone[key]
    assert together["flips"] == 0
    assert together["drift"] == 0
    assert together["p50_ms"] > 0
    assert together["fps_slowest"] <= together["fps"] <= together["fps_fastest"]
    table = (data.parent / "results" / "run.md").read_text(encoding="utf-8")
    assert "§ Throughput mode: several images are judged at the same time" in table
    assert re.search(r"CPU fp32, batch 3 +\|", table)
    assert re.search(r"Measured on: [^;]+; batch 1 or as stated; threads [^;]+\.", table)


@pytest.mark.skipif("openvino" not in HERE, reason="needs the openvino extra")
def test_auto_is_chosen_once_for_both_modes(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def select(*_: object) -> Selection:
        chosen.append("auto")
        return Selection("onnxruntime", "fp32")

    monkeypatch.setattr(engines, "select_engine", select)
    code, rows, _ = benchmark(bundle, data, capsys, "--engines", "auto", "--batch", "3")
    assert code == 0
    assert [(row["engine"].split()[0], row["batch"]) for row in rows] == [
        ("onnxruntime", 1),
        ("onnxruntime", 3),
    ]
    assert chosen == ["auto"]


def test_engines_without_streams_are_left_out_of_throughput_mode(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--engines", "all", "--precision", "fp32", "--streams", "1")
    code, rows, messages = benchmark(bundle, data, capsys, *flags)
    assert code == 0
    found = [(row["engine"].partition(" ")[0], row["streams"]) for row in rows]
    assert found == [("onnxruntime", None), ("openvino", None), ("openvino", 1)]
    assert rows[2]["engine"].endswith("fp32, 1 stream")
    assert rows[2]["flips"] == 0
    note = "note: left out onnxruntime fp32 in throughput mode: engine onnxruntime computes one"
    assert note in messages
    assert not re.search(r"left out openvino fp32:", messages)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch", "0"), "--batch takes 1 or more"),
        (("--streams", "0"), "--streams 0 is not at least 1; leave it out"),
        (("--engines", "onnxruntime", "--streams", "1"), "has no streams; leave --streams out"),
    ],
)
def test_a_throughput_mode_that_is_not_there_is_refused(
    flags: tuple[str, ...],
    message: str,
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code, _, messages = benchmark(bundle, data, capsys, *flags)
    except SystemExit as exit_:
        code, messages = int(exit_.code or 0), capsys.readouterr().err
    assert code == 2
    assert message in messages


def test_a_batch_that_the_graph_does_not_take_is_left_out_or_refused(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_class("onnxruntime"), "largest_batch", 2)
    code, _, messages = benchmark(bundle, data, capsys, "--engines", "onnxruntime", "--batch", "3")
    assert code == 2
    assert "takes at most 2 in one call; give --batch 2" in messages


def test_the_rows_keep_their_keys(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results that were stored earlier are compared with new ones."""
    benchmark(bundle, data, capsys)
    (row,) = json.loads((data.parent / "results" / "run.json").read_text())
    assert list(row) == [
        "bundle",
        "bundle_id",
        "method",
        "backbone",
        "weights",
        "unfinished",
        "data",
        "input",
        "batch",
        "engine",
        "precision",
        "threads",
        "streams",
        "device",
        "images",
        "has_map",
        "image_auroc",
        "image_ap",
        "threshold",
        "good_images",
        "false_alarms",
        "defective_images",
        "missed",
        "pixel_auroc",
        "pixel_ap",
        "aupro",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "fps",
        "fps_slowest",
        "fps_fastest",
        "other_processes",
        "model_sha256",
        "versions",
        "speedup",
        "flips",
        "clear_flips",
        "drift",
    ]


def test_a_training_that_was_cut_short_is_marked(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "early", training=TrainingLength(17, 100))
    _, (row,), _ = benchmark(bundle, data, capsys)
    assert row["unfinished"] == "17 of 100 steps"
    table = (data.parent / "results" / "run.md").read_text(encoding="utf-8")
    assert re.search(r"\| early † +\|", table)
    assert "† The training was cut short: early after 17 of 100 steps." in table
    finished = write_tiny_bundle(tmp_path / "whole", training=TrainingLength(100, 100))
    _, (row,), _ = benchmark(finished, data, capsys)
    assert row["unfinished"] is None
    assert "†" not in (data.parent / "results" / "run.md").read_text(encoding="utf-8")


def test_a_bundle_without_maps_has_no_pixel_metrics(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mask(data)
    bundle = write_score_bundle(tmp_path / "scores")
    code, rows, messages = benchmark(bundle, data, capsys)
    assert code == 0, messages
    assert rows[0]["image_auroc"] == 1
    for metric in ("pixel_auroc", "pixel_ap", "aupro"):
        assert rows[0][metric] is None


def write_mask(data: Path) -> Path:
    """Mark the whole of the first defective image as defective; return the file of the mask."""
    folder = data / "ground_truth" / "bright"
    folder.mkdir(parents=True)
    assert cv2.imwrite(str(folder / "0_mask.png"), np.full((40, 50), 255, np.uint8))
    return folder / "0_mask.png"


def test_a_damaged_mask_is_reported_before_the_measurement(
    bundle: Bundle,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = write_mask(data)
    mask.write_bytes(mask.read_bytes()[:-20])
    monkeypatch.setattr(evaluate, "judge_samples", lambda *_: pytest.fail("measured"))
    code, _, messages = benchmark(bundle, data, capsys)
    assert code == 2
    assert f"mask {mask}: " in messages.splitlines()[-1]


def test_masks_that_mark_nothing_are_reported(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = write_mask(data)
    mask.write_bytes(cv2.imencode(".png", np.zeros((40, 50), np.uint8))[1].tobytes())
    _, _, messages = benchmark(bundle, data, capsys)
    assert (
        f"note: 1 mask of defective images without any defective pixel, such as {mask}" in messages
    )


def test_data_of_one_kind_is_one_line(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in (data / "test" / "bright").iterdir():
        image.unlink()
    code, _, messages = benchmark(bundle, data, capsys)
    assert code == 2
    (line,) = messages.splitlines()
    assert f"data {data}: accuracy needs good and defective test images" in line


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--data", "a", "b"], "--data takes 1 or 1 data sets, one per bundle"),
        (["--data", "a", "--repeats", "0"], "--repeats takes 1 or more"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(["--bundles", "bundle", *flags])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_16_bit_images_of_an_8_bit_detector_are_one_line_with_a_remedy(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command has no --bits of its own."""
    deep = np.full((40, 50), 4000, np.uint16)
    (data / "test" / "good" / "0.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    code, _, messages = benchmark(bundle, data, capsys)
    assert code == 2
    last = messages.splitlines()[-1]
    assert "0.png: has 16 bits per pixel (largest value 4000); " in last
    assert "was trained on 8-bit images: train it again" in last
    assert "declare" not in last


def test_the_current_folder_has_a_name(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = data.parent / "results"
    words = ["--out", str(out), "--threads", "1", "--repeats", "1"]
    monkeypatch.chdir(data)
    assert run.main(["--bundles", str(bundle.path), "--data", ".", *words]) == 0
    (row,) = json.loads((out / "run.json").read_text())
    assert row["data"] == "parts"
    monkeypatch.chdir(bundle.path)
    assert run.main(["--bundles", ".", "--data", str(data), *words]) == 0
    (row,) = json.loads((out / "run.json").read_text())
    assert row["bundle"] == bundle.path.name


def test_a_server_is_for_the_engines_that_compute_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ENGINES", ENGINES)
    remote = [name for name in ENGINES if engine_class(name).needs_server]
    uri = "grpc://127.0.0.1:9/part"
    for name in remote:
        chosen = run.choose_engines(["onnxruntime", name], "fp32", None, uri)
        assert [choice.options.server for choice in chosen] == [None, uri]
        with pytest.raises(EngineError, match=f"engine {name} computes on a server; give its add"):
            run.choose_engines([name], "fp32", None)
        everything = run.choose_engines(["all", name], "fp32", None, uri)
        assert everything[-1].name == name
    with pytest.raises(EngineError, match="--engine onnxruntime computes on this machine"):
        run.choose_engines(["onnxruntime"], "fp32", None, uri)
    names = {choice.name for choice in run.choose_engines(["all"], "auto", None)}
    assert names == {name for name in ENGINES if unusable_here(name) is None}
