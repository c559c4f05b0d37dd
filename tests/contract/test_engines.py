"""What holds for every engine. Listing an engine in ENGINES tests it here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import SIZE, SOURCE, source_frames, tiny_model, write_source_bundle, write_tiny_bundle
from fakes.kserve_server import KServeServer

from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.cores import allowed_cores
from flawline.runtime.engines import (
    ENGINES,
    Engine,
    EngineError,
    EngineOptions,
    engine_class,
    engines_of_machine,
    missing,
    open_engine,
    require_usable,
    self_test,
    unusable_here,
)
from flawline.runtime.engines.choice import (
    Choice,
    Figure,
    current_conditions,
    record_path,
    write_choice,
)
from flawline.runtime.image import Geometry, prepare
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.tile_runner import TileRunner
from flawline.runtime.tiles import TileGrid, Tiling

pytestmark = pytest.mark.parametrize("name", ENGINES)
# What plays the server of an engine that needs one.
SERVERS = {"kserve": KServeServer}
OptionsFor = Callable[..., EngineOptions]


@pytest.fixture
def options_for(name: str) -> Iterator[OptionsFor]:
    """Return the options that open an engine for a bundle, with a server where it needs one."""
    servers = []

    def options(bundle: Bundle, **values: Any) -> EngineOptions:
        if not engine_class(name).needs_server:
            return EngineOptions(**values)
        if name not in SERVERS:
            pytest.skip(f"no server for {name} in tests/contract/test_engines.py")
        servers.append(SERVERS[name](bundle))
        return EngineOptions(**values, server=servers[-1].patient_uri)

    yield options
    for server in servers:
        server.kill()


@pytest.fixture
def full_bundle(bundle: Bundle) -> Bundle:
    """A bundle with a graph of every precision; the tiny graph computes the same in all of them."""
    graph = bundle.model().read_bytes()
    for precision in PRECISIONS.values():
        if precision.file not in (None, "model.onnx"):
            bundle = add_model(bundle, precision.name, graph)
    return bundle


@pytest.fixture
def engine(name: str, full_bundle: Bundle, options_for: OptionsFor) -> Iterator[Engine]:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    engine = open_engine(full_bundle, name, options_for(full_bundle, threads=1))
    yield engine
    engine.close()


@pytest.fixture(params=["one after the other", "streams"])
def submitting(
    request: pytest.FixtureRequest, name: str, full_bundle: Bundle, options_for: OptionsFor
) -> Iterator[Engine]:
    """An engine without streams, and with them where it offers them."""
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    if request.param == "streams":
        if not engine_class(name).offers_streams:
            pytest.skip("offers no streams")
        options = options_for(full_bundle, streams=min(2, allowed_cores()))
    else:
        options = options_for(full_bundle, threads=1)
    engine = open_engine(full_bundle, name, options)
    yield engine
    engine.close()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def expected_maps(image: np.ndarray) -> np.ndarray:
    """The tiny graph: the map is the mean over the colours, the score its maximum."""
    return image.astype(np.float32).mean(-1)


def test_the_class_declares_what_it_can_do(name: str) -> None:
    engine = engine_class(name)
    assert issubclass(engine, Engine)
    assert engine.precisions
    assert set(engine.precisions) <= set(PRECISIONS)
    assert isinstance(engine.compiles, bool)
    assert engine.untested is None or engine.untested
    assert engine.__doc__


def test_missing_answers_with_a_remedy_or_nothing(name: str) -> None:
    reason = missing(name)
    if reason is None:
        assert require_usable(name) is engine_class(name)
        return
    assert reason
    assert "\n" not in reason
    with pytest.raises(EngineError, match=re.escape(f"engine {name}: {reason}")):
        require_usable(name)


def test_another_engine_never_takes_the_place_of_a_named_one(name: str, bundle: Bundle) -> None:
    """As a runtime does that continues on the CPU, with a warning, where there is no GPU."""
    reason = missing(name)
    if reason is None:
        pytest.skip("can be used here")
    with pytest.raises(EngineError, match=re.escape(f"engine {name}: {reason}")):
        open_engine(bundle, name)


def test_the_build_flags_are_read_by_the_engine_that_has_them(name: str) -> None:
    engine = engine_class(name)
    parser = argparse.ArgumentParser()
    # Other engines may have the same flags.
    group = parser.add_argument_group("build", conflict_handler="resolve")
    engine.add_build_arguments(group)
    engine.add_build_arguments(group)
    args = parser.parse_args([])
    # Otherwise a flag that was given could not be distinguished from one that was not.
    assert set(vars(args).values()) <= {None}
    engine.build_options(args)
    if vars(args):
        assert engine.compiles
    assert "build" in parser.format_help() or not vars(args)


def test_an_engine_that_compiles_nothing_says_so(name: str, bundle: Bundle) -> None:
    engine = engine_class(name)
    if engine.compiles:
        pytest.skip("compiles plans")
    with pytest.raises(EngineError, match="compiles no plans"):
        engine.build(bundle, engine.precisions[0])


def test_the_self_test_passes(name: str, engine: Engine, full_bundle: Bundle) -> None:
    assert self_test(engine, full_bundle) <= full_bundle.manifest.score_tolerance


def test_every_precision_opens_or_says_why_not(
    name: str, full_bundle: Bundle, options_for: OptionsFor
) -> None:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    for precision in engine_class(name).precisions:
        options = options_for(full_bundle, threads=1, precision=precision)
        unsuited = engine_class(name).unsuited(precision)
        reason = None
        try:
            engine = open_engine(full_bundle, name, options)
        except EngineError as error:
            reason = str(error)
        if reason is None:
            assert engine.precision == precision
            engine.close()
        else:
            assert "\n" not in reason
        # `flawline doctor` lists what opens.
        assert reason == unsuited


@pytest.mark.parametrize("count", [1, 3])
def test_batches_have_a_score_and_a_map_per_image(name: str, engine: Engine, count: int) -> None:
    image = images(count)
    scores, maps = engine(image)
    assert scores.shape == (count,)
    assert maps.shape == (count, SIZE, SIZE)
    assert scores.dtype == maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected_maps(image), atol=0.01)
    np.testing.assert_allclose(scores, expected_maps(image).max((1, 2)), atol=0.01)


def test_batch_sizes_may_alternate(name: str, engine: Engine) -> None:
    for count in (1, 3, 1, 2, 3):
        image = images(count)
        scores, maps = engine(image)
        np.testing.assert_allclose(maps, expected_maps(image), atol=0.01)
        assert scores.shape == (count,)


def test_the_next_image_does_not_get_the_results_of_the_last(name: str, engine: Engine) -> None:
    first = images(1)
    copied = engine(first)[1].copy()
    second = engine(255 - first)[1]
    np.testing.assert_allclose(second, expected_maps(255 - first), atol=0.01)
    np.testing.assert_allclose(copied, expected_maps(first), atol=0.01)


def test_an_image_that_is_not_contiguous_is_accepted(name: str, engine: Engine) -> None:
    image = images(1)
    mirrored = engine(image[:, :, ::-1])[1]
    np.testing.assert_allclose(mirrored[:, :, ::-1], expected_maps(image), atol=0.01)


def test_the_description_names_library_version_and_precision(name: str, engine: Engine) -> None:
    assert engine.precision in engine.description
    assert re.match(r"[a-z-]+ \d+\.\d+", engine.description)
    assert "\n" not in engine.description


def test_the_installed_state_is_one_line_and_the_same_at_every_question(name: str) -> None:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    installed = engine_class(name).installed()
    assert installed
    assert installed.isprintable()
    assert engine_class(name).installed() == installed


def test_the_default_precision_needs_no_threshold_of_its_own(name: str) -> None:
    assert not PRECISIONS[engine_class(name).precisions[0]].lossy


def test_auto_opens_the_engine_that_was_measured_as_fastest(
    name: str, full_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = unusable_here(name)
    if reason is not None:
        pytest.skip(reason)
    usable = engines_of_machine().usable
    figures = []
    for other, kind in usable.items():
        figures.append(Figure(other, kind.precisions[0], 1.0 if other == name else 2.0))
    options = EngineOptions(threads=1)
    conditions = current_conditions(full_bundle, options.threads, usable)
    path = record_path(full_bundle, options)
    path.parent.mkdir(exist_ok=True)
    write_choice(path, Choice(tuple(figures), conditions))
    engine = open_engine(full_bundle, "auto", options)
    engine.close()
    assert (engine.name, engine.precision) == (name, usable[name].precisions[0])
    assert f"auto takes {name} " in capsys.readouterr().err


def test_closing_twice_is_allowed_and_results_stay_readable(name: str, engine: Engine) -> None:
    image = images(1)
    maps = engine(image)[1]
    engine.close()
    engine.close()
    np.testing.assert_allclose(maps, expected_maps(image), atol=0.01)


def test_a_closed_engine_judges_nothing(name: str, engine: Engine) -> None:
    engine(images(1))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine(images(1))


def test_a_bundle_for_the_score_alone_has_no_map(
    name: str, tmp_path: Path, options_for: OptionsFor
) -> None:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    onnx = pytest.importorskip("onnx", reason="needs the train extra")
    model = onnx.load_from_string(tiny_model())
    del model.graph.output[1]
    bundle = write_tiny_bundle(tmp_path / "scores", model.SerializeToString(), outputs=("score",))
    engine = open_engine(bundle, name, options_for(bundle, threads=1))
    image = images(3)
    scores, maps = engine(image)
    assert maps.shape == (3, 0, 0)
    np.testing.assert_allclose(scores, expected_maps(image).max((1, 2)), atol=0.01)
    engine.close()


def test_a_graph_that_takes_frames_prepares_them_exactly_in_every_precision(
    name: str, tmp_path: Path, options_for: OptionsFor
) -> None:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    bundle = write_source_bundle(tmp_path / "b")
    frames = source_frames(2)
    expected = []
    for frame in frames:
        prepared = prepare(SOURCE.picture(frame), bundle.manifest.geometry)
        expected.append(expected_maps(prepared))
    for precision in engine_class(name).precisions:
        if not bundle.has_graph(precision):
            bundle = add_model(bundle, precision, bundle.model().read_bytes())
        reason = None
        try:
            options = options_for(bundle, threads=1, precision=precision)
            engine = open_engine(bundle, name, options)
        except EngineError as error:
            reason = str(error)
        if reason is not None:
            assert "no native BF16" in reason
            continue
        for count in (1, 2):
            scores, maps = engine(frames[:count])
            assert np.abs(maps - expected[:count]).max() <= bundle.manifest.map_tolerance
            assert scores.tolist() == maps.max((1, 2)).tolist()
        engine.submit(frames)
        assert np.abs(engine.result()[1] - expected).max() <= bundle.manifest.map_tolerance
        engine.close()


def test_an_engine_without_streams_says_so(name: str, full_bundle: Bundle) -> None:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    if engine_class(name).offers_streams:
        with pytest.raises(EngineError, match=r"^--streams 0 is not at least 1; leave it out"):
            EngineOptions(streams=0)
        return
    with pytest.raises(EngineError, match=r"has no streams; leave --streams out, or choose --e"):
        open_engine(full_bundle, name, EngineOptions(threads=1, streams=2))


def test_an_engine_without_its_server_says_so(name: str, bundle: Bundle) -> None:
    reason = missing(name)
    if reason is not None:
        pytest.skip(reason)
    if engine_class(name).needs_server:
        assert name not in engines_of_machine().usable
        with pytest.raises(EngineError, match=f"engine {name} computes on a server; give its add"):
            open_engine(bundle, name)
        return
    server = EngineOptions(server="grpc://127.0.0.1:9/part")
    with pytest.raises(EngineError, match=f"--engine {name} computes on this machine; leave --se"):
        open_engine(bundle, name, server)


def test_results_come_in_the_order_of_the_batches(name: str, submitting: Engine) -> None:
    room = submitting.in_flight
    # Batches of several sizes, more than fit at once.
    batches = [images(1 + number % 3) // (number + 1) for number in range(3 * room + 1)]
    waiting: list[np.ndarray] = []

    def check_oldest() -> None:
        image = waiting.pop(0)
        scores, maps = submitting.result()
        np.testing.assert_allclose(maps, expected_maps(image), atol=0.01)
        np.testing.assert_allclose(scores, expected_maps(image).max((1, 2)), atol=0.01)

    for image in batches:
        if len(waiting) == room:
            check_oldest()
        submitting.submit(image)
        waiting.append(image)
    while waiting:
        check_oldest()


def test_tiles_of_frames_in_flight_are_joined_in_their_order(name: str, submitting: Engine) -> None:
    grid = TileGrid(Tiling(3, 2), Geometry("stretch", SIZE, SIZE))
    shape = (grid.geometry.height, grid.geometry.width, 3)
    runner = TileRunner(submitting, grid)
    assert runner.in_flight == submitting.in_flight
    rng = np.random.default_rng(2)
    batches = []
    for number in range(runner.in_flight):
        batches.append(rng.integers(0, 256, (1 + number % 2, *shape), dtype=np.uint8))
    for _ in range(2):
        for batch in batches:
            runner.submit(batch)
        for batch in batches:
            scores, maps = runner.result()
            np.testing.assert_allclose(maps, expected_maps(batch), atol=0.01)
            np.testing.assert_allclose(scores, expected_maps(batch).max((1, 2)), atol=0.01)
    with pytest.raises(RuntimeError, match="no batch was submitted"):
        runner.result()


def test_a_submitted_image_need_not_be_kept(name: str, submitting: Engine) -> None:
    for _ in range(submitting.in_flight):
        # A view that is not contiguous, and that nothing else refers to.
        submitting.submit(images(1)[:, :, ::-1])
    for _ in range(submitting.in_flight):
        maps = submitting.result()[1]
        np.testing.assert_allclose(maps, expected_maps(images(1)[:, :, ::-1]), atol=0.01)


def test_batches_and_results_in_the_wrong_order_are_refused(name: str, submitting: Engine) -> None:
    with pytest.raises(RuntimeError, match="no batch was submitted"):
        submitting.result()
    for _ in range(submitting.in_flight):
        submitting.submit(images(1))
    with pytest.raises(RuntimeError, match="not taken"):
        submitting.submit(images(1))
    for _ in range(submitting.in_flight):
        submitting.result()
    np.testing.assert_allclose(submitting(images(2))[1], expected_maps(images(2)), atol=0.01)


def test_an_engine_is_closed_with_batches_in_flight(name: str, submitting: Engine) -> None:
    image = images(1)
    maps = submitting(image)[1].copy()
    for _ in range(submitting.in_flight):
        submitting.submit(image)
    submitting.close()
    submitting.close()
    np.testing.assert_allclose(maps, expected_maps(image), atol=0.01)


class OtherLibrary:
    """An array of another library, which numpy knows only through DLPack."""

    def __init__(self, values: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self._values = values
        self._device = device
        self.shape = values.shape

    def __len__(self) -> int:
        return len(self._values)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **options: object) -> object:
        return self._values.__dlpack__()


def test_an_array_of_another_library_in_host_memory_is_accepted(
    name: str, submitting: Engine
) -> None:
    given: list[Any] = [OtherLibrary(images(2)), OtherLibrary(images(2)[:, ::-1])]
    for array in given:
        expected = expected_maps(array._values)
        np.testing.assert_allclose(submitting(array)[1], expected, atol=0.01)
        submitting.submit(array)
        np.testing.assert_allclose(submitting.result()[1], expected, atol=0.01)


def test_an_image_that_is_read_only_is_accepted(name: str, submitting: Engine) -> None:
    image = images(2)
    image.flags.writeable = False
    np.testing.assert_allclose(submitting(image)[1], expected_maps(image), atol=0.01)


def test_an_image_that_is_not_uint8_is_refused(name: str, submitting: Engine) -> None:
    for given in (images(1).astype(np.float32), OtherLibrary(images(1).astype(np.int8))):
        with pytest.raises(ValueError, match=r"^the image is (float32|int8), not uint8$"):
            submitting(given)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not uint8"):
            submitting.submit(given)  # type: ignore[arg-type]
    np.testing.assert_allclose(submitting(images(1))[1], expected_maps(images(1)), atol=0.01)


@pytest.mark.parametrize(
    "shape", [(1, SIZE, SIZE, 4), (1, SIZE // 2, SIZE, 3), (1, 3, SIZE, SIZE), (SIZE, SIZE, 3)]
)
def test_an_image_of_another_shape_is_refused_with_that_of_the_graph(
    name: str, submitting: Engine, shape: tuple[int, ...]
) -> None:
    message = f"the image is {list(shape)}, and this graph takes [N, {SIZE}, {SIZE}, 3]"
    with pytest.raises(ValueError, match=re.escape(message)):
        submitting(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=re.escape(message)):
        submitting.submit(np.zeros(shape, np.uint8))
    np.testing.assert_allclose(submitting(images(1))[1], expected_maps(images(1)), atol=0.01)


def test_an_engine_without_device_memory_says_so(name: str, engine: Engine) -> None:
    if engine.has_device_memory:
        pytest.skip("has device memory")

    class Interface:
        __cuda_array_interface__: ClassVar[dict[str, Any]] = {"shape": (1, SIZE, SIZE, 3)}

    for given in (OtherLibrary(images(1), (2, 0)), Interface()):
        with pytest.raises(EngineError, match=r"in the memory of a device, and this .*; copy it"):
            engine(given)  # type: ignore[arg-type]
    engine(images(1))
    with pytest.raises(EngineError, match="keeps its maps in host memory; take those that it ret"):
        engine.device_map()
