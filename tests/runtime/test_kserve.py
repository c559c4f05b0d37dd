"""The engine that sends images to a server: what it checks, and how it loses and finds one."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZE, tiny_model, write_tiny_bundle
from fakes.kserve_server import KServeServer

from flawline.cameras import Camera, Frame
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import (
    Engine,
    EngineError,
    EngineOptions,
    EngineUnavailable,
    open_engine,
)
from flawline.runtime.engines import missing as missing_engine
from flawline.runtime.engines.kserve import client
from flawline.runtime.engines.kserve import engine as kserve
from flawline.runtime.engines.kserve.address import parse_address
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

pytestmark = pytest.mark.skipif(
    missing_engine("kserve") is not None, reason=str(missing_engine("kserve"))
)
WAIT_S = 20.0


@pytest.fixture
def server(bundle: Bundle) -> Iterator[KServeServer]:
    server = KServeServer(bundle)
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kserve, "PAUSE_S", 0.01)


def opened(server: KServeServer, query: str = "", **values: Any) -> Engine:
    uri = server.uri + query
    if "timeout" not in query:
        # One that a busy machine does not reach.
        uri += "&timeout=30" if "?" in uri else "?timeout=30"
    return open_engine(server.bundle, "kserve", EngineOptions(server=uri, **values))


def grey(value: int) -> np.ndarray:
    return np.full((1, SIZE, SIZE, 3), value, np.uint8)


def score(engine: Engine, value: int) -> float:
    return float(engine(grey(value))[0][0])


def until_answered(engine: Engine) -> None:
    """Wait for the connection, which gRPC opens after pauses of its own."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            engine(grey(1))
            return
        except EngineUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def other_model() -> bytes:
    """The tiny graph with the smallest value of the map as the score."""
    onnx = pytest.importorskip("onnx", reason="needs the train extra")
    model = onnx.load_from_string(tiny_model())
    model.graph.node[-1].op_type = "ReduceMin"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("shape", [[-1], [-1, 1]])
def test_both_forms_of_results_are_read(
    typed: bool, shape: list[int], server: KServeServer
) -> None:
    server.typed = typed
    server.outputs["score"] = shape
    engine = opened(server)
    scores, maps = engine(np.concatenate([grey(7), grey(9)]))
    assert scores.tolist() == [7, 9]
    assert maps.shape == (2, SIZE, SIZE)
    assert maps[1].max() == 9
    engine.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": ("pixels", "UINT8", [-1, SIZE, SIZE, 3])}, "needs the input image UINT8"),
        ({"input": ("image", "FP32", [-1, SIZE, SIZE, 3])}, "has the inputs image FP32"),
        ({"input": ("image", "UINT8", [-1, 3, SIZE, SIZE])}, rf"\[-1, {SIZE}, {SIZE}, 3\]; serve"),
        ({"outputs": {"score": [-1]}}, "and the bundle needs the output map FP32"),
        ({"outputs": {"score": [-1], "map": [-1, 9, 9]}}, "has the outputs score FP32"),
    ],
)
def test_a_model_that_declares_something_else_is_refused_in_one_line(
    change: dict[str, Any], message: str, server: KServeServer
) -> None:
    vars(server).update(change)
    with pytest.raises(EngineError, match=message) as raised:
        opened(server)
    assert str(raised.value).startswith(server.uri)
    assert str(raised.value).endswith("that flawline triton writes from this bundle")
    assert "\n" not in str(raised.value)
    assert server.requests == 0


def test_a_server_need_not_declare_tensors(
    server: KServeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tritonclient.grpc.service_pb2 import ModelMetadataResponse

    monkeypatch.setattr(server, "metadata", lambda: ModelMetadataResponse(name="part"))
    engine = opened(server)
    assert engine.largest_batch is None
    assert score(engine, 5) == 5
    engine.close()


def test_another_model_fails_the_self_test(server: KServeServer) -> None:
    server.load(other_model())
    with pytest.raises(EngineError, match=r"grpc://.* fails the self-test of .*: golden image 0"):
        opened(server)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("x", "answers with an error .NOT_FOUND: Model partx not found.; start the server"),
        ("?version=3", "answers with an error .NOT_FOUND"),
    ],
)
def test_a_model_that_the_server_does_not_have(
    query: str, message: str, server: KServeServer
) -> None:
    with pytest.raises(EngineError, match=message):
        opened(server, query)
    opened(server, "?version=1").close()


def test_a_server_that_does_not_run_is_named(server: KServeServer) -> None:
    server.kill()
    with pytest.raises(EngineError, match=rf"^{server.uri} cannot be reached .*; start the server"):
        opened(server)


