"""Videos: every frame is right or a fault in its place."""

from __future__ import annotations

import functools
import itertools
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from flawline.cameras import CameraError, Frame, open_camera
from flawline.cameras.nal_units import units_are_damaged
from flawline.cameras.video_gaps import find_gaps

av = pytest.importorskip("av")

COUNT = 60
# The finest quantisation of the codecs of MPEG-4 and before.
FINE = {"qmin": "1", "qmax": "2", "b": "20M"}
PIXEL_FORMATS = {"mjpeg": "yuvj420p", "qtrle": "rgb24", "cinepak": "rgb24", "png": "rgb24"}
FAST_VP8 = {"crf": "4", "b": "4M", "cpu-used": "8", "deadline": "realtime"}


def scene(index: int) -> np.ndarray:
    """A moving pattern with noise, RGB [96, 128, 3]."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:96, :128]
    planes = [x * 2 + index * 3, y * 2 - index, (x + y) % 256]
    image = np.stack(planes, 2) + rng.integers(0, 20, (96, 128, 3))
    return (image % 256).astype(np.uint8)


def write(path: Path, codec: str, *, times: list[int] | None = None, **options: str) -> Path:
    """Write a video of COUNT frames at 25 frames per second, or one frame at each of `times`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = 128
        stream.height = 96
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        for index, time in enumerate(times or range(COUNT)):
            frame = av.VideoFrame.from_ndarray(scene(index), format="rgb24")
            frame.pts = time
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> list[Frame]:
    with open_camera(str(path)) as camera:
        return list(camera)


def faults(frames: list[Frame]) -> list[int]:
    return [frame.index for frame in frames if frame.fault is not None]


def wrong(frames: list[Frame]) -> list[int]:
    """Frames that are not faults and do not show the scene with their index."""
    numbers = []
    for frame in frames:
        if frame.image is not None:
            error = np.abs(frame.image[..., ::-1].astype(int) - scene(frame.index))
            if error.mean() > 12:
                numbers.append(frame.index)
    return numbers


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("x.mp4", "libx264", {}),
        ("x.mkv", "libx264", {}),
        ("x.ts", "libx264", {}),
        ("x.flv", "libx264", {}),
        ("x.avi", "mjpeg", FINE),
        ("x.avi", "mpeg4", FINE),
        ("x.mpg", "mpeg2video", FINE),
        ("x.webm", "libvpx", FAST_VP8),
    ],
)
def test_every_frame_of_a_sound_video_is_right(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    frames = frames_of(write(tmp_path / name, codec, **options))
    assert len(frames) == COUNT
    assert faults(frames) == []
    assert wrong(frames) == []


@pytest.mark.parametrize(
    ("name", "codec"), [("x.ts", "libx264"), ("x.mp4", "libx264"), ("x.ts", "mpeg2video")]
)
def test_every_frame_of_an_interlaced_video_is_right(tmp_path: Path, name: str, codec: str) -> None:
    options = {"flags": "+ildct+ilme"}
    if codec == "mpeg2video":
        options.update(FINE)
    frames = frames_of(write(tmp_path / name, codec, **options))
    assert len(frames) == COUNT
    assert faults(frames) == []
    assert wrong(frames) == []


def test_a_video_that_turns_interlaced_never_shows_a_frame_again(tmp_path: Path) -> None:
    first = write(tmp_path / "a.ts", "libx264").read_bytes()
    second = write(tmp_path / "b.ts", "libx264", flags="+ildct+ilme").read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second)
    frames = frames_of(tmp_path / "joined.ts")
    assert len(frames) == 2 * COUNT
    assert faults(frames) == []
    for before, after in itertools.pairwise(frames):
        assert not np.array_equal(before.image, after.image)


@pytest.mark.parametrize("name", ["x.mkv", "x.ts", "x.mp4"])
def test_a_variable_frame_rate_is_no_damage(tmp_path: Path, name: str) -> None:
    times = [*range(20), *range(20, 100, 4)]
    frames = frames_of(write(tmp_path / name, "libx264", times=times))
    assert len(frames) == len(times)
    assert faults(frames) == []


