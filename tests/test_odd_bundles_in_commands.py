"""Every command that reads a bundle refuses a damaged one in one line, with exit status 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("cryptography", reason="needs the sign extra")
pytest.importorskip("jinja2", reason="needs the report extra")

from builders import write_squares
from conftest import write_tiny_bundle
from odd_bundles import Originals, make_bundle, rehash, write_originals

from flawline import FlawlineError
from flawline.benchmarks import run as benchmark
from flawline.benchmarks.bundle_report import __main__ as report
from flawline.export import build, triton
from flawline.runtime import calibrate, infer_stream
from flawline.runtime.bundle import read_bundle

BUNDLES = 12


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return write_originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, originals: Originals) -> list[Path]:
    """Bundles that cannot be read, each damaged in another way."""
    root = tmp_path_factory.mktemp("refused")
    found: dict[tuple[str, str], Path] = {}
    seed = 0
    while len(found) < BUNDLES:
        seed += 1
        odd = make_bundle(seed, root / str(seed), originals)
        damage = odd.damages[0]
        if (damage.file, damage.name) in found:
            continue
        try:
            read_bundle(odd.path)
        except FlawlineError:
            found[damage.file, damage.name] = odd.path
    return list(found.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("data") / "squares")


def words_of(command: str, bundle: Path, data: Path, out: Path) -> list[str]:
    # Named, because `auto` logs which engine it takes.
    engine = ["--engine", "onnxruntime"]
    words = {
        "stream": ["--bundle", str(bundle), "--camera", str(data / "test"), *engine],
        "calibrate": ["--bundle", str(bundle), "--images", str(data / "train"), *engine],
        "build": ["--bundle", str(bundle), *engine],
        "triton": ["--bundle", str(bundle), "--out", str(out)],
        "report": ["--bundle", str(bundle), "--data", str(data)],
        "benchmark": ["--bundles", str(bundle), "--data", str(data), "--out", str(out)],
    }
    return words[command]


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "stream": infer_stream.main,
    "calibrate": calibrate.main,
    "build": build.main,
    "triton": triton.main,
    "report": report.main,
    "benchmark": benchmark.main,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_bundle_is_one_line_and_exit_status_2(
    command: str,
    refused: list[Path],
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for bundle in refused:
        before = sorted(path.name for path in bundle.iterdir())
        status = COMMANDS[command](words_of(command, bundle, data, tmp_path / "out"))
        captured = capfd.readouterr()
        assert status == 2, captured
        assert len(captured.err.splitlines()) == 1, captured
        assert str(bundle) in captured.err
        assert "; " in captured.err
        assert not captured.out
        assert sorted(path.name for path in bundle.iterdir()) == before


@pytest.mark.parametrize("damage", ["fails when it runs", "other values", "future operators"])
@pytest.mark.parametrize("command", ["stream", "calibrate", "build"])
def test_a_wrong_graph_with_the_right_hash_is_one_line(
    command: str,
    damage: str,
    originals: Originals,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    bundle.model().write_bytes(originals.graphs[damage])
    rehash(bundle.path, "model.onnx")
    status = COMMANDS[command](words_of(command, bundle.path, data, tmp_path / "out"))
    captured = capfd.readouterr()
    assert status == 2, captured
    # The engine's library prints nothing of its own.
    assert len(captured.err.splitlines()) == 1, captured
    assert not captured.out


def test_the_commands_accept_the_originals(
    originals: Originals, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in ("stream", "build", "triton"):
        for number, bundle in enumerate(originals.bundles):
            out = tmp_path / f"{command}{number}"
            assert COMMANDS[command](words_of(command, bundle.path, data, out)) == 0, (
                capfd.readouterr()
            )
