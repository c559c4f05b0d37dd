"""Drift: what is measured of frames, the limits of chance, and warnings of a camera's frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import SIZE, write_levels, write_tiny_bundle

from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.calibrate import main as calibrate
from flawline.runtime.drift.dependence import variance_inflation
from flawline.runtime.drift.fineness import excess_of_left_out, fit_fineness
from flawline.runtime.drift.gauge import Gauge
from flawline.runtime.drift.learn import learn_reference
from flawline.runtime.drift.limits import chance_beyond, critical_count
from flawline.runtime.drift.meter import FrameMeter
from flawline.runtime.drift.quantities import (
    ACROSS,
    CAUSES,
    DOWN,
    FOCUS,
    LIGHT,
    LIKENESS,
    POSITION,
    PRODUCT,
    QUANTITIES,
    SCORE,
    SCORES,
    TEXTURE,
)
from flawline.runtime.drift.reading import Reading
from flawline.runtime.drift.reference import (
    DriftReference,
    Range,
    range_from_json,
    reference_from_json,
)
from flawline.runtime.drift.watch import WINDOW, DriftWatch, drift_notes
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry, Image
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.inspected_area import InspectedArea
from flawline.runtime.source_frame import SourceFrame
from flawline.runtime.strict_json import SchemaError

INPUT = GraphInput(Geometry("stretch", 128, 128))
SCORES_OF_GOOD = np.random.default_rng(1).uniform(1, 2, 40)

Change = Callable[[Image], Image]


def part(number: int, product: int = 0, moves: bool = True) -> Image:
    """A part of a product, uint8 [128, 128, 3]: the same blobs, a little different in each."""
    shapes = np.random.default_rng(product)
    rng = np.random.default_rng((product, number))
    image = np.full((128, 128, 3), 90, np.float32)
    image += np.linspace(0, 12, 128)[:, None] * rng.uniform(-1, 1)
    left, top = rng.integers(-1, 2, 2) if moves else (0, 0)
    for _ in range(14):
        x, y, radius, grey = shapes.integers((20, 20, 5, 30), (108, 108, 14, 200))
        centre = (int(x + left), int(y + top))
        cv2.circle(image, centre, int(radius), (float(grey),) * 3, -1, cv2.LINE_AA)
    image *= rng.uniform(0.95, 1.05)
    image += rng.normal(0, 2, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def cloth(number: int, fibre: float = 6.0) -> Image:
    """A piece of cloth, uint8 [128, 128, 3], whose fibres lie anywhere and are of this length."""
    rng = np.random.default_rng((round(fibre), number))
    fibres = cv2.GaussianBlur(rng.normal(size=(128, 128)), (0, 0), sigmaX=fibre, sigmaY=1.0)
    image = 110 + 20 * fibres[..., None] / fibres.std() + rng.normal(0, 2, (128, 128, 3))
    return (image * rng.uniform(0.95, 1.05)).clip(0, 255).astype(np.uint8)


def gain(factor: float) -> Change:
    return lambda image: np.clip(image * factor, 0, 255).astype(np.uint8)


def blurred(image: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), np.uint8)


def shifted(image: Image) -> Image:
    return np.roll(image, (5, 5), (0, 1))


def uneven(image: Image) -> Image:
    return (image * np.linspace(0.5, 1, 128)[None, :, None]).astype(np.uint8)


def same(image: Image) -> Image:
    return image


@pytest.fixture(scope="module")
def placed() -> DriftReference:
    found = learn_reference([part(number) for number in range(40)], SCORES_OF_GOOD, INPUT)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def woven() -> DriftReference:
    found = learn_reference([cloth(number) for number in range(40)], SCORES_OF_GOOD, INPUT)
    assert found is not None
    return found


def begun(
    reference: DriftReference,
    frames: Sequence[Image],
    graph_input: GraphInput = INPUT,
    score: float = 1.5,
) -> list[tuple[str, int]]:
    """The warnings that begin, each with the number of its frame."""
    gauge = Gauge(reference, graph_input)
    watch = DriftWatch(reference)
    found = []
    for number, frame in enumerate(frames, 1):
        for change in watch.add("1", gauge.read(frame), score):
            assert change.begins
            found.append((change.cause, number))
    return found


# Limits.


@pytest.mark.parametrize(("good", "beyond", "frames"), [(5, 1, 4), (4, 2, 5), (6, 6, 3), (1, 1, 6)])
def test_the_chance_is_the_share_of_all_orders(good: int, beyond: int, frames: int) -> None:
    orders = list(combinations(range(good + frames), good))
    for count in range(1, frames + 1):
        exceeded = 0
        for places in orders:
            # Places of the good values, the largest value at place 0.
            above = places[beyond - 1] - (beyond - 1)
            exceeded += above >= count
        assert chance_beyond(good, beyond, frames, count) == pytest.approx(exceeded / len(orders))


def test_the_critical_count_is_the_smallest_that_chance_does_not_explain() -> None:
    count = critical_count(100, 2, 80, 1e-9)
    assert count is not None
    assert chance_beyond(100, 2, 80, count) <= 1e-9 < chance_beyond(100, 2, 80, count - 1)
    assert critical_count(3, 1, 20, 1e-9) is None


def test_similar_neighbours_say_less_than_independent_values() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    assert variance_inflation(noise) < 1.5
    assert variance_inflation(np.repeat(noise[:40], 10)) == pytest.approx(10, rel=0.8)
    assert variance_inflation(np.ones(100)) == 1
    slow = Range.of(np.repeat(noise[:10], 10))
    assert slow.images == 100
    assert slow.independent < 30


# What is measured.


def test_a_gain_changes_the_light_and_not_the_fineness() -> None:
    meter = FrameMeter(INPUT)
    before = meter.measure(part(0))
    after = meter.measure(gain(0.7)(part(0)))
    assert after.brightness == pytest.approx(0.7 * before.brightness, rel=0.02)
    assert after.contrast == pytest.approx(0.7 * before.contrast, rel=0.03)
    assert after.fineness == pytest.approx(before.fineness, abs=0.05)
    assert after.structure == pytest.approx(before.structure, abs=0.05)
    assert (after.red, after.blue) == pytest.approx((before.red, before.blue), abs=0.01)


def test_blur_changes_the_fineness_and_hardly_the_structure() -> None:
    meter = FrameMeter(INPUT)
    before = meter.measure(part(0))
    after = meter.measure(blurred(part(0)))
    assert (after.fineness < before.fineness - (0.7, 0.4)).all()
    assert after.structure == pytest.approx(before.structure, abs=0.2)
    assert after.brightness == pytest.approx(before.brightness, abs=0.5)
    assert after.contrast == pytest.approx(before.contrast, rel=0.05)


def test_the_shift_is_in_percent_of_the_frame(placed: DriftReference) -> None:
    gauge = Gauge(placed, INPUT)
    still = gauge.read(part(0)).values
    moved = gauge.read(np.roll(part(0), (4, -8), (0, 1))).values
    assert moved[DOWN] - still[DOWN] == pytest.approx(100 * 4 / 128, abs=0.4)
    assert moved[ACROSS] - still[ACROSS] == pytest.approx(-100 * 8 / 128, abs=0.4)
    assert moved[LIKENESS] > 0.8
    assert gauge.read(part(0, product=1)).values[LIKENESS] < 0.5


def test_what_is_not_inspected_has_no_influence() -> None:
    mask = np.zeros((128, 128), bool)
    mask[8:100, 20:120] = True
    graph_input = GraphInput(INPUT.geometry, area=InspectedArea.of_mask(mask))
    meter = FrameMeter(graph_input)
    image = part(0)
    other = np.where(mask[..., None], image, 255 - image)
    first = meter.measure(image)
    second = meter.measure(other)
    assert first[:4] == second[:4]
    assert np.array_equal(first.fineness, second.fineness)
    assert np.array_equal(first.structure, second.structure)
    assert np.array_equal(first.texture, second.texture)
    images = [graph_input.of_frame(part(number)) for number in range(20)]
    reference = learn_reference(images, SCORES_OF_GOOD, graph_input)
    assert reference is not None
    assert reference.picture is not None
    frames = [graph_input.of_frame(shifted(part(number))) for number in range(100, 180)]
    assert [cause for cause, _ in begun(reference, frames, graph_input)] == [POSITION]


def test_an_area_without_a_whole_cell_is_not_watched() -> None:
    mask = np.zeros((128, 128), bool)
    mask[3:4, 3:9] = True
    graph_input = GraphInput(INPUT.geometry, area=InspectedArea.of_mask(mask))
    images = [part(number) for number in range(20)]
    assert learn_reference(images, SCORES_OF_GOOD, graph_input) is None


@pytest.mark.parametrize("layout", ["bgr", "mono"])
def test_frames_of_a_camera_are_measured_at_the_size_of_the_network(layout: str) -> None:
    source = SourceFrame(256, 384, layout)
    graph_input = GraphInput(INPUT.geometry, source)
    images = []
    for number in range(60):
        frame = cv2.resize(part(number), (384, 256))
        if layout == "mono":
            frame = frame[..., 1]
        images.append(graph_input.of_image(frame))
    reference = learn_reference(images[:20], SCORES_OF_GOOD, graph_input)
    assert reference is not None
    assert begun(reference, images[20:], graph_input) == []
    dark = [gain(0.6)(image) for image in images]
    assert [cause for cause, _ in begun(reference, dark, graph_input)] == [LIGHT]


# Warnings.


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (gain(0.7), LIGHT),
        (gain(1.3), LIGHT),
        (uneven, LIGHT),
        (blurred, FOCUS),
        (shifted, POSITION),
        (same, None),
    ],
)
def test_a_change_of_parts_is_named(
    placed: DriftReference, change: Change, cause: str | None
) -> None:
    frames = [change(part(number)) for number in range(100, 200)]
    expected = [] if cause is None else [cause]
    assert [name for name, _ in begun(placed, frames)] == expected


@pytest.mark.parametrize(
    ("change", "cause"), [(gain(0.7), LIGHT), (gain(1.3), LIGHT), (blurred, FOCUS), (same, None)]
)
def test_a_change_of_cloth_is_named(
    woven: DriftReference, change: Change, cause: str | None
) -> None:
    frames = [change(cloth(number)) for number in range(100, 200)]
    expected = [] if cause is None else [cause]
    assert [name for name, _ in begun(woven, frames)] == expected


def test_another_product_is_named_before_all_that_it_changes(
    placed: DriftReference, woven: DriftReference
) -> None:
    dark = [gain(0.6)(part(number, product=1)) for number in range(100)]
    assert [name for name, _ in begun(placed, dark, score=9.0)] == [PRODUCT]
    short = [cloth(number, fibre=2.0) for number in range(100)]
    assert [name for name, _ in begun(woven, short, score=9.0)] == [PRODUCT]


def test_scores_are_named_only_if_nothing_else_changed(placed: DriftReference) -> None:
    frames = [part(number) for number in range(100, 200)]
    assert [name for name, _ in begun(placed, frames, score=9.0)] == [SCORES]
    assert [name for name, _ in begun(placed, frames, score=0.1)] == [SCORES]
    dark = [gain(0.7)(frame) for frame in frames]
    assert [name for name, _ in begun(placed, dark, score=9.0)] == [LIGHT]


def test_a_warning_ends_with_its_cause_and_says_numbers_and_remedy(placed: DriftReference) -> None:
    gauge = Gauge(placed, INPUT)
    watch = DriftWatch(placed)
    texts = []
    states = []
    frames = [part(number) for number in range(100, 130)]
    frames += [gain(0.7)(part(number)) for number in range(130, 240)]
    frames += [part(number) for number in range(240, 350)]
    for frame in frames:
        texts += [change.text for change in watch.add("1", gauge.read(frame), 1.5)]
        states.append(watch.active("1"))
    begins, ends = texts
    assert begins.startswith("light: mean grey level ")
    assert "good images" in begins
    assert begins.endswith("or train with images of this light")
    assert ends.startswith("light: the last 80 frames are like the good images again: ")
    first = states.index((LIGHT,))
    last = len(states) - states[::-1].index((LIGHT,))
    assert set(states[first:last]) == {(LIGHT,)}
    assert 130 - 100 < first < 30 + WINDOW
    assert 140 < last < 140 + WINDOW


def test_each_camera_is_watched_on_its_own(placed: DriftReference) -> None:
    gauge = Gauge(placed, INPUT)
    watch = DriftWatch(placed)
    causes = {"left": [], "right": []}
    for number in range(100, 200):
        frame = part(number)
        for camera, image in (("left", frame), ("right", gain(0.6)(frame))):
            for change in watch.add(camera, gauge.read(image), 1.5):
                causes[camera].append(change.cause)
    assert causes == {"left": [], "right": [LIGHT]}
    assert watch.active("left") == ()
    assert watch.active("right") == (LIGHT,)


def test_a_part_that_stands_still_counts_once(placed: DriftReference) -> None:
    rng = np.random.default_rng(0)
    dark = gain(0.6)(part(100)).astype(np.int16)
    frames = []
    for _ in range(200):
        noise = rng.integers(-2, 3, dark.shape)
        frames.append((dark + noise).clip(0, 255).astype(np.uint8))
    assert begun(placed, frames) == []


def test_defective_parts_among_good_ones_are_no_drift(placed: DriftReference) -> None:
    frames = []
    for number in range(100, 400):
        change = gain(0.5) if number % 4 == 0 else same
        frames.append(change(part(number)))
    assert begun(placed, frames) == []


# The manifest.


@pytest.mark.parametrize("name", ["placed", "woven"])
def test_the_reference_comes_back_from_the_manifest(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    reference = request.getfixturevalue(name)
    assert reference_from_json(json.loads(json.dumps(reference.to_json()))) == reference
    bundle = write_tiny_bundle(tmp_path / "bundle", drift=reference)
    assert read_bundle(bundle.path).manifest.drift == reference


def test_a_bundle_without_the_reference_has_no_such_key(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert "drift" not in json.loads((bundle.path / "manifest.json").read_bytes())
    assert bundle.manifest.drift is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("step",), -1.0),
        (("step",), None),
        (("more",), 1),
        (("ranges", "warmth"), {}),
        (("ranges", "brightness"), 5),
        (("ranges", "brightness", "images"), 3),
        (("ranges", "brightness", "independent"), 41),
        (("ranges", "brightness", "values"), [1, 2, 3, 4]),
        (("ranges", "brightness", "values"), [1, 2, 3, 5, 4]),
        (("ranges", "brightness", "values"), [1, 2, 3, 4, True]),
        (("picture",), None),
        (("picture",), "AAAA"),
        (("picture",), "eJwDAAAAAAE="),
        (("texture",), {"mean": [], "whitening": [], "changes": []}),
        (("fineness",), None),
        (("fineness", "level"), ["1", 1]),
        (("fineness", "weights"), [1, 2, 3, 4]),
        (("fineness", "spread"), [1, 1, 0, 1, 1]),
    ],
)
def test_a_damaged_reference_is_refused(
    placed: DriftReference, path: tuple[str, ...], value: Any
) -> None:
    content = json.loads(json.dumps(placed.to_json()))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(SchemaError, match=r"^drift: "):
        reference_from_json(content)


def test_few_images_support_no_limit() -> None:
    images = [part(number) for number in range(9)]
    assert learn_reference(images[:7], SCORES_OF_GOOD, INPUT) is None
    reference = learn_reference(images[:8], SCORES_OF_GOOD[:3], INPUT)
    assert reference is not None
    assert SCORE not in reference.ranges
    assert drift_notes(reference)[0].startswith("note: drift of scores is not watched: ")


def test_notes_say_what_is_not_watched(placed: DriftReference, woven: DriftReference) -> None:
    assert drift_notes(placed) == []
    assert drift_notes(woven)[0].startswith("note: drift of position is not watched: ")
    assert drift_notes(None)[0].startswith(f"note: drift of {', '.join(CAUSES)} is not watched: ")
    assert TEXTURE in woven.ranges
    assert {QUANTITIES[name].cause for name in placed.ranges} == set(CAUSES)


def test_a_quantity_that_never_varied_has_limits(placed: DriftReference) -> None:
    still = Range.of(np.full(40, 100.0))
    reference = replace(placed, ranges={**placed.ranges, "brightness": still})
    values = {name: good.middle for name, good in reference.ranges.items() if name != SCORE}
    watch = DriftWatch(reference)
    found = []
    for number in range(100):
        picture = np.full((64, 64), 10 * (number % 2), np.uint8)
        reading = Reading({**values, "brightness": 102.5}, picture)
        found += watch.add("1", reading, 1.5)
    assert found == []


# The stream.


def test_a_stream_names_the_change_and_keeps_its_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    graph_input = GraphInput(Geometry("stretch", SIZE, SIZE))
    good = [graph_input.of_frame(part(number)) for number in range(30)]
    reference = learn_reference(good, rng.uniform(150, 255, 30), graph_input)
    bundle = write_tiny_bundle(tmp_path / "bundle", drift=reference)
    plain = write_tiny_bundle(tmp_path / "plain")
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(80):
        image = gain(0.6)(part(number + 100))
        cv2.imwrite(str(folder / f"{number:03d}.png"), image)
    words = ["--camera", str(folder), "--engine", "onnxruntime"]
    assert stream(["--bundle", str(bundle.path), *words]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    warnings = [line for line in printed.err.splitlines() if line.startswith("warning: light: ")]
    assert len(warnings) == 1
    named = [line.get("drift") for line in lines[:-1]]
    first = named.index(["light"])
    assert named == [None] * first + [["light"]] * (80 - first)
    assert lines[-1]["summary"]["drift"] == {"light": 80 - first}
    assert stream(["--bundle", str(plain.path), *words]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("is not watched") == 1
    others = [json.loads(line) for line in printed.out.splitlines()]
    assert "drift" not in others[-1]["summary"]
    for line, other in zip(lines[:-1], others[:-1], strict=True):
        assert (line["score"], line["verdict"]) == (other["score"], other["verdict"])


def test_a_calibration_replaces_the_scores_that_are_compared_with(
    tmp_path: Path, placed: DriftReference
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", drift=placed)
    assert bundle.drift == placed
    folder = write_levels(tmp_path / "good", {"": range(20, 120)}, 64)
    words = ["--bundle", str(bundle.path), "--camera", str(folder), "--engine", "onnxruntime"]
    assert calibrate(words) == 0
    changed = read_bundle(bundle.path)
    assert changed.drift is not None
    scores = changed.drift.ranges[SCORE]
    assert (scores.images, scores.middle) == (100, 69.5)
    assert {**changed.drift.ranges, SCORE: None} == {**placed.ranges, SCORE: None}
    path = bundle.path / "calibration.json"
    content = json.loads(path.read_bytes())
    content["scores"]["independent"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="scores: the numbers of images do not fit together"):
        read_bundle(bundle.path)


def test_limits_of_any_number_of_images_are_computed_quickly() -> None:
    content = {"images": 10**9, "independent": 10**9, "values": [1, 2, 3, 4, 5]}
    good = range_from_json(content, "scores")
    assert (good.counted, good.extreme) == (1000, 11)
    assert critical_count(good.counted, good.extreme, WINDOW, 1e-9) is not None


def test_the_fineness_is_compared_with_what_coarse_detail_suggests() -> None:
    rng = np.random.default_rng(0)
    structures = rng.normal(size=(200, 5))
    fine = 1 + structures @ (0.5, -0.2, 0, 0, 0.1)
    fineness = np.stack([fine, 3 - fine], 1) + rng.normal(0, 0.01, (200, 2))
    left_out = excess_of_left_out(fineness, structures)
    assert fineness.std(0).min() > 0.4
    assert np.abs(left_out[np.abs(structures).max(1) < 2.4]).max() < 0.1
    model = fit_fineness(fineness, structures)
    excess = model.excess(np.array([0.4, 2.0]), np.zeros(5))
    assert excess == pytest.approx([-0.6, 0], abs=0.05)
    # What is far from all good images suggests no more than their border does.
    far = [model.excess(np.zeros(2), np.full(5, distance)) for distance in (3.0, 1000.0)]
    assert far[0] == pytest.approx(far[1])


def test_a_small_picture_has_a_fineness() -> None:
    meter = FrameMeter(GraphInput(Geometry("stretch", 32, 32)))
    found = meter.measure(part(0)[:32, :32])
    assert np.isfinite([*found.fineness, *found.structure, *found.texture]).all()