def hurt(path: Path) -> None:
    """Overwrite half of the frame in the middle with zeros."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        packet = packets[COUNT // 2]
        start = packet.pos + packet.size // 4
        size = packet.size // 2
    data = bytearray(path.read_bytes())
    data[start : start + size] = bytes(size)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("x.mp4", "libx264"), ("x.ts", "libx264"), ("x.avi", "mjpeg"), ("x.avi", "mpeg4")],
)
def test_damage_in_the_middle_loses_only_what_depends_on_it(
    tmp_path: Path, name: str, codec: str
) -> None:
    options = {"g": "10"} if codec != "mjpeg" else {}
    if codec != "libx264":
        options.update(FINE)
    path = write(tmp_path / name, codec, **options)
    hurt(path)
    frames = frames_of(path)
    assert len(frames) == COUNT
    assert 1 <= len(faults(frames)) <= 25
    assert wrong(frames) == []
    assert frames[-1].image is not None
    for frame in frames:
        assert "\n" not in (frame.fault or "")


def test_a_decoder_that_fails_at_the_end_loses_no_more_frames_than_there_are(
    tmp_path: Path,
) -> None:
    # One key frame, so that nothing behind the damage can be decoded, up to the end of the stream.
    path = write(tmp_path / "x.mp4", "libx264", g="250", bf="3")
    data = bytearray(path.read_bytes())
    middle = (data.find(b"mdat") + len(data)) // 2
    data[middle : middle + 6000] = bytes(6000)
    path.write_bytes(data)
    frames = frames_of(path)
    assert len(frames) == COUNT
    assert faults(frames)
    assert wrong(frames) == []


def packet_places(path: Path) -> list[tuple[int, int]]:
    """Position and size of each packet of a video."""
    places = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.pos is not None:
                places.append((packet.pos, packet.size))
    return places


def zero(path: Path, number: int, size: int | None = None) -> None:
    """Overwrite a packet with zeros, or only its first bytes."""
    start, length = packet_places(path)[number]
    data = bytearray(path.read_bytes())
    length = size or length
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


@functools.cache
def small_scenes() -> np.ndarray:
    return np.stack([scene(index)[::4, ::4].astype(int) for index in range(COUNT)])


def nearest_scene(image: np.ndarray) -> int:
    errors = np.abs(small_scenes() - image[::4, ::4, ::-1])
    return int(np.argmin(errors.mean((1, 2, 3))))


@pytest.mark.parametrize(
    ("name", "codec", "number"),
    [
        ("x.mkv", "mjpeg", 30),
        ("x.mkv", "libx264", 24),
        ("x.mkv", "libx264", COUNT - 3),
        ("x.webm", "libvpx", 24),
        ("x.flv", "libx264", 24),
        ("x.avi", "mjpeg", 30),
        ("x.avi", "mpeg4", 24),
        ("x.ts", "libx264", 24),
        ("x.ts", "libx264", 29),
        ("x.ts", "libx264", 30),
        ("x.mpg", "mpeg2video", 24),
    ],
)
def test_a_frame_that_the_container_lost_leaves_a_fault(
    tmp_path: Path, name: str, codec: str, number: int
) -> None:
    options = {} if codec == "mjpeg" else {"g": "10"}
    if codec == "libvpx":
        options.update(FAST_VP8)
    elif codec != "libx264":
        options.update(FINE)
    path = write(tmp_path / name, codec, **options)
    zero(path, number)
    frames = frames_of(path)
    assert faults(frames)
    shown = []
    for frame in frames:
        if frame.image is not None:
            shown.append(nearest_scene(frame.image))
    assert shown == sorted(set(shown))
    assert len(shown) >= COUNT // 2


@pytest.mark.parametrize(("shift", "value"), [(-8, 0), (-8, 7), (-4, 0), (-4, 7), (-300, 0)])
def test_a_broken_chunk_of_an_avi_leaves_a_fault_in_its_place(
    tmp_path: Path, shift: int, value: int
) -> None:
    path = write(tmp_path / "x.avi", "mjpeg", **FINE)
    data = bytearray(path.read_bytes())
    # The header of a chunk is 8 bytes: its name and its size.
    start = packet_places(path)[30][0] + shift
    data[start : start + 300] = bytes([value]) * 300
    path.write_bytes(data)
    frames = frames_of(path)
    assert len(frames) == COUNT
    assert 30 in faults(frames)
    assert len(faults(frames)) <= 2
    assert wrong(frames) == []


@pytest.mark.parametrize("name", ["x.mkv", "x.avi"])
def test_damage_of_ffv1_is_noticed_by_its_checksums(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "ffv1", level="3", slicecrc="1", g="1")
    assert faults(frames_of(path)) == []
    start, size = packet_places(path)[30]
    data = bytearray(path.read_bytes())
    data[start + size // 2] ^= 4
    path.write_bytes(data)
    frames = frames_of(path)
    assert len(frames) == COUNT
    assert 30 in faults(frames)
    assert len(faults(frames)) <= 2
    assert wrong(frames) == []


@pytest.mark.parametrize(
    ("name", "codec", "size"),
    [
        ("x.mov", "qtrle", None),
        ("x.mov", "qtrle", 16),
        ("x.avi", "ffv1", None),
        ("x.avi", "cinepak", None),
        ("x.mov", "png", None),
    ],
)
def test_zeros_never_show_black_or_the_frame_before(
    tmp_path: Path, name: str, codec: str, size: int | None
) -> None:
    path = write(tmp_path / name, codec)
    whole = frames_of(path)
    assert faults(whole) == []
    zero(path, 33, size)
    frames = frames_of(path)
    assert len(frames) == COUNT
    assert faults(frames)
    for frame, expected in zip(frames, whole, strict=True):
        assert frame.image is None or np.array_equal(frame.image, expected.image)


def test_a_packet_without_a_frame_is_a_fault_where_each_packet_has_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mp4", "libsvtav1", preset="12", g="10")
    zero(path, 33)
    frames = frames_of(path)
    assert len(frames) == COUNT
    assert faults(frames)


def test_a_sound_file_has_no_gaps(tmp_path: Path) -> None:
    for name, codec in (("x.mkv", "libx264"), ("x.webm", "libvpx"), ("x.flv", "libx264")):
        path = write(tmp_path / name, codec)
        assert find_gaps(str(path)) == []
        start, _ = packet_places(path)[30]
        data = path.read_bytes()
        path.write_bytes(data[: start + 20])
        assert find_gaps(str(path)) == []
        path.write_bytes(data[:start] + bytes(40) + data[start + 40 :])
        assert len(find_gaps(str(path))) == 1


@pytest.mark.parametrize("name", ["x.ts", "x.mp4"])
def test_damaged_h264_reads_twice_the_same(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "libx264", g="10")
    rng = np.random.default_rng(0)
    data = bytearray(path.read_bytes())
    for start, size in packet_places(path)[5::9]:
        data[start + size // 2] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    first = frames_of(path)
    for _ in range(2):
        again = frames_of(path)
        assert [frame.fault for frame in again] == [frame.fault for frame in first]
        for one, other in zip(first, again, strict=True):
            assert np.array_equal(one.image, other.image)


@pytest.mark.parametrize("name", ["x.avi", "x.mkv"])
def test_a_cut_off_file_ends_with_a_fault(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "mjpeg")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames = frames_of(path)
    assert 10 < len(frames) < COUNT
    assert "damaged or cut off here" in (frames[-1].fault or "")


def test_a_rotated_video_is_turned_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mp4", "libx264")
    data = path.read_bytes()
    upright = struct_matrix(1, 0, 0, 1)
    assert data.count(upright) == 2
    place = data.rindex(upright)
    turned = data[:place] + struct_matrix(0, 1, -1, 0) + data[place + len(upright) :]
    path.write_bytes(turned)
    frames = frames_of(path)
    image = frames[0].image
    assert image is not None
    assert image.shape == (128, 96, 3)
    expected = np.rot90(scene(0), -1)
    assert np.abs(image[..., ::-1].astype(int) - expected).mean() < 12


def struct_matrix(a: int, b: int, c: int, d: int) -> bytes:
    """The first five entries of the display matrix of an MP4 track."""
    numbers = [a, b, 0, c, d]
    return b"".join((number << 16).to_bytes(4, "big", signed=True) for number in numbers)


def test_without_pyav_videos_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.mp4", "libx264")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CameraError, match=r"pip install .*\[video\]"):
        open_camera(str(path))


def test_units_of_h264_never_hold_three_zeros() -> None:
    header = b"\x01dddd\xff" + bytes(8)
    unit = b"\x65abc"
    whole = len(unit).to_bytes(4, "big") + unit
    assert not units_are_damaged(whole, "h264", header[:4] + b"\xff" + header[5:])
    assert units_are_damaged(whole + bytes(4), "h264", header[:4] + b"\xff" + header[5:])
    assert units_are_damaged(whole[:-1], "h264", header[:4] + b"\xff" + header[5:])
    assert not units_are_damaged(b"\0\0\0\x01" + unit + b"\0\0\x01" + unit, "h264", b"")
    assert units_are_damaged(b"\0\0\0\x01" + unit + b"\0\0\0" + unit, "h264", b"")
    assert not units_are_damaged(bytes(100), "mpeg4", b"")
