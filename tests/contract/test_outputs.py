"""What holds for every output. Listing an output in OUTPUTS tests it here."""

from __future__ import annotations

import dataclasses
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle

from flawline.cameras import Frame
from flawline.options import field_parser, parse_options
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import (
    OUTPUTS,
    Judgement,
    Output,
    OutputError,
    OutputOptions,
    missing,
    open_output,
    output_class,
)
from flawline.runtime.verdict import Verdict

pytestmark = pytest.mark.parametrize("name", OUTPUTS)
IMAGE = np.full((48, 64, 3), 120, np.uint8)
SUMMARY = {"frames": 3, "fps": 10.0, "p50_ms": None}


def judgement(kind: str) -> Judgement:
    if kind == "faulty":
        frame = Frame("line", 7, None, fault="incomplete buffer")
        verdict = Verdict(math.nan, 100.0, True, None, {}, "incomplete buffer")
        return Judgement(frame, verdict, 10.0)
    if kind == "not finite":
        reason = "the score is nan: the part is rejected"
        verdict = Verdict(math.nan, 100.0, True, np.zeros((64, 64), np.float32), {}, reason)
        return Judgement(Frame("line", 7, IMAGE), verdict, 10.0)
    if kind == "review":
        anomaly_map = np.full((64, 64), 90, np.float32)
        verdict = Verdict(90.0, 100.0, False, anomaly_map, {}, None, 80.0)
        return Judgement(Frame("line", 7, IMAGE), verdict, 10.0)
    anomalous = kind == "anomalous"
    anomaly_map = np.full((64, 64), 120, np.float32)
    milliseconds = {"prepare": 1.0, "infer": 2.0}
    verdict = Verdict(120.0, 100.0 + 50 * (not anomalous), anomalous, anomaly_map, milliseconds)
    return Judgement(Frame("line", 7, IMAGE), verdict, 10.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.fixture
def output(name: str, bundle: Bundle, folder: Path) -> Iterator[Output]:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    target = output_class(name).example(folder)
    if target is None:
        pytest.skip(f"{name} needs hardware or a network")
    output = open_output(f"{name}:{target}", bundle)
    yield output
    output.close()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_class_declares_what_it_is(name: str) -> None:
    output = output_class(name)
    assert issubclass(output, Output)
    assert isinstance(output.required, bool)
    assert output.untested is None or output.untested
    assert isinstance(output.usage, str)
    assert output.__doc__


def test_missing_answers_with_a_remedy_or_nothing(name: str) -> None:
    reason = missing(name)
    assert reason is None or (reason and "\n" not in reason)


def test_every_option_has_a_type_a_default_and_a_help_text(name: str) -> None:
    record = output_class(name).Options
    assert issubclass(record, OutputOptions)
    assert record() == parse_options(record, {})
    for field in dataclasses.fields(record):
        assert field.metadata["help"]
        assert callable(field_parser(record, field.name))


@pytest.mark.parametrize("kind", ["good", "review", "anomalous", "faulty", "not finite"])
def test_judgements_of_every_kind_are_delivered(name: str, output: Output, kind: str) -> None:
    output.write(judgement(kind))
    output.finish(SUMMARY)


def test_a_judgement_is_not_changed(name: str, output: Output) -> None:
    anomalous = judgement("anomalous")
    assert anomalous.verdict.anomaly_map is not None
    anomaly_map = anomalous.verdict.anomaly_map.copy()
    image = IMAGE.copy()
    output.write(anomalous)
    output.totals()
    np.testing.assert_array_equal(anomalous.verdict.anomaly_map, anomaly_map)
    np.testing.assert_array_equal(IMAGE, image)


def test_the_map_may_be_overwritten_after_the_call(name: str, output: Output, folder: Path) -> None:
    """The engine does so for the next frame."""
    anomalous = judgement("anomalous")
    assert anomalous.verdict.anomaly_map is not None
    output.write(anomalous)
    anomalous.verdict.anomaly_map[:] = 0
    output.write(judgement("anomalous"))
    output.close()
    images = [path.read_bytes() for path in folder.rglob("*.png")]
    assert len(set(images)) <= 1


def test_nothing_of_the_bundle_before_is_kept(
    name: str, output: Output, bundle: Bundle, tmp_path: Path
) -> None:
    output.write(judgement("anomalous"))
    # A field of the graph that changes nothing but its hash.
    other = write_tiny_bundle(tmp_path / "other", tiny_model() + b"\x32\x01x", method="padim")
    before = (bundle, bundle.short_id, bundle.manifest)
    output.change_bundle(other)
    kept = []
    for attribute, value in vars(output).items():
        values = {attribute: value, **getattr(value, "__dict__", {})}
        kept += [inner for inner, found in values.items() if found in before]
    assert not kept
    output.write(judgement("anomalous"))
    output.finish(SUMMARY)


def test_totals_are_counts(name: str, output: Output) -> None:
    output.write(judgement("good"))
    totals = output.totals()
    assert all(isinstance(count, int) and count >= 0 for count in totals.values())
    assert output.totals() == totals


def test_the_state_is_known_at_any_time(name: str, output: Output) -> None:
    for kind in ("good", "anomalous"):
        state = output.state()
        assert all(isinstance(count, int) and count >= 0 for count in state.counts.values())
        assert state.fault is None or (state.fault and "\n" not in state.fault)
        output.write(judgement(kind))
    assert output.description.partition(":")[0] == name


def test_closing_twice_is_allowed(name: str, output: Output) -> None:
    output.write(judgement("good"))
    output.close()
    output.close()


def test_closing_before_the_first_judgement_is_allowed(name: str, output: Output) -> None:
    output.close()


def test_a_full_disk_is_one_clear_error(name: str, output: Output, folder: Path) -> None:
    """An output that writes no files is not affected, and no unreadable image stays."""
    error: OutputError | None = None
    with full_disk():
        try:
            output.write(judgement("anomalous"))
            # An output that delivers later does so now.
            output.totals()
            output.finish(SUMMARY)
        except OutputError as caught:
            error = caught
    if error is not None:
        assert "File too large" in str(error)
        assert "\n" not in str(error)
    assert not list(folder.rglob("*.png"))
    # What follows the error must not raise another one.
    output.finish(SUMMARY)
    output.close()


def test_images_are_never_written_to_the_cameras_folder(
    name: str, bundle: Bundle, folder: Path
) -> None:
    target = output_class(name).example(folder)
    if target is None or output_class(name).image_folder(target) is None:
        pytest.skip("writes no images")
    open_output(f"{name}:{target}", bundle, folder / "elsewhere").close()
    with pytest.raises(OutputError, match="is inside the camera's folder"):
        open_output(f"{name}:{target}", bundle, folder)


def test_a_target_that_cannot_be_written_is_one_clear_error(name: str, bundle: Bundle) -> None:
    if missing(name) is not None:
        pytest.skip("cannot be used here")
    reason = ""
    try:
        open_output(f"{name}:/proc/no/such/target", bundle).close()
    except OutputError as error:
        reason = str(error)
    assert "\n" not in reason
