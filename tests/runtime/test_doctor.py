"""The command flawline doctor: its report, and checks that fail, crash or hang."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes import Install, build_plan, engine_name, odd_checks
from fakes.kserve_server import KServeServer
from fakes.tensorrt_api import VERSIONS

from flawline.runtime.bundle import Bundle, write_bundle
from flawline.runtime.doctor import CHECKS, examine
from flawline.runtime.doctor.__main__ import main
from flawline.runtime.doctor.bundle import check_bundle, check_self_test, judge_types
from flawline.runtime.doctor.engines import check_engine, check_gpu_use, engine_names
from flawline.runtime.doctor.examine import failed
from flawline.runtime.doctor.finding import LEVELS, NOTE, OK, PROBLEM, Finding
from flawline.runtime.doctor.machine import Machine, Subject
from flawline.runtime.doctor.subject import (
    check_station,
    completed,
    subject_from_json,
    subject_to_json,
)
from flawline.runtime.engines import (
    ENGINES,
    REFERENCE_ENGINE,
    EngineError,
    EngineOptions,
    engine_class,
    open_engine,
    open_reference,
)
from flawline.runtime.engines.onnxruntime_types import count_types as profile_types
from flawline.runtime.engines.openvino_cpu import OpenVino
from flawline.runtime.engines.tensorrt.layer_types import count_types
from flawline.runtime.engines.tensorrt.plan_cache import RECORD
from flawline.runtime.golden import Golden
from flawline.runtime.station.settings.station_file import StationError

pytest_plugins = ["fakes.fixtures"]

STATION = {
    "recipe": "part",
    "recipes": [{"name": "part", "bundle": "bundles/part"}],
    "cameras": [{"uri": "usb://0"}],
    "engine": {"cache": "plans"},
    "audit": "log/audit.jsonl",
}


def levels(findings: Iterable[Finding]) -> set[str]:
    return {finding.level for finding in findings}


def write_station(folder: Path) -> Path:
    path = folder / "station.json"
    path.write_text(json.dumps(STATION))
    return path


# The command.


def test_every_check_is_made_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(tmp_path / "bundles" / "part")
    station = write_station(tmp_path)
    status = main(["--station", str(station), "--folder", str(tmp_path / "out"), "--json"])
    report = json.loads(capsys.readouterr().out)
    findings = report["findings"]
    assert {finding["level"] for finding in findings} <= set(LEVELS)
    problems = [finding for finding in findings if finding["level"] == PROBLEM]
    assert status == (1 if problems else 0)
    assert report["counts"].get(PROBLEM, 0) == len(problems)
    # Whatever is wrong here, no check failed, and each problem has its remedy.
    for finding in findings:
        assert not finding["text"].startswith("the check failed"), finding
        assert finding["remedy"] or finding["level"] != PROBLEM, finding
    made = {finding["check"] for finding in findings}
    # Some machines have no JetPack and no industrial camera.
    assert made >= set(CHECKS) - {"jetpack", "network", "gpu library"}
    tested = [finding["text"] for finding in findings if finding["check"] == "self-test"]
    assert any("fp32: self-test passed" in text for text in tested)


def test_the_report_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    assert main(["--bundle", absent, "--only", "bundle", "--only", "system"]) == 1
    bundle, remedy, system, summary = capsys.readouterr().out.splitlines()
    assert bundle.startswith("problem  bundle")
    assert "there is no such folder" in bundle
    assert remedy.strip().startswith("-> copy it again")
    assert system.startswith("ok       system")
    assert summary == "1 problem, 0 notes, 1 ok"


def test_a_check_that_does_not_exist_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "weather"])
    assert ended.value.code == 2
    assert "weather" in capsys.readouterr().err


# Checks that fail.


def test_no_check_that_crashes_hangs_or_fails_ends_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(examine, "CHECKS", odd_checks.CHECKS)
    monkeypatch.setattr(examine, "HERE", odd_checks.__name__)
    found = [
        (name, finding.level, finding.text)
        for name, finding in examine.examine(odd_checks.CHECKS, Subject())
    ]
    assert found[:5] == [
        ("crash", PROBLEM, "crash: the check was ended by SIGKILL"),
        ("hang", PROBLEM, "hang: the check gave no answer within 1 s"),
        ("raise", OK, "found before"),
        ("raise", PROBLEM, "the check failed (RuntimeError: a broken library)"),
        (
            "absent",
            PROBLEM,
            "the check failed (ModuleNotFoundError: No module named 'no_such_module')",
        ),
    ]
    assert found[5:8] == [
        ("members", OK, "member first"),
        ("members", PROBLEM, "second: the check ended its process with status 1"),
        ("members", OK, "member third"),
    ]
    ((name, level, text),) = found[8:]
    assert (name, level) == ("listing", PROBLEM)
    assert text.startswith("listing: the check failed: AttributeError")


def test_an_error_of_flawline_has_its_remedy() -> None:
    finding = failed(EngineError("engine x: is old (1.0); update it"))
    assert (finding.text, finding.remedy) == ("engine x: is old (1.0)", "update it")
    assert failed(EngineError("engine x: is old")).remedy == "see the lines above"


# What the user asks about.


def test_a_subject_passes_through_json(tmp_path: Path) -> None:
    subject = Subject(tmp_path, tmp_path / "c", (tmp_path / "d",), "grpc://h/m", tmp_path / "s")
    assert subject_from_json(json.loads(json.dumps(subject_to_json(subject)))) == subject
    assert subject_from_json(subject_to_json(Subject())) == Subject()


def test_a_station_file_says_what_the_flags_do_not(tmp_path: Path) -> None:
    path = write_station(tmp_path)
    subject = completed(Subject(station=path))
    assert subject.bundle == tmp_path / "bundles" / "part"
    assert subject.cache == tmp_path / "plans"
    assert subject.folders == (tmp_path / "log",)
    assert completed(Subject(bundle=tmp_path, station=path)).bundle == tmp_path
    assert [finding.level for finding in check_station(Machine(), Subject(station=path))] == [OK]
    path.write_text("{")
    with pytest.raises(StationError):
        list(check_station(Machine(), Subject(station=path)))


# Engines and bundles.


def test_a_precision_that_this_machine_does_not_have_is_not_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "this CPU has no native BF16, where it is slower; choose --precision fp32"
    monkeypatch.setattr(OpenVino, "missing", lambda: None)
    monkeypatch.setattr(OpenVino, "installed", lambda: "2025.1")
    monkeypatch.setattr(OpenVino, "unsuited", {"bf16": reason}.get)
    listed, left_out = check_engine(Machine(), Subject(), "openvino")
    assert (listed.level, listed.text) == (OK, "openvino 2025.1: fp32, int8")
    assert left_out.level == NOTE
    assert left_out.text == (
        "openvino does not run bf16: this CPU has no native BF16, where it is slower"
    )
    assert left_out.remedy == "choose --precision fp32"


@pytest.mark.parametrize("name", ENGINES)
def test_each_engine_can_be_used_or_says_what_is_missing(name: str) -> None:
    finding, *_ = check_engine(Machine(), Subject(), name)
    assert finding.text.startswith(name)
    assert finding.level == OK or finding.remedy
    assert name in engine_names()


def test_a_gpu_that_no_engine_uses_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").touch()
    unusable = [name for name in ENGINES if engine_class(name).has_device_memory]
    reasons = dict.fromkeys(unusable, "is missing")
    monkeypatch.setattr("flawline.runtime.engines.unusable_here", reasons.get)
    (finding,) = check_gpu_use(Machine(tmp_path), Subject())
    assert finding.level == PROBLEM
    assert f"because {' and '.join(unusable)} cannot be used" in finding.text
    monkeypatch.setattr("flawline.runtime.engines.unusable_here", lambda name: None)
    (finding,) = check_gpu_use(Machine(tmp_path), Subject())
    assert finding.level == OK
    monkeypatch.setattr("flawline.runtime.engines.unusable_here", lambda name: "is missing")
    (finding,) = check_gpu_use(Machine(tmp_path), Subject())
    assert finding.text.startswith("no engine can be used")


def test_a_bundle_is_read_and_compared_with_its_log(bundle: Bundle) -> None:
    subject = Subject(bundle=bundle.path)
    found = list(check_bundle(Machine(), subject))
    assert [finding.level for finding in found] == [OK, OK]
    assert found[1].text.startswith("--engine auto stands for ")
    path = bundle.path / "calibration.json"
    path.write_text(path.read_text().replace('"threshold": ', '"threshold": 1'))
    assert NOTE in [finding.level for finding in check_bundle(Machine(), subject)]


def test_an_engine_that_fails_the_self_test_is_a_problem(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "part")
    subject = Subject(bundle=bundle.path)
    assert [finding.level for finding in check_self_test(Machine(), subject, REFERENCE_ENGINE)] == [
        OK
    ]
    golden = bundle.golden()
    wrong = Golden(golden.images, golden.scores + 5, golden.maps)
    write_bundle(bundle.path, bundle.manifest, bundle.calibration, {"fp32": tiny_model()}, wrong)
    (finding,) = check_self_test(Machine(), subject, REFERENCE_ENGINE)
    assert finding.level == PROBLEM
    assert "fails the self-test" in finding.text


def test_what_cannot_be_tested_is_left_to_the_other_checks(tmp_path: Path) -> None:
    for name in ENGINES:
        assert not list(check_self_test(Machine(), Subject(), name))
        assert not list(check_self_test(Machine(), Subject(bundle=tmp_path / "absent"), name))


def test_an_engine_on_a_server_is_tested_where_a_server_is_named(bundle: Bundle) -> None:
    pytest.importorskip("tritonclient.grpc")
    names = [name for name in ENGINES if engine_class(name).needs_server]
    server = KServeServer(bundle)
    try:
        subject = Subject(bundle=bundle.path, server=server.patient_uri)
        for name in names:
            first, *others = check_self_test(Machine(), subject, name)
            assert first.text.startswith(f"{name} fp32: self-test passed")
            assert PROBLEM not in levels(others), others
        # `auto` is for engines of this machine.
        assert levels(check_bundle(Machine(), subject)) == {OK}
    finally:
        server.kill()


# TensorRT, with a substitute for its library and the driver.


@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_says_what_its_layers_compute_in(
    version: str, fp16_bundle: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    control = install(version)
    name = engine_name(version)
    subject = Subject(bundle=fp16_bundle.path)

    def found() -> Finding:
        half, *_ = check_self_test(Machine(), subject, name)
        return half

    assert found().level == NOTE
    assert "has no plan for this machine (there is none yet)" in found().text
    assert f"--engine {name} --precision fp16" in str(found().remedy)
    assert not control.builds
    build_plan(fp16_bundle, name)
    assert found().level == OK
    assert found().text == f"{name} fp16: self-test passed; of 3 layers, 1 in fp32, 2 in fp16"
    assert "warning" not in capsys.readouterr().err
    control.types = ["Row major linear FP32 format"]
    assert found().level == PROBLEM
    assert "no layer computes in fp16" in str(found().remedy)
    assert "has built it in fp32" in capsys.readouterr().err
    assert len(control.builds) == 1


def test_an_older_plan_does_not_say_it(
    fp16_bundle: Bundle, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("10.3")
    path = build_plan(fp16_bundle)
    record = path.with_name(RECORD)
    plan = path.read_bytes().replace(b'"details": true', b'"details": false')
    path.write_bytes(plan)
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "plan": hashlib.sha256(plan).hexdigest()}))
    half, *_ = check_self_test(Machine(), Subject(bundle=fp16_bundle.path), "tensorrt")
    assert half.level == OK
    assert "does not state" in half.text
    assert "warning" not in capsys.readouterr().err


# Texts of TensorRT 8.6, 10 and 11.
CHANNELS = "Channel major FP16 format where channel % 8 == 0"
LAYERS = [
    {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": CHANNELS}], "Outputs": []},
    {
        "LayerType": "kgen",
        "Inputs": [{"Format/Datatype": "Float"}],
        "Outputs": [{"Format/Datatype": "Half"}],
    },
    {"LayerType": "gemm", "Inputs": [{"Datatype": "BFloat16"}], "Outputs": [{"Datatype": "Float"}]},
    {"LayerType": "conv", "Inputs": [{"Datatype": "Int8"}], "Outputs": [{"Datatype": "Half"}]},
    {"LayerType": "kgen", "Inputs": [{"Datatype": "UInt8"}], "Outputs": [{"Datatype": "Float"}]},
    {"LayerType": "Reformat", "Inputs": [{"Datatype": "Float"}], "Outputs": [{"Datatype": "Half"}]},
    {"LayerType": "kgen", "Inputs": [{"Datatype": "Int32"}], "Outputs": []},
    "/head/Conv",
]


def test_the_words_of_all_versions_are_known() -> None:
    counts = count_types(json.dumps({"Layers": LAYERS}))
    assert counts == {"fp16": 2, "bf16": 1, "int8": 1, "fp32": 1}


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"Layers": ["a", "b"]}'])
def test_an_information_without_types_gives_none(text: str) -> None:
    assert not count_types(text)


@pytest.mark.parametrize(
    ("precision", "types", "level", "text"),
    [
        ("fp16", {"fp32": 20, "fp16": 40}, OK, "of 60 layers, 20 in fp32, 40 in fp16"),
        ("fp16", {"fp32": 60}, PROBLEM, "of 60 layers, 60 in fp32"),
        ("fp32", {"bf16": 60}, OK, "60 in bf16"),
        ("bf16", {}, OK, "does not state"),
    ],
)
def test_a_precision_that_no_layer_computes_in_is_a_problem(
    precision: str, types: Mapping[str, int], level: str, text: str
) -> None:
    finding = judge_types("engine", precision, types)
    assert finding.level == level
    assert text in finding.text


def test_onnx_runtime_states_what_it_computes_in(bundle: Bundle) -> None:
    engine = open_engine(bundle, REFERENCE_ENGINE, EngineOptions(threads=1))
    # The mean over the colours, and the maximum of the map.
    assert engine.layer_types() == {"fp32": 2}
    engine.close()
    in_memory = open_reference(tiny_model(), bundle.map_size)
    assert not in_memory.layer_types()
    in_memory.close()


def test_kernels_are_counted_by_their_outputs() -> None:
    def event(kernel: str, kind: str) -> dict[str, Any]:
        facts = {"op_name": kernel, "output_type_shape": [{kind: [1, 3]}]}
        return {"name": f"/x/{kernel}_kernel_time", "args": facts}

    events = [
        {"name": "session_initialization"},
        {"name": "/x/Conv_fence_before", "args": {"op_name": "Conv"}},
        event("Conv", "float"),
        event("Conv", "float16"),
        event("QLinearConv", "uint8"),
        event("Cast", "float"),
        event("ArgMax", "int64"),
    ]
    assert profile_types(events) == {"fp32": 1, "fp16": 1, "int8": 1}


def test_openvino_states_what_it_computes_in(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    engine = OpenVino.open(bundle, EngineOptions(precision="fp32", threads=1))
    assert not engine.layer_types()
    engine(bundle.golden().images[:1])
    assert set(engine.layer_types()) == {"fp32"}
    engine.close()
