"""A bundle at a watched path is taken when it is whole, however it came there."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes.clock import FakeClock
from fakes.live_camera import WAIT_S

from flawline import FlawlineError
from flawline.runtime.bundle import (
    Bundle,
    BundleError,
    add_model,
    read_bundle,
    write_bundle,
    write_calibration,
)
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.station.bundle_watch import (
    DAMAGED_S,
    UNLOGGED_S,
    BundleOffers,
    WatchedBundle,
)
from flawline.runtime.station.judge import Exchange, Judge
from flawline.runtime.undo import undo_calibration

# A field of the graph that changes nothing but its hash.
DOC_STRING = b"\x32\x01x"


@pytest.fixture
def other(tmp_path: Path) -> Bundle:
    """Another bundle, with another threshold."""
    made = write_tiny_bundle(tmp_path / "other", tiny_model() + DOC_STRING)
    write_calibration(made, replace(made.calibration, threshold=60.0))
    return read_bundle(made.path)


class Watch:
    """A watched path, and a clock that is one second later at each look."""

    def __init__(self, path: Path, read: Callable[[Path], Bundle] = read_bundle) -> None:
        self.clock = FakeClock()
        self.watched = WatchedBundle(path, read, self.clock.monotonic)

    def look(self) -> Bundle | FlawlineError | None:
        self.clock.advance(1.0)
        return self.watched.look()

    def found(self, seconds: float = 1.0) -> Bundle | FlawlineError | None:
        """Look at a change, and for so many seconds after it; return what is found at the end."""
        assert self.look() is None
        for _ in range(int(seconds) - 1):
            assert self.look() is None
        found = self.look()
        assert self.look() is None
        return found


def put(other: Bundle, path: Path) -> None:
    """Let another bundle take the place of the one at a path, as `replace_folder` does."""
    old = path.with_name("old")
    os.replace(path, old)
    shutil.copytree(other.path, path.with_name("new"))
    os.replace(path.with_name("new"), path)
    shutil.rmtree(old)


def threshold_of(found: object) -> float:
    assert isinstance(found, Bundle), found
    return found.calibration.threshold


def test_a_folder_that_takes_its_place_is_found_at_once(bundle: Bundle, other: Bundle) -> None:
    watch = Watch(bundle.path)
    assert watch.look() is None
    put(other, bundle.path)
    found = watch.found()
    assert isinstance(found, Bundle)
    assert found.is_same(other)
    assert not found.is_same(bundle)


def test_a_link_that_leads_elsewhere_is_found(bundle: Bundle, other: Bundle) -> None:
    link = bundle.path.with_name("link")
    link.symlink_to(bundle.path)
    watch = Watch(link)
    assert watch.look() is None
    second = link.with_name("second")
    second.symlink_to(other.path)
    os.replace(second, link)
    assert threshold_of(watch.found()) == 60


def test_a_new_threshold_and_its_undoing_are_found(bundle: Bundle) -> None:
    watch = Watch(bundle.path)
    write_calibration(bundle, replace(bundle.calibration, threshold=70.0))
    assert threshold_of(watch.found()) == 70
    undo_calibration(bundle.path)
    assert threshold_of(watch.found()) == 100


def test_a_further_precision_is_found(bundle: Bundle) -> None:
    watch = Watch(bundle.path)
    add_model(bundle, "int8", tiny_model())
    found = watch.found()
    assert isinstance(found, Bundle)
    assert found.precisions == ("fp32", "int8")


def test_an_edited_threshold_is_found_a_little_later(bundle: Bundle) -> None:
    watch = Watch(bundle.path)
    path = bundle.path / "calibration.json"
    path.write_text(path.read_text().replace("100.0", "80.0"))
    assert threshold_of(watch.found(UNLOGGED_S)) == 80


@pytest.mark.parametrize("with_log", [True, False])
@pytest.mark.parametrize("last", ["calibration.json", "manifest.json", "model.onnx", "golden.npz"])
def test_a_copy_is_found_when_it_is_complete(
    last: str, with_log: bool, bundle: Bundle, tmp_path: Path
) -> None:
    other = write_bundle(
        tmp_path / "other",
        replace(bundle.manifest, provenance={"data": "other"}),
        replace(bundle.calibration, threshold=60.0),
        {"fp32": tiny_model() + DOC_STRING},
        replace(bundle.golden(), images=bundle.golden().images[:1], **first_of(bundle)),
    )
    watch = Watch(bundle.path)
    names = sorted(path.name for path in other.path.iterdir())
    names.remove(last)
    if not with_log:
        names.remove("audit.jsonl")
        (bundle.path / "audit.jsonl").unlink()
    for name in [*names, last]:
        data = (other.path / name).read_bytes()
        # As cp, which writes the old file, and as rsync, which writes another one beside it.
        with (bundle.path / name).open("wb") as file:
            file.write(data[:10])
            file.flush()
            assert watch.look() is None
            assert watch.look() is None
        copy = bundle.path / f".{name}.Xy3"
        copy.write_bytes(data[: len(data) // 2])
        assert watch.look() is None
        copy.write_bytes(data)
        os.replace(copy, bundle.path / name)
        if name != last:
            assert watch.look() is None
            assert watch.look() is None
    found = watch.found(1 if with_log else UNLOGGED_S)
    assert isinstance(found, Bundle)
    assert found.is_same(other)


def first_of(bundle: Bundle) -> dict[str, object]:
    golden = bundle.golden()
    return {"scores": golden.scores[:1], "maps": golden.maps[:1]}


def test_a_slow_copy_beside_the_file_is_waited_for(bundle: Bundle) -> None:
    watch = Watch(bundle.path)
    bundle.model().write_bytes(b"of another bundle")
    part = bundle.path / ".golden.npz.Kq2"
    for size in range(3 * int(DAMAGED_S)):
        part.write_bytes(bytes(size))
        assert watch.look() is None


def test_what_stays_damaged_is_said_once(bundle: Bundle, other: Bundle) -> None:
    watch = Watch(bundle.path)
    model = bundle.model().read_bytes()
    bundle.model().write_bytes(model[:-1])
    found = watch.found(DAMAGED_S)
    assert isinstance(found, BundleError)
    assert "model.onnx is not the file that was built" in str(found)
    for _ in range(int(3 * DAMAGED_S)):
        assert watch.look() is None
    bundle.model().write_bytes(model)
    assert threshold_of(watch.found()) == 100


def test_a_folder_that_is_gone_is_said_once(bundle: Bundle, other: Bundle) -> None:
    watch = Watch(bundle.path)
    shutil.rmtree(bundle.path)
    assert "there is no such folder" in str(watch.found(DAMAGED_S))
    shutil.copytree(other.path, bundle.path)
    assert threshold_of(watch.found()) == 60


def test_other_files_in_the_folder_are_no_change(bundle: Bundle) -> None:
    watch = Watch(bundle.path)
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines" / "choice.json").write_text("{}")
    (bundle.path / "lines.jsonl").write_text("{}\n")
    read = watch.watched._try_to_read
    watch.watched._try_to_read = lambda: pytest.fail("nothing changed")  # type: ignore[method-assign]
    for _ in range(5):
        assert watch.look() is None
    watch.watched._try_to_read = read  # type: ignore[method-assign]


def test_what_changes_while_it_is_read_is_read_again(bundle: Bundle, other: Bundle) -> None:
    reads = []

    def read(path: Path) -> Bundle:
        found = read_bundle(path)
        if not reads:
            put(other, path)
        reads.append(found)
        return found

    watch = Watch(bundle.path, read)
    os.utime(bundle.path / "manifest.json")
    assert watch.look() is None
    assert watch.look() is None
    assert threshold_of(watch.look()) == 60
    assert len(reads) == 2


def test_an_unexpected_failure_does_not_end_the_thread(bundle: Bundle) -> None:
    def read(path: Path) -> Bundle:
        raise RecursionError("too\ndeep")

    watch = Watch(bundle.path, read)
    os.utime(bundle.path / "manifest.json")
    found = watch.found(DAMAGED_S)
    assert str(found) == f"bundle {bundle.path}: RecursionError: too; copy it again"


class Stream:
    """The exchange of a stream on a bundle, and what is offered to it."""

    def __init__(self, bundle: Bundle, exchange: Exchange) -> None:
        self.bundle = bundle
        self.exchange = exchange
        self.refused: list[str] = []
        self.opened: list[Bundle] = []
        self.before: Callable[[], None] = lambda: None
        self.watch = Watch(bundle.path)
        self.offers = BundleOffers(
            self.watch.watched, exchange, bundle, self.open, self._note_refusal
        )

    def open(self, bundle: Bundle) -> Judge:
        self.opened.append(bundle)
        self.before()
        return Judge(Detector(bundle, "onnxruntime"))

    def _note_refusal(self, error: FlawlineError) -> None:
        self.refused.append(str(error))

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.watch.clock.advance(1.0)
            self.offers.look()

    def idle(self) -> None:
        """Wait until the thread of the exchange has opened what was offered last."""
        done = threading.Event()

        def last() -> Judge:
            done.set()
            raise FlawlineError("no bundle; continue")

        self.exchange.offer(last)
        assert done.wait(WAIT_S)


@pytest.fixture
def stream(bundle: Bundle) -> object:
    with Exchange(Judge(Detector(bundle, "onnxruntime"))) as exchange:
        yield Stream(bundle, exchange)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(100 * WAIT_S)):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it has not happened")


def test_another_bundle_is_offered_and_the_same_is_not(stream: Stream, other: Bundle) -> None:
    os.utime(stream.bundle.path / "manifest.json")
    stream.look(5)
    assert not stream.opened
    put(other, stream.bundle.path)
    stream.look()
    wait_until(lambda: stream.exchange.is_due)
    judge = stream.exchange.take()
    assert judge.detector.threshold == 60
    assert judge.detector.bundle.is_same(other)
    os.utime(stream.bundle.path / "manifest.json")
    stream.look(5)
    assert len(stream.opened) == 1


def test_a_bundle_that_fails_is_tried_again_after_a_change(
    stream: Stream, other: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise EngineError("the self-test fails; build the bundle again")

    stream.before = fail
    put(other, stream.bundle.path)
    stream.look()
    wait_until(lambda: len(stream.refused) == 1)
    stream.look(30)
    assert len(stream.opened) == 1
    stream.before = lambda: None
    os.utime(stream.bundle.path / "manifest.json")
    stream.look()
    wait_until(lambda: stream.exchange.is_due)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the self-test fails; build the bundle again; refused, and inspection")


def test_a_damaged_bundle_is_refused_in_one_line(
    stream: Stream, capsys: pytest.CaptureFixture[str]
) -> None:
    stream.bundle.model().write_bytes(b"")
    stream.look(30)
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.onnx is not the file that was built" in line
    assert "inspection continues with bundle" in line
    assert len(stream.refused) == 1
    assert not stream.opened


def test_what_was_replaced_while_it_was_opened_is_no_refusal(
    stream: Stream, other: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    first = read_bundle(stream.bundle.path)
    stream.before = lambda: put(first, stream.bundle.path)
    shutil.copytree(first.path, first.path.with_name("first"))
    first = read_bundle(first.path.with_name("first"))
    put(other, stream.bundle.path)
    stream.look()
    # The files of the other one are gone before its engine reads them.
    wait_until(lambda: len(stream.opened) == 1)
    stream.before = lambda: None
    stream.idle()
    stream.look(3)
    wait_until(lambda: stream.exchange.is_due)
    assert stream.exchange.take().detector.threshold == 100
    assert not stream.refused
    assert "replaced while" not in capsys.readouterr().err


def test_an_engine_opens_the_files_that_were_checked(bundle: Bundle, other: Bundle) -> None:
    put(other, bundle.path)
    with pytest.raises(BundleError, match=r"model.onnx was replaced while the bundle was opened"):
        Detector(bundle, "onnxruntime")
    calibration = json.loads((bundle.path / "calibration.json").read_text())
    assert calibration["threshold"] == 60
