from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_model, write_tiny_bundle

from flawline.runtime.bundle import (
    Bundle,
    BundleError,
    add_model,
    read_bundle,
    write_bundle,
    write_calibration,
)
from flawline.runtime.files import write_atomically
from flawline.runtime.golden import Golden
from flawline.runtime.image import Geometry
from flawline.runtime.manifest import Spread
from flawline.runtime.precisions import islands_of


def test_what_was_written_is_read(bundle: Bundle) -> None:
    again = read_bundle(bundle.path)
    assert again == bundle
    golden = again.golden()
    assert golden.images.shape == (2, 64, 64, 3)
    assert golden.images.dtype == np.uint8
    assert sorted(p.name for p in bundle.path.iterdir()) == [
        "audit.jsonl",
        "calibration.json",
        "golden.npz",
        "manifest.json",
        "model.onnx",
    ]


def test_folds_are_optional_and_survive(bundle: Bundle) -> None:
    """Bundles of older versions have no such key."""
    for name in ("manifest.json", "calibration.json"):
        assert "folds" not in json.loads((bundle.path / name).read_text())
    assert (bundle.manifest.folds, bundle.calibration.folds) == (0, 0)
    folded = write_bundle(
        bundle.path,
        replace(bundle.manifest, folds=5),
        replace(bundle.calibration, folds=5),
        {"fp32": bundle.model().read_bytes()},
        bundle.golden(),
    )
    again = read_bundle(bundle.path)
    assert again == folded
    assert (again.manifest.folds, again.calibration.folds) == (5, 5)
    # A threshold that is set on the box comes from images that no fold has seen.
    write_calibration(again, replace(again.calibration, folds=0))
    read = read_bundle(bundle.path)
    assert (read.manifest.folds, read.calibration.folds) == (5, 0)


@pytest.mark.parametrize("folds", [-1, 2.5, "5", None])
def test_a_wrong_number_of_folds_is_refused(bundle: Bundle, folds: object) -> None:
    path = bundle.path / "calibration.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "folds": folds}))
    with pytest.raises(BundleError, match="folds is"):
        read_bundle(bundle.path)


def test_a_graph_of_another_precision_is_added_and_hashed(bundle: Bundle) -> None:
    assert bundle.precisions == ("fp32",)
    # A protobuf message may be continued: this adds a doc string.
    another = tiny_model() + b"\x32\x01x"
    richer = add_model(bundle, "fp16", another)
    assert richer.precisions == ("fp32", "fp16")
    assert richer.model("fp16").read_bytes() == another
    assert richer.model_sha256() == bundle.model_sha256() != richer.model_sha256("fp16")
    assert richer.manifest == bundle.manifest
    with pytest.raises(BundleError, match=r"holds no int8 graph; .* --precision int8"):
        richer.model("int8")
    richer.model("fp16").write_bytes(b"torn")
    with pytest.raises(BundleError, match=r"fp16\.onnx is not the file that was built"):
        read_bundle(bundle.path)


