"""What a bundle is built from: threshold, parity, golden images, provenance; with a toy method."""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")


from conftest import write_tiny_bundle
from torch import Tensor, nn

from flawline.export import ExportError, assemble, selection
from flawline.export.assemble import ExportOptions, build_bundle
from flawline.export.judged import Judged
from flawline.export.parity import ScoresAndMaps
from flawline.export.selection import select_images
from flawline.runtime import golden_images
from flawline.runtime.bundle import Bundle
from flawline.runtime.good_images.out_of_fold import OutOfFold, PartScores
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry
from flawline.runtime.manifest import Spread
from flawline.runtime.provenance import without_folders
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.threshold import CalibrationError, Rates, set_threshold
from flawline.runtime.training_length import TrainingLength
from flawline.train.blocks.fused import fp32
from flawline.train.checkpoint import Checkpoint
from flawline.train.data import DataError, hold_out, open_data
from flawline.train.data.split import content_hashes, list_hash
from flawline.train.method import Fit, Method, MethodSettings

pytestmark = pytest.mark.torch
SIZE = 32


class Peak(nn.Module):
    def forward(self, anomaly_map: Tensor) -> Tensor:
        return anomaly_map.amax((1, 2))


class Exported(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))
        self.peak = fp32(Peak())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        anomaly_map = image.to(torch.float32).mean(3) * self.gain
        return self.peak(anomaly_map), anomaly_map


class Brightness(Method):
    """The map is the mean over the colours, the score its maximum. Needs no training."""

    name = "brightness"
    Settings = MethodSettings

    def __init__(self, settings: MethodSettings, exported_gain: float = 1.0) -> None:
        super().__init__(settings)
        self.exported_gain = exported_gain
        self.offset = nn.Parameter(torch.zeros(1))

    @classmethod
    def settings_for(cls, backbone: str) -> MethodSettings:
        return MethodSettings(backbone, Geometry("stretch", SIZE, SIZE))

    @classmethod
    def steps(cls, settings: Any, images: int, epochs: int | None) -> int:
        return 1

    def fit(self, fit: Fit) -> int:
        return fit.steps

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        anomaly_map = image.float().mean(3) + self.offset
        return anomaly_map.amax((1, 2)), anomaly_map

    def fused(self) -> nn.Module:
        return Exported(self.exported_gain).eval()


def method(exported_gain: float = 1.0) -> Brightness:
    return Brightness(Brightness.settings_for(""), exported_gain).eval()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Noise around grey levels; defective parts carry a white square."""
    root = tmp_path / "private" / "parts"
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 20), ("test/good", 3), ("test/square", 3)):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            image = rng.normal(110 + index, 8, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
            if folder == "test/square":
                image[4:12, 4:12] = 255
            path = root / folder / f"{index:03d}.png"
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return root


PROVENANCE = {"bits": "8", "seed": "0"}


def build(
    data: Path,
    options: ExportOptions | None = None,
    exported_gain: float = 1.0,
    trained_on: Sequence[str] = (),
    facts: Mapping[str, Any] = MappingProxyType({}),
    **provenance: str,
) -> Bundle:
    stated = {**PROVENANCE, "data": str(data.resolve()), **provenance}
    return build_bundle(
        Checkpoint(method(exported_gain), stated, trained_on=tuple(trained_on), **facts),
        data,
        data.parents[1] / "bundle",
        options or ExportOptions(),
        ["--data", str(data), f"--out={data.parents[1] / 'bundle'}", "--false-alarm-rate", "0.3"],
    )


def test_a_bundle_holds_the_graph_its_statistics_and_its_islands(data: Path) -> None:
    bundle = build(data)
    manifest = bundle.manifest
    assert (manifest.method, manifest.backbone, manifest.bit_depth) == ("brightness", "", 8)
    assert manifest.fp32_islands == ("/peak",)
    assert manifest.score == manifest.map_peak
    assert manifest.score_tolerance == pytest.approx(0.05 * manifest.score.std)
    assert manifest.map_tolerance == pytest.approx(manifest.score_tolerance)
    golden = bundle.golden()
    distance = np.abs(golden.scores - bundle.calibration.threshold)
    assert distance.min() > manifest.score_tolerance
    assert len(golden.images) == 6
    assert golden.scores.max() == 255
    np.testing.assert_allclose(golden.maps, golden.images.mean(3), rtol=1e-5)


def test_of_large_images_one_per_side_is_stored(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_images, "BYTES_PER_SIDE", 1)
    bundle = build(data)
    golden = bundle.golden()
    assert len(golden.images) == 2
    low, high = golden.scores
    assert low < bundle.calibration.threshold < high


def test_a_graph_of_the_score_alone_has_golden_data_without_maps(data: Path) -> None:
    bundle = build(data, ExportOptions(outputs=("score",), static_batch=1))
    assert bundle.manifest.outputs == ("score",)
    assert bundle.golden().maps.shape == (6, 0, 0)
    assert bundle.manifest.map_peak == bundle.manifest.score


def test_the_bit_depth_of_the_training_is_in_the_manifest(data: Path) -> None:
    assert build(data, bits="12").manifest.bit_depth == 12


class Cancellation(Brightness):
    """In float32, the score of a bright image loses its digits in a difference of large numbers."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        score, anomaly_map = super().forward(image)
        large = torch.where(score > 240, 1e9, 0.0).to(score)
        return (score + large) - large, anomaly_map