def test_the_configuration_of_triton_names_graph_precision_and_batch(server: KServeServer) -> None:
    sha256 = server.bundle.model_sha256()
    parameters = {"onnx_sha256": sha256, "precision": "fp32"}
    server.config = {"max_batch_size": 8, "parameters": parameters}
    engine = opened(server)
    assert engine.largest_batch == 8
    engine.close()
    parameters["onnx_sha256"] = "0" * 64
    digests = f"SHA-256 {'0' * 12}, and not {sha256[:12]}"
    with pytest.raises(EngineError, match=f"another graph .{digests}"):
        opened(server)
    parameters["precision"] = "fp16"
    with pytest.raises(EngineError, match="the model computes in fp16; choose --precision fp16"):
        opened(server)


def test_a_model_without_batches_gets_one_image_a_call(server: KServeServer) -> None:
    server.input = ("image", "UINT8", [1, SIZE, SIZE, 3])
    engine = opened(server)
    assert engine.largest_batch == 1
    engine.close()


def test_a_request_is_repeated_only_where_the_connection_was_lost(server: KServeServer) -> None:
    engine = opened(server, "?retries=2")
    server.failures = ["UNAVAILABLE", "UNAVAILABLE"]
    assert score(engine, 4) == 4
    server.failures = ["UNAVAILABLE"] * 3
    with pytest.raises(EngineUnavailable, match=r"^grpc://.* cannot be reached .UNAVAILABLE: as t"):
        engine(grey(4))
    assert score(engine, 4) == 4
    server.requests = 0
    server.failures = ["INTERNAL"]
    with pytest.raises(EngineUnavailable, match=r"answers with an error \(INTERNAL: as the test"):
        engine(grey(4))
    assert server.requests == 1
    engine.close()


def test_a_server_that_hangs_is_given_up_and_asked_again(server: KServeServer) -> None:
    engine = opened(server, "?timeout=1")
    server.delay_s = 2.5
    with pytest.raises(EngineUnavailable, match=r"^grpc://\S+ has not answered within 1 s$"):
        engine(grey(4))
    server.delay_s = 0.0
    until_answered(engine)
    assert score(engine, 6) == 6
    engine.close()


