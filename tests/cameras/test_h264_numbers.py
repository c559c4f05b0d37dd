"""Frames of H.264 that are lost as a whole are noticed by the numbers of those that come."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("av", reason="needs the video extra")

from fakes.h264 import COUNT, encode

from flawline.cameras.h264_numbers import FrameNumbers

KINDS = {
    "plain": {"tune": "zerolatency"},
    "baseline": {"profile": "baseline"},
    "several slices": {"x264-params": "slices=3:bframes=0"},
    "several references": {"x264-params": "ref=4:bframes=0"},
    "frames that nothing depends on": {"x264-params": "bframes=2:b-pyramid=none"},
    "pyramid": {"x264-params": "bframes=3:b-pyramid=normal"},
    "fields": {"x264-params": "tff=1:bframes=0"},
    "colours": {"profile": "high444"},
    "scaling lists": {"x264-params": "cqm=jvt:bframes=0"},
}


def is_reference(packet: Any) -> bool:
    """Tell whether other frames may depend on a frame, by the first byte of its slices."""
    data = bytes(packet)
    kinds = []
    place = data.find(b"\0\0\1")
    while place >= 0:
        kinds.append(data[place + 3])
        place = data.find(b"\0\0\1", place + 3)
    return any(kind & 31 in (1, 5) and kind >> 5 for kind in kinds)


def lost_before(sent: list[Any]) -> list[int]:
    """Return the places of the packets before which a frame is missing."""
    numbers = FrameNumbers()
    return [place for place, packet in enumerate(sent) if numbers.lost_before(bytes(packet))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_frame_is_noticed_where_another_may_depend_on_it(kind: str) -> None:
    sent = encode(KINDS[kind])
    assert len(sent) == COUNT
    assert lost_before(sent) == []
    # Not the last ones, after which nothing may follow that shows the gap.
    for lost in range(1, COUNT - 5):
        found = lost_before(sent[:lost] + sent[lost + 1 :])
        if sent[lost].is_keyframe:
            # The frames after it continue from 1.
            assert found, lost
        elif is_reference(sent[lost]) and not sent[lost + 1].is_keyframe:
            assert found == [lost], lost
        else:
            assert found == [], lost


def test_several_lost_frames_are_noticed() -> None:
    sent = encode(KINDS["plain"])
    for count in (2, 5, 12):
        assert lost_before(sent[:4] + sent[4 + count :]) == [4]


def test_the_parameters_may_come_with_the_description_of_the_stream() -> None:
    sent = encode(KINDS["plain"])
    key = bytes(sent[0])
    slice_at = key.index(b"\0\0\1\x65")
    numbers = FrameNumbers(key[:slice_at])
    found = [numbers.lost_before(data) for data in (key[slice_at:], bytes(sent[1]), bytes(sent[3]))]
    assert found == [False, False, True]


@pytest.mark.parametrize("data", [b"", b"\0\0\1", b"\0\0\1\x67\x64", b"\0\0\1\x41\x9a", bytes(99)])
def test_what_is_cut_off_or_unknown_is_no_gap(data: bytes) -> None:
    numbers = FrameNumbers(data)
    assert not numbers.lost_before(data)
    sent = encode(KINDS["plain"])
    assert not numbers.lost_before(bytes(sent[0]))
    assert not numbers.lost_before(bytes(sent[1]) + data)
