"""Bundles whose graph takes the camera's own frame: what a frame is, and which are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import SOURCE, source_frames, write_source_bundle

from flawline.cameras import Frame
from flawline.runtime.bundle import MANIFEST, Bundle, BundleError, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry, prepare
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.manifest import manifest_from_json, manifest_to_json
from flawline.runtime.source_frame import BAYER, LAYOUTS, SourceError, SourceFrame, parse_source
from flawline.runtime.strict_json import SchemaError


@pytest.fixture
def source_bundle(tmp_path: Path) -> Bundle:
    return write_source_bundle(tmp_path / "framed")


def frame_of(image: Any, index: int = 0) -> Frame:
    return Frame("camera", index, image)


# ---------------------------------------------------------------- sizes and layouts


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("1920x1080", (1080, 1920, 3)),
        ("1920x1080:bgr", (1080, 1920, 3)),
        ("640x481:mono", (481, 640)),
        ("1920x1080:bayer-rggb", (1080, 1920)),
    ],
)
def test_a_size_and_a_layout_are_read(text: str, shape: tuple[int, ...]) -> None:
    source = parse_source(text)
    assert source.shape == shape
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1920", "is not WIDTHxHEIGHT"),
        ("1920x1080:", "is not WIDTHxHEIGHT"),
        ("1920X1080", "is not WIDTHxHEIGHT"),
        ("1920x1080:yuv", "layout 'yuv' is unknown; known: bgr, mono, bayer-rggb"),
        ("16x1080", "below 32"),
        ("1920x16386", "above 16384"),
        ("1921x1080:bayer-gbrg", "odd side"),
    ],
)
def test_what_is_no_frame_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_source(text)


@pytest.mark.parametrize("layout", BAYER)
def test_a_mosaic_has_the_colour_of_each_pixel_and_gives_the_picture_back(layout: str) -> None:
    # Equal in each block of four pixels, which a mosaic then describes completely.
    rng = np.random.default_rng(0)
    flat = np.full((32, 48, 3), rng.integers(0, 256, 3), np.uint8)
    source = SourceFrame(32, 48, layout)
    mosaic = source.frame_of(flat)
    assert mosaic.shape == (32, 48)
    first_row = {"r": 2, "g": 1, "b": 0}
    assert mosaic[0, 0] == flat[0, 0, first_row[layout[-4]]]
    assert mosaic[0, 1] == flat[0, 1, first_row[layout[-3]]]
    assert mosaic[1, 0] == flat[1, 0, first_row[layout[-2]]]
    assert (source.picture(mosaic) == flat).all()


def test_images_of_another_layout_are_converted_where_nothing_is_lost(photo: np.ndarray) -> None:
    height, width = photo.shape[:2]
    grey = np.ascontiguousarray(photo[..., 1])
    stacked = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    assert (SourceFrame(height, width).frame_of(grey) == stacked).all()
    mono = SourceFrame(height, width, "mono")
    assert (mono.frame_of(stacked) == grey).all()
    assert mono.frame_of(grey) is grey
    with pytest.raises(SourceError, match=r"has colours.* --source 120x90 or without it"):
        mono.frame_of(photo)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_of_a_data_set_is_resized_to_a_frame_and_prepared_from_it(
    layout: str, photo: np.ndarray
) -> None:
    image = photo[..., 0].copy() if layout == "mono" else photo
    source = SourceFrame(100, 140, layout)
    form = GraphInput(Geometry("letterbox", 64, 64), source)
    frame = form.of_image(image)
    assert frame.shape == form.shape == source.shape
    assert (form.of_frame(frame) == frame).all()
    assert (form.prepared(image) == prepare(source.picture(frame), form.geometry)).all()


def test_without_a_source_an_image_is_prepared(photo: np.ndarray) -> None:
    form = GraphInput(Geometry("stretch", 64, 48))
    assert form.shape == (64, 48, 3)
    for prepared in (form.of_frame(photo), form.of_image(photo), form.prepared(photo)):
        assert (prepared == prepare(photo, form.geometry)).all()
    assert form.picture(photo) is photo


# ---------------------------------------------------------------- the manifest


def test_a_manifest_states_the_frames_only_if_there_are_some(bundle: Bundle) -> None:
    assert "source" not in json.loads((bundle.path / MANIFEST).read_bytes())
    manifest = dataclasses.replace(bundle.manifest, source=SOURCE)
    written = manifest_to_json(manifest, bundle.sha256)
    assert json.loads(written)["source"] == {"height": 128, "width": 192, "layout": SOURCE.layout}
    assert manifest_from_json(written) == (manifest, bundle.sha256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"height": 128, "width": 192}, "source: layout is missing"),
        ({"height": 128, "width": 192, "layout": "yuv"}, "source: layout 'yuv' is unknown"),
        (
            {"height": 20000, "width": 192, "layout": "bgr"},
            "source: a side of 192x20000 is above 16384",
        ),
        ({"height": 127, "width": 192, "layout": "bayer-rggb"}, "odd side"),
        ({"height": 128, "width": 192, "layout": "bgr", "fps": 3}, "source: .* know fps"),
        ([128, 192], "source is .*not of type dict"),
    ],
)
def test_frames_that_cannot_be_are_refused(bundle: Bundle, content: Any, message: str) -> None:
    manifest = json.loads((bundle.path / MANIFEST).read_bytes())
    del manifest["checksum"]
    manifest["source"] = content
    with pytest.raises(SchemaError, match=message):
        manifest_from_json(json.dumps(manifest).encode())


def test_a_graph_of_another_input_than_the_manifest_states_is_refused(
    bundle: Bundle, source_bundle: Bundle
) -> None:
    for path, source in ((bundle.path, SOURCE), (source_bundle.path, None)):
        read = read_bundle(path)
        manifest = dataclasses.replace(read.manifest, source=source)
        (path / MANIFEST).write_bytes(manifest_to_json(manifest, read.sha256))
        with pytest.raises(BundleError, match=r"model\.onnx image has the shape"):
            read_bundle(path)


# ---------------------------------------------------------------- judging


def test_a_frame_is_judged_as_prepare_and_the_plain_graph_judge_it(
    bundle: Bundle, source_bundle: Bundle
) -> None:
    frame = source_frames(3)[2]
    with Detector(source_bundle, "onnxruntime") as framed, Detector(bundle, "onnxruntime") as plain:
        framed.warm_up(2)
        picture = SOURCE.picture(frame)
        expected = plain(picture)
        for verdict in (framed(frame), framed.judge(frame_of(frame))):
            assert verdict.score == expected.score
            assert verdict.anomaly_map is not None
            assert (verdict.anomaly_map == expected.anomaly_map).all()
        painted = framed.paint(frame, verdict.anomaly_map)
        assert (painted == plain.paint(picture, expected.anomaly_map)).all()
        deep = Frame("camera", 0, frame.astype(np.uint16) * 16, bit_depth=12)
        assert framed.judge(deep).score == expected.score


def test_a_batch_of_frames_keeps_its_order(source_bundle: Bundle) -> None:
    frames = source_frames(3)
    with Detector(source_bundle, "onnxruntime") as detector:
        one_by_one = [detector(frame).score for frame in frames]
        other = frame_of(frames[0][:64])
        batch = detector.judge_batch([frame_of(frames[0]), other, *map(frame_of, frames[1:])])
    assert len(set(one_by_one)) > 1
    assert [verdict.score for verdict in batch if verdict.judged] == one_by_one
    assert [verdict.name for verdict in batch].index("unjudged") == 1


def test_a_frame_of_another_size_is_refused_with_the_remedy(source_bundle: Bundle) -> None:
    frame = np.zeros((64, 192), np.uint8)
    with Detector(source_bundle, "onnxruntime", accept_size=True) as detector:
        with pytest.raises(SourceError, match=r"192x64, and the bundle .* 192x128:bayer-grbg; set"):
            detector(frame)
        verdict = detector.judge(frame_of(frame))
    assert not verdict.judged
    assert verdict.anomalous
    assert str(verdict.reason).endswith("bundle with --source 192x64:bayer-grbg or without it")


def test_a_stream_names_the_remedy_for_an_image_of_another_size(
    source_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), source_frames(1)[0])
    cv2.imwrite(str(folder / "1.png"), np.zeros((90, 120), np.uint8))
    words = ["--bundle", str(source_bundle.path), "--camera", str(folder)]
    assert stream([*words, "--engine", "onnxruntime", "--save", str(tmp_path / "saved")]) == 0
    out, err = capsys.readouterr()
    assert "the graph takes frames of 192x128:bayer-grbg as they are, and no others" in err
    assert "let the camera send" not in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("verdict") for line in lines[:2]] == ["anomalous", "unjudged"]
    assert "--source 120x90:bayer-grbg or" in lines[1]["reason"]
    assert len(list((tmp_path / "saved").iterdir())) == 2


def test_the_self_test_compares_frames(source_bundle: Bundle) -> None:
    golden = source_bundle.golden()
    assert golden.images.shape == (2, *SOURCE.shape)
    assert golden.maps.shape == (2, *source_bundle.map_size)


def test_a_stream_notes_once_that_frames_are_converted(
    source_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, frame in enumerate(source_frames(2)):
        cv2.imwrite(str(folder / f"{number}.png"), SOURCE.picture(frame))
    words = ["--bundle", str(source_bundle.path), "--camera", str(folder)]
    assert stream([*words, "--engine", "onnxruntime"]) == 0
    out, err = capsys.readouterr()
    assert "unjudged" not in out.splitlines()[0]
    note = "the frames are bgr, and each is converted to 192x128:bayer-grbg, which takes time; let"
    assert err.count(note) == 1


@pytest.mark.parametrize(
    ("layout", "remedy"),
    [
        ("bgr", "build the bundle with --source 90x80:mono"),
        ("mono", "let the camera send mono"),
        ("bayer-rggb", "let the camera send bayer-rggb"),
    ],
)
def test_the_remedy_for_another_layout_is_one_that_the_camera_can_do(
    layout: str, remedy: str
) -> None:
    """A frame that becomes BGR is mono, and its camera has no colours to send."""
    assert SourceFrame(80, 90, layout).remedy == remedy