def test_an_image_on_which_float32_has_two_answers_is_compared_with_float64(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inexact = Cancellation(Brightness.settings_for(""), 1.0).eval()
    checkpoint = Checkpoint(inexact, {**PROVENANCE, "data": str(data.resolve())})
    bundle = build_bundle(checkpoint, data, data.parents[1] / "bundle", ExportOptions())
    assert "3 of 10 images differ by more than the tolerance" in capsys.readouterr().err
    # A white square; the next float32 after 1e9 is 64 away.
    assert bundle.golden().scores.max() == 255.0
    # What the graph computes, not what it is compared with, is wrong here.
    drifting = Cancellation(Brightness.settings_for(""), 1.01).eval()
    with pytest.raises(ExportError, match="scores are off by"):
        build_bundle(
            Checkpoint(drifting, checkpoint.provenance),
            data,
            data.parents[1] / "other",
            ExportOptions(),
        )


def test_a_graph_that_drifts_is_refused_before_anything_is_written(data: Path) -> None:
    with pytest.raises(ExportError, match="off by"):
        build(data, exported_gain=1.5)
    assert not (data.parents[1] / "bundle").exists()


def test_a_rate_that_the_images_do_not_support_is_refused_before_the_work(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brightness, "fused", lambda self: pytest.fail("the work began"))
    with pytest.raises(CalibrationError, match="needs 999 held-out good images"):
        build(data, ExportOptions(false_alarm_rate=0.001))


def test_a_flip_of_the_fp32_graph_within_tolerance_is_listed(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = assemble.judge

    def judge_with_a_near_flip(*arguments: Any) -> Judged:
        judged = judge(*arguments)
        reference, results = judged.reference, judged.results
        held_out = len(results.scores) - 6
        good = results.scores[:held_out]
        threshold = set_threshold(good, margin=0.05 * float(np.std(good))).threshold
        # A fifth of the tolerance on either side of the threshold.
        step = 0.01 * float(np.std(results.scores[:held_out]))
        expected = reference.scores.copy()
        scores = results.scores.copy()
        expected[-1] = threshold + step
        scores[-1] = threshold - step
        return dataclasses.replace(
            judged,
            reference=ScoresAndMaps(expected, reference.maps),
            results=ScoresAndMaps(scores, results.maps),
        )

    monkeypatch.setattr(assemble, "judge", judge_with_a_near_flip)
    build(data)
    text = capsys.readouterr().err
    assert "1 flipped decisions" in text
    assert f"within tolerance of the threshold: {data / 'test' / 'square' / '002.png'}" in text


def test_no_private_path_is_in_a_bundle(data: Path) -> None:
    bundle = build(data, weights_flag="/home/me/weights.pth")
    provenance = bundle.manifest.provenance
    assert provenance["data"] == provenance["train_data"] == "parts"
    assert provenance["train_weights_flag"] == "weights.pth"
    assert provenance["command"] == (
        "python -m export.build --data parts --out=bundle --false-alarm-rate 0.3"
    )
    for file in ("manifest.json", "calibration.json"):
        assert str(data.parents[1]) not in (bundle.path / file).read_text()


def test_held_out_images_that_were_trained_on_set_no_threshold(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder was renamed since the training, so that other images are held out."""
    training, held_out = hold_out(open_data(data).train_good)
    monkeypatch.setattr(Brightness, "fused", lambda self: pytest.fail("the work began"))
    trained_on = content_hashes([*training[2:], *held_out[:1]])
    with pytest.raises(DataError, match="1 of 4 held-out images were trained on"):
        build(data, trained_on=trained_on)
    assert not (data.parents[1] / "bundle").exists()


def test_what_was_trained_on_may_be_elsewhere_under_other_names(data: Path) -> None:
    training, _ = hold_out(open_data(data).train_good)
    assert build(data, trained_on=content_hashes(training)).manifest.method == "brightness"


def test_an_older_checkpoint_is_compared_by_names_and_sizes(data: Path) -> None:
    training, held_out = hold_out(open_data(data).train_good)
    assert build(data, data_sha256=list_hash(training)).manifest.method == "brightness"
    with pytest.raises(DataError, match="the training images are not those of the checkpoint"):
        build(data, data_sha256=list_hash([*training, *held_out[:1]]))


def test_provenance_of_any_encoding_is_valid_unicode(data: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(data.parent) + b"/\xc1\xbc"))
    data.rename(folder)
    provenance = build(folder).manifest.provenance
    assert provenance["data"] == provenance["train_data"] == "\\xc1\xbc".replace("\xbc", "\\xbc")


def test_the_log_says_what_the_data_set_holds(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(data)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("data ")] == [
        f"data {data}: 20 good images to train and set the threshold; 3 good and 3 defective ones "
        "for the test (square 3; 0 masks); left out: nothing"
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--data", "--data"),
        ("/home/me/part", "part"),
        ("runs/part.pt", "part.pt"),
        ("../data/", "data"),
        ("--data=/home/me/a=b", "--data=a=b"),
        ("9 trained on, 3 held out", "9 trained on, 3 held out"),
        ("", ""),
    ],
)
def test_folders_are_removed_from_paths(word: str, expected: str) -> None:
    assert without_folders(word) == expected


def test_a_checkpoint_without_a_bit_depth_was_trained_on_8_bits(data: Path, tmp_path: Path) -> None:
    bundle = build_bundle(Checkpoint(method(), {}), data, tmp_path / "bundle", ExportOptions())
    assert bundle.manifest.bit_depth == 8


def test_options_are_a_frozen_record() -> None:
    assert dataclasses.asdict(ExportOptions()) == {
        "false_alarm_rate": None,
        "review_rate": None,
        "parity_images": 200,
        "outputs": None,
        "static_batch": None,
        "allow_unfinished": False,
        "source": None,
        "describe": True,
    }


# ---------------------------------------------------------------- trainings that were cut short


def test_a_training_that_was_cut_short_is_refused(data: Path) -> None:
    facts = {"length": TrainingLength(1, 500)}
    with pytest.raises(ExportError, match=r"cut short after 1 of 500 steps; .*--allow-unfinished"):
        build(data, facts=facts)
    assert not (data.parents[1] / "bundle").exists()


def test_it_is_exported_on_request_and_marked(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"length": TrainingLength(1, 500)}
    stated = {"steps": "1 of 500 steps, cut short"}
    bundle = build(data, ExportOptions(allow_unfinished=True), facts=facts, **stated)
    assert bundle.manifest.training == TrainingLength(1, 500)
    assert bundle.manifest.cut_short == "1 of 500 steps"
    assert bundle.manifest.provenance["train_steps"] == "1 of 500 steps, cut short"
    assert "warning: the training was cut short" in capsys.readouterr().err


def test_a_missing_phase_is_refused_even_on_request(data: Path) -> None:
    facts = {"length": TrainingLength(1, 500), "missing_phases": ("student",)}
    with pytest.raises(ExportError, match="before its phase student; repeat the training"):
        build(data, ExportOptions(allow_unfinished=True), facts=facts)


def test_a_finished_training_is_not_marked(data: Path) -> None:
    bundle = build(data, facts={"length": TrainingLength(500, 500)})
    assert bundle.manifest.cut_short is None


# ---------------------------------------------------------------- sizes of the source images


def test_the_manifest_holds_the_sizes_of_trained_and_held_out_images(data: Path) -> None:
    bundle = build(data, facts={"source_sizes": SourceSizes.of([(30, 40)])})
    assert bundle.manifest.source_sizes == SourceSizes.of([(30, 40), (SIZE, SIZE)])
    assert build(data).manifest.source_sizes is None


def test_the_manifest_holds_hashes_of_the_images_of_the_training(data: Path) -> None:
    good, _held_out = hold_out(open_data(data).train_good)
    hashes = content_hashes(good)
    # A copy in the training has the same hash.
    bundle = build(data, trained_on=(*hashes, hashes[0]))
    assert bundle.manifest.trained_images == tuple(sorted(hashes))
    assert build(data).manifest.trained_images == ()


# ---------------------------------------------------------------- out-of-fold scores


def record_of(data: Path, step: float = 1.0, count: int = 2) -> OutOfFold:
    """Out-of-fold scores 200, 200 + step and so on, in two blocks; peaks are 1 higher."""
    images = content_hashes(open_data(data).train_good)
    folds = []
    for block in np.array_split(np.arange(len(images)), 2)[:count]:
        scores = tuple((200 + step * block).tolist())
        folds.append(PartScores(tuple(block.tolist()), scores, tuple(x + 1 for x in scores)))
    random = folds[0] if count == 2 else None
    return OutOfFold(tuple(images), 2, tuple(folds), random)


def test_out_of_fold_scores_set_the_threshold(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build(data, facts={"out_of_fold": record_of(data)})
    scores = np.arange(200.0, 220)
    manifest = bundle.manifest
    assert manifest.score == Spread.of(scores)
    assert manifest.map_peak == Spread.of(scores + 1)
    assert manifest.folds == 2
    calibration = bundle.calibration
    expected = set_threshold(scores, margin=manifest.score_tolerance, folds=2)
    assert dataclasses.replace(calibration, pixels=None) == expected
    assert calibration.threshold == pytest.approx(219 + 0.05 * scores.std())
    assert (calibration.good_images, calibration.folds) == (20, 2)
    assert calibration.interval[0] == 0
    # The largest values of the maps set the pixel threshold in the same way.
    assert calibration.pixels is not None
    assert calibration.pixels.threshold == pytest.approx(220 + manifest.map_tolerance, rel=0.01)
    assert calibration.pixels.rate == calibration.false_alarm_rate
    assert calibration.pixels.interval == calibration.interval
    assert calibration.review is None
    text = capsys.readouterr().err
    assert "note: 20 good images support a false-alarm rate of 4.8% at best" in text
    assert "(at most 13.9% with 95% confidence), from 20 good images, each scored by one of" in text
    assert f"highest-scoring of them: 219 {data / 'train' / 'good' / '019.png'}" in text
    assert "parity on 26 images" in text


def test_parity_uses_a_part_of_many_good_images(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selection, "PARITY_IMAGES", 7)
    build(data, facts={"out_of_fold": record_of(data)})
    assert "parity on 13 images" in capsys.readouterr().err


def test_images_keep_their_scores_under_other_names(data: Path) -> None:
    record = record_of(data)
    good = data / "train" / "good"
    for index in range(20):
        (good / f"{index:03d}.png").rename(good / f"renamed {19 - index:03d}.png")
    assert build(data, facts={"out_of_fold": record}).manifest.score.max == 219


def test_copies_in_another_fold_set_no_threshold(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = data / "train" / "good"
    (good / "019.png").write_bytes((good / "000.png").read_bytes())
    bundle = build(data, facts={"out_of_fold": record_of(data)})
    text = capsys.readouterr().err
    assert "note: 2 of 20 good images are copies of others and set no threshold; 18 remain" in text
    assert bundle.calibration.good_images == 18


def test_held_out_copies_set_no_threshold(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training, held_out = hold_out(open_data(data).train_good)
    held_out[0].write_bytes(training[0].read_bytes())
    bundle = build(data)
    text = capsys.readouterr().err
    assert (
        f"1 held-out images are copies of others and set no threshold; {len(held_out) - 1}" in text
    )
    assert bundle.calibration.good_images == len(held_out) - 1


def test_out_of_fold_scores_of_other_images_set_no_threshold(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(data)
    monkeypatch.setattr(Brightness, "fused", lambda self: pytest.fail("the work began"))
    good = data / "train" / "good"
    (good / "003.png").write_bytes((data / "test" / "good" / "000.png").read_bytes())
    (good / "004.png").unlink()
    message = (
        r"the good images are not the 20 that the detector was trained on "
        r"\(1 are new, or copies, such as .*003.png; 2 are missing\), .*; train again on "
        r"this data set, or give the one"
    )
    with pytest.raises(DataError, match=message):
        build(data, facts={"out_of_fold": record})
    assert not (data.parents[1] / "bundle").exists()


def test_missing_folds_are_refused_even_on_request(data: Path) -> None:
    facts = {
        "length": TrainingLength(2, 4),
        "missing_phases": ("fold 2 of 2",),
        "out_of_fold": record_of(data, count=1),
    }
    with pytest.raises(ExportError, match=r"before its part fold 2 of 2; .* --folds 0"):
        build(data, ExportOptions(allow_unfinished=True), facts=facts)


def test_a_rate_that_the_folds_do_not_support_is_refused(data: Path) -> None:
    with pytest.raises(CalibrationError, match="needs 99 good images, there are 20"):
        build(data, ExportOptions(false_alarm_rate=0.01), facts={"out_of_fold": record_of(data)})


def test_a_new_graph_is_compared_on_good_images_of_the_training(data: Path) -> None:
    build(data, facts={"out_of_fold": record_of(data)})
    chosen = select_images(data, GraphInput(Geometry("stretch", SIZE, SIZE)), None, folds=2)
    assert chosen.good == chosen.train.paths == list(open_data(data).train_good)


# ---------------------------------------------------------------- equal images


def test_equal_scores_promise_nothing(data: Path) -> None:
    for record in (record_of(data, step=0.0), record_of(data, step=1e-6)):
        with pytest.raises(CalibrationError, match="scores of the 20 good images are all equal"):
            build(data, facts={"out_of_fold": record})
    assert not (data.parents[1] / "bundle").exists()


def test_equal_held_out_images_promise_nothing(data: Path) -> None:
    """The files differ in their bytes, and not in their pixels."""
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    for index, path in enumerate(sorted((data / "train" / "good").iterdir())):
        data_of_file = cv2.imencode(".png", image)[1].tobytes()
        # A comment after the header of 33 bytes.
        comment = b"tEXtComment\0" + str(index).encode()
        chunk = struct.pack(">I", len(comment) - 4) + comment
        chunk += struct.pack(">I", zlib.crc32(comment))
        path.write_bytes(data_of_file[:33] + chunk + data_of_file[33:])
    with pytest.raises(CalibrationError, match="scores of the 4 held-out good images are all equa"):
        build(data)
    assert not (data.parents[1] / "bundle").exists()


def test_the_threshold_keeps_the_tolerance_of_engines_as_margin(data: Path) -> None:
    bundle = build(data)
    highest = bundle.manifest.score.max
    margin = bundle.manifest.score_tolerance
    assert bundle.calibration.threshold == pytest.approx(highest + margin)


def test_similar_neighbours_are_noted_with_the_threshold(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [Path(f"{index}.png") for index in range(40)]
    waves = np.sin(np.arange(40) / 6)
    manifest = write_tiny_bundle(tmp_path / "tiny").manifest
    GoodScores(paths, waves, waves).calibrate(Rates(0.1), manifest)
    assert "warning: neighbouring images of the sequence are similar" in capsys.readouterr().err
    independent = np.random.default_rng(0).permutation(waves)
    GoodScores(paths, independent, independent).calibrate(Rates(0.1), manifest)
    assert "warning" not in capsys.readouterr().err


def test_test_images_that_were_trained_on_are_named(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = data / "train" / "good"
    copy = data / "test" / "good" / "copy.png"
    copy.write_bytes((good / "000.png").read_bytes())
    trained_on = content_hashes(list(good.iterdir()))
    build(data, facts={"out_of_fold": record_of(data)}, trained_on=trained_on)
    text = capsys.readouterr().err
    assert "warning: 1 of 7 test images are copies" in text
    assert str(copy) in text