@pytest.mark.parametrize("streams", [None, 2])
def test_a_server_that_was_restarted_passes_the_self_test_again(
    streams: int | None, server: KServeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = opened(server, streams=streams)
    server.kill()
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            engine(grey(4))
    server.start()
    server.requests = 0
    until_answered(engine)
    assert server.requests == 1 + len(server.bundle.golden().images)
    assert f"{server.uri} answers again, and passed the self-test" in capsys.readouterr().err
    engine.close()


def test_a_restart_between_two_images_is_noticed(server: KServeServer) -> None:
    engine = opened(server)
    assert isinstance(engine, kserve.KServe)
    assert score(engine, 4) == 4
    server.kill()
    deadline = time.monotonic() + WAIT_S
    while not engine._client.lost:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.load(other_model())
    server.start()
    deadline = time.monotonic() + WAIT_S
    reason = ""
    while "self-test" not in reason:
        assert time.monotonic() < deadline
        with pytest.raises(EngineUnavailable) as raised:
            engine(grey(4))
        reason = str(raised.value)
    server.load(tiny_model())
    assert score(engine, 4) == 4
    engine.close()


def test_a_connection_that_is_not_watched_counts_as_lost(
    server: KServeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the thread that watches it gets no time, and misses that it was ready."""
    engine = opened(server)
    assert isinstance(engine, kserve.KServe)
    assert score(engine, 4) == 4
    assert not engine._client.lost
    monkeypatch.setattr(client, "SEEN_S", 0.01)
    monkeypatch.setattr(client.Client, "_watcher", lambda self, episode: lambda state: None)
    engine._client.connect()
    server.requests = 0
    assert score(engine, 4) == 4
    assert engine._client.lost
    # Each further image is preceded by the self-test.
    server.requests = 0
    assert score(engine, 4) == 4
    assert server.requests >= 1 + len(server.bundle.golden().images)
    engine.close()


def test_another_version_of_the_model_passes_the_self_test_first(server: KServeServer) -> None:
    engine = opened(server)
    assert score(engine, 4) == 4
    server.version = "2"
    server.requests = 0
    assert score(engine, 4) == 4
    assert server.requests == 2 + len(server.bundle.golden().images)
    server.version = "3"
    server.load(other_model())
    with pytest.raises(EngineUnavailable, match="fails the self-test"):
        engine(grey(4))
    engine.close()


class Line(Camera):
    """Grey frames, which `events` interrupt: each is called when so many verdicts are there.

    The camera ends at the first judged frame after the last event, and those that follow it.
    """

    def __init__(self, output: Remembering, events: dict[int, Callable[[], None]]) -> None:
        super().__init__()
        self.output = output
        self.events = events

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        deadline = time.monotonic() + WAIT_S
        while self.events or not isinstance(self.output.last, float):
            assert time.monotonic() < deadline
            yield self._frame(index)
            index += 1
            time.sleep(0.005)
            for count in list(self.events):
                if len(self.output.seen) >= count:
                    self.events.pop(count)()
        for _ in range(5):
            yield self._frame(index)
            index += 1

    def _frame(self, index: int) -> Frame:
        return Frame("line", index, np.full((60, 80, 3), index % 100, np.uint8))


class Remembering(Output):
    """Notes the score of each frame, or why there is none."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float | str]] = []

    @property
    def last(self) -> float | str | None:
        return self.seen[-1][1] if self.seen else None

    def write(self, judgement: Judgement) -> None:
        verdict = judgement.verdict
        result: float | str = verdict.score
        if verdict.reason is not None:
            result = verdict.reason
        self.seen.append((judgement.frame.index, result))


@pytest.mark.parametrize("batch", [None, 1])
def test_a_server_that_is_killed_and_restarted_under_load_loses_no_frame(
    batch: int | None, server: KServeServer
) -> None:
    output = Remembering()
    camera = Line(output, {5: server.kill, 15: server.start})
    options = EngineOptions(server=server.patient_uri, streams=None if batch is None else 2)
    with Detector(server.bundle, "kserve", options) as detector:
        run_stream(camera, detector, [output], None, threading.Event(), Tally(), batch)
    assert [index for index, _ in output.seen] == list(range(len(output.seen)))
    reasons = []
    for index, result in output.seen:
        if isinstance(result, str):
            reasons.append(result)
        else:
            assert result == index % 100
    assert all(reason.startswith(f"{server.uri} cannot be reached") for reason in reasons)
    # Frames that were prepared before the server was killed may still have been judged.
    assert len(reasons) >= 3
    assert all(isinstance(result, float) for _, result in [*output.seen[:5], *output.seen[-5:]])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("part", "--server part: is not an address grpc://HOST:PORT/MODEL; write it so"),
        ("grpc://host/part", "is not an address"),
        ("grpc://host:0/part", "is not an address"),
        ("grpc://user:secret@host:1/part", "^--server grpc://host:1/part: is not an address"),
        ("grpc://host:1/part?timeout=0", "timeout must be above 0 and at most 60"),
        ("grpc://host:1/part?retries=11", "retries must be from 0 to 10"),
        ("grpc://host:1/part?ca=x", "ca needs tls=1"),
        ("grpc://host:1/part?speed=1", "option 'speed' is unknown; known options: version"),
        ("grpc://host:1/part?headers=/absent", "headers file /absent cannot be read"),
        ("grpc://host:1/part?tls=1&ca=/absent", "certificates /absent cannot be read"),
    ],
)
def test_a_wrong_address_is_refused(uri: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        parse_address(uri)


def test_headers_come_from_a_file(server: KServeServer, tmp_path: Path) -> None:
    headers = tmp_path / "headers.txt"
    headers.write_text("Authorization: Bearer secret-7\n")
    headers.chmod(0o600)
    engine = opened(server, f"?headers={headers}")
    assert server.headers["authorization"] == "Bearer secret-7"
    assert "secret" not in engine.description
    engine.close()


def test_tls_is_checked_against_the_given_certificate(server: KServeServer, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    import grpc

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", *request.split(), "subjectAltName=IP:127.0.0.1", *files]
    subprocess.run(command, check=True, capture_output=True)
    server.kill()
    pair = (key.read_bytes(), certificate.read_bytes())
    server.start(grpc.ssl_server_credentials([pair]))
    engine = opened(server, f"?tls=1&ca={certificate}")
    assert score(engine, 4) == 4
    engine.close()
    with pytest.raises(EngineError, match="cannot be reached"):
        opened(server, "?tls=1")


def test_a_bundle_for_the_score_alone_asks_for_no_map(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "scores", outputs=("score",))
    server = KServeServer(bundle)
    engine = opened(server)
    assert engine(grey(3))[1].shape == (1, 0, 0)
    engine.close()
    server.kill()


def test_results_of_the_wrong_size_are_no_verdicts(server: KServeServer) -> None:
    engine = opened(server)
    answer = server.infer

    def cut(request: Any) -> Any:
        response = answer(request)
        response.raw_output_contents[1] = response.raw_output_contents[1][:-1]
        return response

    server.infer = cut  # type: ignore[method-assign]
    with pytest.raises(EngineUnavailable, match=r"the server gives map \[1, 64, 64\], not \[1, 64"):
        engine(grey(3))
    engine.close()
