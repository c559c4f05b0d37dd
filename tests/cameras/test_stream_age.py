"""The age of the frames of a network stream."""

from __future__ import annotations

import pytest

from flawline.cameras.stream_age import WINDOW_S, StreamAge


def ages(age: StreamAge, frames: list[tuple[float | None, float]]) -> list[float]:
    return [arrival - age.captured_mono(stamp, arrival) for stamp, arrival in frames]


def test_a_frame_is_as_old_as_it_came_later_than_the_fastest_one() -> None:
    frames = [(10.00, 500.05), (10.04, 500.04), (10.08, 500.28), (10.12, 500.13)]
    assert ages(StreamAge(), frames) == pytest.approx([0.0, 0.0, 0.2, 0.01])


def test_the_frame_that_waited_during_a_stall_is_old() -> None:
    frames = [(0.04 * index, 500 + 0.04 * index) for index in range(50)]
    assert ages(StreamAge(), [*frames, (2.0, 505.0)])[-1] == pytest.approx(3.0)


def test_a_decoder_that_waits_for_the_next_frame_adds_the_time_of_one() -> None:
    frames = [(0.0, 500.0), (0.04, 500.04), (0.08, 500.08), (0.16, 500.16)]
    assert ages(StreamAge(arrives_late=True), frames) == pytest.approx([0.0, 0.04, 0.04, 0.04])


@pytest.mark.parametrize("speed", [0.996, 1.004])
def test_a_clock_of_the_camera_that_is_wrong_by_some_per_mille_makes_no_old_frames(
    speed: float,
) -> None:
    frames = [(speed * 0.04 * index, 500 + 0.04 * index) for index in range(25 * 300)]
    assert max(ages(StreamAge(), frames)) <= 0.004 * WINDOW_S + 0.02


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_of_the_camera_that_is_set_makes_no_old_frames(jump: float) -> None:
    age = StreamAge(arrives_late=True)
    frames = [(5000 + 0.04 * index, 500 + 0.04 * index) for index in range(10)]
    frames += [(stamp + jump + 0.4, arrival + 0.4) for stamp, arrival in frames]
    assert max(ages(age, frames)) == pytest.approx(0.04)


def test_a_frame_without_a_time_stamp_is_as_old_as_its_arrival() -> None:
    assert ages(StreamAge(), [(None, 500.0), (7.0, 500.04)]) == pytest.approx([0.0, 0.0])
