"""The study of the exact rewrites: its rows, its report and its exit status."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from foreign_models import write_convolution
from small_networks import options

from flawline.benchmarks.published import find_published
from flawline.benchmarks.studies.fusion import measure
from flawline.benchmarks.studies.fusion.__main__ import main
from flawline.benchmarks.studies.fusion.forms import BACKBONE, FUSED, LITERAL, PUBLISHED
from flawline.benchmarks.studies.fusion.report import ratios
from flawline.benchmarks.studies.fusion.rows import (
    AGAINST,
    EAGER,
    ONNX_RUNTIME,
    Row,
    inexact_rows,
)
from flawline.benchmarks.studies.network import build_network
from flawline.train.blocks import fused, fused_flow

pytestmark = pytest.mark.torch
SMALL = ["--size", "64", "--rounds", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asserts a time, so no turn has to wait for the threads of the one before."""
    monkeypatch.setattr(measure, "SETTLE_S", 0.0)
    monkeypatch.setattr(measure, "REPEATS", 1)


def rows_of(result: dict[str, Any]) -> list[Row]:
    names = {field.name for field in fields(Row)}
    for row in result["rows"]:
        assert row.keys() <= names
    return [Row(**row) for row in result["rows"]]


def test_the_study_of_simplenet_next_to_the_model_of_another_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_convolution(tmp_path / "other.onnx", 64)
    assert main([*SMALL, "--against", str(other), "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    result = json.loads((tmp_path / "fusion-simplenet-resnet18-64.json").read_text())
    assert (tmp_path / "fusion-simplenet-resnet18-64.md").read_text() == page
    assert "External model: other.onnx, on random input of its own." in page
    rows = rows_of(result)
    assert {row.form for row in rows} == {PUBLISHED, LITERAL, FUSED, BACKBONE, AGAINST}
    for line in ratios(rows):
        assert f"- {line}\n" in page
    by_key = {(row.form, row.engine): row for row in rows}
    literal = by_key[LITERAL, EAGER]
    rewritten = by_key[FUSED, EAGER]
    assert literal.head_macs > 2 * rewritten.head_macs
    assert literal.head_bytes_written > 3 * rewritten.head_bytes_written
    assert (AGAINST, ONNX_RUNTIME) in by_key
    assert ((AGAINST, "openvino fp32") in by_key) == ((FUSED, "openvino fp32") in by_key)
    for row in rows:
        if row.form == AGAINST:
            assert row.as_json().keys() == {"form", "engine", "ms"}
            ratio = row.ms / by_key[FUSED, row.engine].ms
            assert f"{AGAINST} takes {ratio:.2f} times the time of (c) in {row.engine}" in page
        elif row.engine.startswith("openvino"):
            assert row.error < 0.2  # in bfloat16, if the CPU has it


@pytest.mark.parametrize("name", ["ssnf", pytest.param("fastflow", marks=pytest.mark.slow)])
def test_the_study_of_a_flow(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--method", name, "--set", "blocks=1", "--out", str(tmp_path)]
    assert main([*SMALL, *command]) == 0
    result = json.loads((tmp_path / f"fusion-{name}-resnet18-64.json").read_text())
    rows = rows_of(result)
    page = capsys.readouterr().out
    for line in ratios(rows):
        assert f"- {line}\n" in page
    by_key = {(row.form, row.engine): row for row in rows}
    exported = {LITERAL, FUSED, *find_published(name).alternatives}
    forms: dict[str, set[str]] = {}
    for row in rows:
        forms.setdefault(row.engine, set()).add(row.form)
    assert forms[ONNX_RUNTIME] == {*exported, BACKBONE}
    assert forms.get("openvino fp32", exported) == exported
    assert forms[EAGER] == {*exported, PUBLISHED, BACKBONE}
    # Permutations as dense matrices cost C^2 products at every position.
    dense = 0
    method, _ = build_network(options(name, settings=("blocks=1",)), 1)
    for flow in [method.flow] if name == "ssnf" else method.flows:
        for block, (_, h, w) in zip(flow.module_list, flow.shapes, strict=False):
            dense += block.in_channels**2 * h * w
    literal = by_key[LITERAL, EAGER].head_macs
    assert literal - by_key["(e) literal, by index", EAGER].head_macs == dense
    # The published attention computes the same products.
    assert by_key[PUBLISHED, EAGER].head_macs == literal
    nodes = sum(kind["nodes"] for kind in result["kinds"][FUSED])
    assert nodes == len(result["left_in_the_head"])


def test_a_ratio_to_a_head_without_products_is_left_out() -> None:
    rows = [
        Row(LITERAL, EAGER, ms=4.0, head_macs=5),
        Row(FUSED, EAGER, ms=2.0, head_macs=0),
        Row(FUSED, ONNX_RUNTIME, ms=1.0),
        Row(BACKBONE, ONNX_RUNTIME, ms=0.5),
    ]
    lines = ratios(rows)
    assert "(b) literal takes 2.00 times the time of (c) in torch eager" in lines
    assert not any("MACs" in line for line in lines)


@pytest.mark.slow
def test_the_study_of_two_networks_counts_both_as_the_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--method", "stfpm", "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert "times the MACs" not in page  # the fused head has no products
    result = json.loads((tmp_path / "fusion-stfpm-resnet18-64.json").read_text())
    by_key = {(row.form, row.engine): row for row in rows_of(result)}
    fused = by_key[FUSED, EAGER]
    assert fused.head_macs == 0
    # layer4 of both networks is 0.034 GMAC each.
    assert by_key[PUBLISHED, EAGER].macs - fused.macs == pytest.approx(67e6, rel=0.02)
    convolutions = [kind for kind in result["kinds"][FUSED] if kind["kind"] == "Conv"]
    assert not convolutions


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ae_ssim", 64),
        pytest.param("draem", 64, marks=pytest.mark.slow),
        pytest.param("riad", 64, marks=pytest.mark.slow),
        pytest.param("intra", 112, marks=pytest.mark.slow),
    ],
)
def test_the_study_of_a_method_without_a_backbone(
    name: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--method", name, "--size", str(size), "--rounds", "1", "--threads", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    result = json.loads((tmp_path / f"fusion-{name}-{size}.json").read_text())
    rows = rows_of(result)
    for line in ratios(rows):
        assert f"- {line}\n" in page
    by_key = {(row.form, row.engine): row for row in rows}
    assert by_key[BACKBONE, ONNX_RUNTIME].ms > 0
    exported = find_published(name).literal_exports
    assert ((LITERAL, ONNX_RUNTIME) in by_key) == exported
    # Reductions become matrix products, with more of these but less memory.
    fused_head, literal_head = by_key[FUSED, EAGER], by_key[LITERAL, EAGER]
    assert fused_head.head_bytes_written <= literal_head.head_bytes_written


def test_a_wrong_rewrite_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = fused.resize_matrix
    monkeypatch.setattr(fused, "resize_matrix", lambda n_in, n_out: 1.01 * exact(n_in, n_out))
    assert main([*SMALL, "--method", "padim"]) == 1
    errors = capsys.readouterr().err
    assert "(c) fused in onnxruntime fp32 differs by" in errors
    assert "bf16 differs" not in errors


def test_a_wrong_rewrite_of_a_flow_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ones(block: Any) -> Any:
        return torch.ones(block.in_channels, dtype=torch.float64)

    monkeypatch.setattr(fused_flow, "_global_scale", ones)
    assert main([*SMALL, "--method", "ssnf", "--set", "blocks=1"]) == 1
    errors = capsys.readouterr().err
    assert "(c) fused in onnxruntime fp32 differs by" in errors
    assert "bf16 differs" not in errors


def test_an_error_that_is_not_finite_is_inexact() -> None:
    rows = [
        Row(FUSED, EAGER, error=float("nan")),
        Row(FUSED, ONNX_RUNTIME, error=1e-6),
        Row(FUSED, "openvino bf16", error=0.5),
        Row(BACKBONE, EAGER),
    ]
    assert inexact_rows(rows) == rows[:1]


def test_a_method_without_published_code_is_compared_with_its_literal_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SMALL, "--method", "padim"]) == 0
    page = capsys.readouterr().out
    assert "(a)" not in page
    assert "(b) takes" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "resnet9"], "known: resnet18"),
        (["--method", "nothing"], "known: simplenet"),
        (["--size", "10"], "see --size and --geometry"),
        (["--against", "/nowhere.onnx"], "/nowhere.onnx cannot be timed"),
        (["--method", "fastflow", "--set", "blocks"], "--set blocks: "),
        (["--method", "fastflow", "--set", "blocks=many"], "--set blocks=many: "),
        (["--method", "fastflow", "--set", "steps=3"], "--set steps=3: "),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.studies.fusion: ")
    assert message in line
