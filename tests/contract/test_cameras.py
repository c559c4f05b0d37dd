"""What holds for every camera. Listing a camera in CAMERAS tests it here.

`Camera.example` gives a URI that works without hardware, `Camera.broken_example` one that does not
work.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from flawline.cameras import (
    CAMERAS,
    Camera,
    CameraError,
    CameraOptions,
    Frame,
    camera_class,
    missing,
    open_camera,
)
from flawline.options import describe_options, field_parser, parse_options

pytestmark = pytest.mark.parametrize("scheme", CAMERAS)
WAIT_S = 10.0


@pytest.fixture
def example(scheme: str, tmp_path: Path) -> str:
    """A URI that works here; skips the test if there is none."""
    reason = missing(scheme)
    if reason is not None:
        pytest.skip(reason)
    uri = camera_class(scheme).example(tmp_path)
    if uri is None:
        pytest.skip(f"{scheme} needs hardware or a server")
    return uri


def test_the_class_declares_what_it_is(scheme: str) -> None:
    camera = camera_class(scheme)
    assert issubclass(camera, Camera)
    assert isinstance(camera.live, bool)
    assert camera.untested is None or camera.untested
    assert isinstance(camera.usage, str)
    assert camera.__doc__


def test_missing_answers_with_a_remedy_or_nothing(scheme: str) -> None:
    reason = missing(scheme)
    assert reason is None or (reason and "\n" not in reason)


def test_every_option_has_a_type_a_default_and_a_help_text(scheme: str) -> None:
    record = camera_class(scheme).Options
    assert issubclass(record, CameraOptions)
    assert record() == parse_options(record, {})
    for field in dataclasses.fields(record):
        assert field.metadata["help"]
        assert callable(field_parser(record, field.name))
        assert f"{field.name} (" in describe_options(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().source = "x"  # type: ignore[attr-defined]


def test_an_unknown_option_is_an_error_that_names_the_known_ones(scheme: str) -> None:
    if missing(scheme) is not None:
        pytest.skip("cannot be used here")
    with pytest.raises(CameraError) as caught:
        open_camera(f"{scheme}://x?no_such_option=1")
    message = str(caught.value)
    assert "no_such_option" in message
    assert "\n" not in message
    for field in dataclasses.fields(camera_class(scheme).Options):
        assert field.name in message


def test_a_wrong_value_is_an_error_that_names_the_option(scheme: str) -> None:
    if missing(scheme) is not None:
        pytest.skip("cannot be used here")
    record = camera_class(scheme).Options
    for field in dataclasses.fields(record):
        try:
            field_parser(record, field.name)("no such value")
        except ValueError:
            with pytest.raises(CameraError, match=field.name):
                open_camera(f"{scheme}://x?{field.name}=no such value")


def test_the_frames_of_the_example_are_valid_and_numbered(example: str) -> None:
    with open_camera(example) as camera:
        frames = []
        for frame in camera:
            frames.append(frame)
            if len(frames) == 3:
                break
    assert frames
    indices = []
    for frame in frames:
        assert isinstance(frame, Frame)
        assert frame.fault is None
        assert frame.image is not None
        assert frame.image.dtype in (np.uint8, np.uint16)
        assert frame.source
        assert frame.captured_at > 0
        indices.append(frame.index)
    assert indices == sorted(set(indices))
    assert camera.dropped >= 0
    assert camera.reconnects == 0
    if not camera.live:
        assert indices == list(range(len(frames)))
        assert camera.dropped == 0


def test_opening_starts_no_thread(example: str) -> None:
    threads = threading.active_count()
    camera = open_camera(example)
    assert threading.active_count() == threads
    camera.close()


def test_stopping_ends_the_iteration(example: str) -> None:
    with open_camera(example) as camera:
        frames = iter(camera)
        next(frames)
        camera.stop()
        assert list(frames) == []


def test_another_thread_may_stop_it(example: str) -> None:
    with open_camera(example) as camera:
        frames = iter(camera)
        next(frames)
        thread = threading.Thread(target=camera.stop)
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert list(frames) == []


def test_closing_twice_is_allowed_also_before_the_first_frame(example: str) -> None:
    camera = open_camera(example)
    camera.close()
    camera.close()
    assert list(camera) == []


def test_closing_from_several_threads_is_allowed(example: str) -> None:
    camera = open_camera(example)
    next(iter(camera))
    threads = []
    for _ in range(4):
        thread = threading.Thread(target=camera.close)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_broken_source_gives_a_fault_or_an_error(scheme: str, tmp_path: Path) -> None:
    if missing(scheme) is not None:
        pytest.skip("cannot be used here")
    uri = camera_class(scheme).broken_example(tmp_path)
    if uri is None:
        pytest.skip(f"{scheme} cannot fail")
    try:
        with open_camera(uri) as camera:
            frame = next(iter(camera))
        assert frame.image is None
        reason = frame.fault
    except CameraError as error:
        reason = str(error)
    assert reason
    assert "\n" not in reason