def _edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads((path / name).read_text())
        # As in a manifest of an older version: the change itself is found.
        content.pop("checksum", None)
        change(content)
        (path / name).write_text(json.dumps(content))

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    "no model": (lambda p: (p / "model.onnx").unlink(), "model.onnx cannot be read"),
    "no golden": (lambda p: (p / "golden.npz").unlink(), "golden.npz cannot be read"),
    "no calibration": (lambda p: (p / "calibration.json").unlink(), "calibration.json is missing"),
    "half a manifest": (
        lambda p: (p / "manifest.json").write_text('{"schema": 1, '),
        "manifest.json: is not valid JSON (line 1, column 15)",
    ),
    "a list": (lambda p: (p / "manifest.json").write_text("[]"), "not a JSON object"),
    "other weights": (
        lambda p: write_atomically(p / "model.onnx", b"x"),
        "model.onnx is not the file that was built",
    ),
    "float size": (
        _edit("manifest.json", lambda m: m["geometry"].update(height=64.0)),
        "whole numbers",
    ),
    "huge number": (
        _edit("calibration.json", lambda c: c.update(threshold=10**400)),
        "threshold is not between -1e+38 and 1e+38",
    ),
    "deep nesting": (
        lambda p: (p / "calibration.json").write_text("[" * 100_000),
        "calibration.json: is nested too deeply",
    ),
    "negative tolerance": (
        _edit("manifest.json", lambda m: m.update(score_tolerance=-1)),
        "not above 0",
    ),
    "deep bits": (
        _edit("manifest.json", lambda m: m.update(bit_depth=17)),
        "bit_depth is 17, not from 8 to 16",
    ),
    "no bits": (_edit("manifest.json", lambda m: m.pop("bit_depth")), "bit_depth is missing"),
    "bits before schema 2": (
        _edit("manifest.json", lambda m: m.update(schema=1)),
        "does not know bit_depth",
    ),
    "true schema": (_edit("manifest.json", lambda m: m.update(schema=True)), "schema True"),
    "future schema": (
        _edit("manifest.json", lambda m: m.update(schema=99)),
        "has schema 99, this version reads schema 1 and 2",
    ),
    "unknown key": (_edit("manifest.json", lambda m: m.update(colour=1)), "does not know colour"),
    "missing key": (_edit("manifest.json", lambda m: m.pop("method")), "method is missing"),
    "wrong type": (
        _edit("manifest.json", lambda m: m.update(score_tolerance="x")),
        "score_tolerance is 'x'",
    ),
    "bad geometry": (
        _edit("manifest.json", lambda m: m["geometry"].update(kind="zoom")),
        "geometry",
    ),
    "unknown file": (
        _edit("manifest.json", lambda m: m["files"].update({"x": "y"})),
        "does not know: x",
    ),
    "property without quotes": (
        lambda p: (p / "calibration.json").write_text("{\n  threshold: 1}"),
        "calibration.json: is not valid JSON (line 2, column 3)",
    ),
    "repeated key": (
        lambda p: (p / "calibration.json").write_text('{"schema": 2, "schema": 2}'),
        "is not valid JSON (the key 'schema' is there 2 times)",
    ),
    "not UTF-8": (
        lambda p: (p / "calibration.json").write_bytes(b'{"\xe9": 1}'),
        "calibration.json: is not valid JSON (it is not UTF-8 text)",
    ),
    "too many digits": (
        lambda p: (p / "calibration.json").write_text('{"threshold": ' + "1" * 5000 + "}"),
        "is not valid JSON (a number has too many digits)",
    ),
    "NaN threshold": (
        lambda p: (p / "calibration.json").write_text('{"threshold": NaN}'),
        "NaN is not a number",
    ),
    "text threshold": (
        _edit("calibration.json", lambda c: c.update(threshold="high")),
        "threshold is 'high'",
    ),
    "true threshold": (
        _edit("calibration.json", lambda c: c.update(threshold=True)),
        "threshold is True",
    ),
    "bad interval": (
        _edit("calibration.json", lambda c: c.update(interval=[1])),
        "interval is not a pair",
    ),
    "falling interval": (
        _edit("calibration.json", lambda c: c.update(interval=[0.2, 0.1])),
        "rising numbers",
    ),
    "rate above 1": (
        _edit("calibration.json", lambda c: c.update(false_alarm_rate=7)),
        "not between 0 and 1",
    ),
    "no images": (
        _edit("calibration.json", lambda c: c.update(good_images=0)),
        "good_images is below 1",
    ),
    "odd islands": (
        _edit("manifest.json", lambda m: m.update(fp32_islands=[1])),
        "fp32_islands holds 1, which is not a name",
    ),
    "no hash": (
        _edit("manifest.json", lambda m: m["files"].update({"model.onnx": None})),
        "no sha256 for model.onnx",
    ),
    "odd provenance": (_edit("manifest.json", lambda m: m["provenance"].update(x=1)), "not text"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_in_one_line_with_its_remedy(bundle: Bundle, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(bundle.path)
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle.path)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert "flawline build --checkpoint CHECKPOINT --out" in text


def test_golden_data_that_does_not_fit_is_refused(bundle: Bundle) -> None:
    golden = bundle.golden()
    larger = Golden(np.zeros((2, 96, 96, 3), np.uint8), golden.scores, golden.maps)
    model = {"fp32": bundle.model().read_bytes()}
    odd = write_bundle(bundle.path, bundle.manifest, bundle.calibration, model, larger)
    with pytest.raises(BundleError, match="does not fit"):
        odd.golden()


def test_a_graph_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx image has the shape"):
        write_tiny_bundle(tmp_path / "odd", geometry=Geometry("stretch", 96, 96))


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(BundleError, match="not a bundle"):
        write_tiny_bundle(tmp_path / "holiday")
    assert (tmp_path / "holiday" / "photo.jpg").read_bytes() == b"precious"


def test_a_bundle_is_replaced_whole(bundle: Bundle) -> None:
    again = write_tiny_bundle(bundle.path, method="other")
    assert again.manifest.method == "other"
    assert [p.name for p in bundle.path.parent.iterdir()] == ["bundle"]


def test_an_interrupted_replacement_leaves_the_old_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = os.replace

    def interrupt(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_tiny_bundle(bundle.path, method="other")
    assert read_bundle(bundle.path).manifest.method == "simplenet"
    assert [p.name for p in bundle.path.parent.iterdir()] == ["bundle"]


def test_the_threshold_can_be_changed_on_the_box(bundle: Bundle) -> None:
    write_calibration(bundle, replace(bundle.calibration, threshold=3.5))
    assert read_bundle(bundle.path).calibration.threshold == 3.5


def test_precisions_without_a_file_run_the_fp32_graph(bundle: Bundle) -> None:
    assert bundle.model("bf16") == bundle.model("fp32")
    assert bundle.model_sha256("bf16") == bundle.model_sha256("fp32")
    for precision in ("fp32", "bf16"):
        with pytest.raises(ValueError, match="which is not replaced"):
            add_model(bundle, precision, b"graph")


def test_the_bit_depth_is_written_and_read(tmp_path: Path) -> None:
    assert write_tiny_bundle(tmp_path / "a").manifest.bit_depth == 8
    assert write_tiny_bundle(tmp_path / "b", bit_depth=12).manifest.bit_depth == 12


def test_a_spread_is_over_all_values() -> None:
    assert Spread.of(np.array([[1.0, 2.0], [3.0, 6.0]])) == Spread(3.0, np.sqrt(3.5), 1.0, 6.0)


def test_the_bit_depth_to_read_files_with_is_that_of_deep_training_images(tmp_path: Path) -> None:
    deep = write_tiny_bundle(tmp_path / "deep", bit_depth=12)
    assert deep.manifest.file_bit_depth == 12
    plain = write_tiny_bundle(tmp_path / "plain")
    assert plain.manifest.file_bit_depth is None
    assert plain.has_map
    assert not write_tiny_bundle(tmp_path / "scores", outputs=("score",)).has_map


def test_a_node_is_in_the_islands_whose_path_contains_it() -> None:
    islands = ("/tail", "/body/Conv", "/head/", "/", "")
    assert islands_of("/tail", islands) == {"/tail"}
    assert islands_of("/tail/Conv", islands) == {"/tail"}
    assert islands_of("/head/Pow", islands) == {"/head/"}
    assert islands_of("/body/Conv", islands) == {"/body/Conv"}
    assert not islands_of("/tailor/Conv", islands)
    assert not islands_of("/body", islands)


def test_a_file_that_may_not_be_read_has_the_remedy_of_its_cause(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, mode: str) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BundleError, match=r"\(Permission denied\); check the permissions$"):
        read_bundle(bundle.path)
