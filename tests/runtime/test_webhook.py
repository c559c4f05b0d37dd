"""Results as HTTP POST: a server that dies, that is slow, and that refuses."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.http_peer import HttpPeer
from fakes.judgements import judgement

from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import OutputError, open_output, webhook

PATIENCE_S = 20


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    peer = HttpPeer()
    yield peer
    peer.kill()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LONGEST_PAUSE_S", 0.05)


def address(peer: HttpPeer, options: str = "") -> str:
    return f"webhook:http://127.0.0.1:{peer.port}/results%3Fline=4?end_s=30{options}"


def indices(peer: HttpPeer) -> list[int]:
    return [line["index"] for line in peer.accepted.values() if "index" in line]


def test_a_stream_is_delivered_in_order_with_its_summary(
    bundle: Bundle, peer: HttpPeer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = tmp_path / "headers.txt"
    headers.write_text("# for the database\nAuthorization: Bearer secret-7\nX-Line: 4\n")
    headers.chmod(0o600)
    camera = "synthetic://?width=64&height=48&fps=500&frames=20&trigger=line1"
    flags = ["--bundle", str(bundle.path), "--camera", camera, "--output", "jsonl"]
    target = address(peer, f"&headers={headers}")
    assert infer_stream.main([*flags, "--output", target]) == 0
    captured = capsys.readouterr()
    printed = [json.loads(line) for line in captured.out.splitlines()]
    assert list(peer.accepted.values()) == printed
    assert printed[-1]["summary"]["delivered"] == 20
    assert printed[-1]["summary"]["not_delivered"] == 0
    assert set(peer.paths) == {"/results?line=4"}
    assert peer.headers[0]["Authorization"] == "Bearer secret-7"
    assert peer.headers[0]["X-Line"] == "4"
    assert peer.headers[0]["Content-Type"] == "application/json"
    assert peer.connections == 1
    assert "secret-7" not in captured.out + captured.err


def test_a_server_that_dies_and_returns_gets_every_message_in_order(
    bundle: Bundle, peer: HttpPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_output(address(peer), bundle) as output:
        for index in range(10):
            output.write(judgement(index))
        peer.wait_for(10)
        peer.kill()
        for index in range(10, 200):
            output.write(judgement(index))
        assert len(peer.accepted) == 10
        messages = wait_for_message("cannot be reached", capsys)
        peer.start()
        assert output.totals() == {"delivered": 200, "not_delivered": 0}
    assert indices(peer) == list(range(200))
    messages += capsys.readouterr().err
    assert messages.count("cannot be reached") == 1


def wait_for_message(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Wait until stderr has a text; return what is there."""
    found = ""
    end = time.monotonic() + PATIENCE_S
    while text not in found:
        assert time.monotonic() < end, found
        found += capsys.readouterr().err
        time.sleep(0.01)
    return found


def test_what_does_not_fit_is_dropped_and_counted_and_reported_once(
    bundle: Bundle, peer: HttpPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.kill()
    with open_output(address(peer, "&queue=10"), bundle) as output:
        for index in range(100):
            output.write(judgement(index))
        peer.start()
        totals = output.totals()
        output.finish({"frames": 100})
    delivered = indices(peer)
    # Those that were waiting, and the first one if the thread had begun to send it.
    assert delivered[:10] == list(range(10))
    assert delivered == sorted(set(delivered))
    assert len(delivered) in (10, 11)
    assert totals == {"delivered": len(delivered), "not_delivered": 100 - len(delivered)}
    err = capsys.readouterr().err
    assert err.count("messages wait already") == 1
    assert f"{100 - len(delivered)} of 100 results were not delivered" in err
    assert list(peer.accepted.values())[-1] == {
        "summary": {"frames": 100, "bundle": bundle.short_id}
    }


def test_a_dead_server_ends_no_stream_and_its_end_is_bounded(bundle: Bundle) -> None:
    with open_output("webhook:http://127.0.0.1:9/?end_s=0.2", bundle) as output:
        for index in range(5):
            output.write(judgement(index, can_wait=True))
        assert output.totals() == {"delivered": 0, "not_delivered": 5}
        output.finish({"frames": 5})


def test_a_server_that_never_answers_holds_up_nothing(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        target = f"webhook:http://127.0.0.1:{port}/?end_s=0.5&timeout=0.1&queue=3"
        with open_output(target, bundle) as output:
            for index in range(50):
                output.write(judgement(index))
            totals = output.totals()
    assert totals == {"delivered": 0, "not_delivered": 50}
    assert "timed out" in capsys.readouterr().err


def test_files_wait_for_a_slow_server(bundle: Bundle, peer: HttpPeer) -> None:
    release = threading.Semaphore(0)

    def slow(number: int) -> int:
        release.acquire()
        return 200

    peer.answer = slow
    with open_output(address(peer, "&queue=1&timeout=30"), bundle) as output:
        threads = [threading.Thread(target=release.release) for _ in range(21)]
        writer = threading.Thread(
            target=lambda: [output.write(judgement(index, can_wait=True)) for index in range(20)]
        )
        writer.start()
        for thread in threads:
            thread.start()
            thread.join()
        writer.join(20)
        assert output.totals() == {"delivered": 20, "not_delivered": 0}
    assert indices(peer) == list(range(20))


def test_a_stream_that_was_told_to_end_waits_for_no_slow_server(
    bundle: Bundle, peer: HttpPeer
) -> None:
    release = threading.Event()

    def slow(number: int) -> int:
        release.wait(30)
        return 200

    peer.answer = slow
    target = address(peer, "&queue=1&timeout=30").replace("end_s=30", "end_s=0.1")
    with open_output(target, bundle) as output:
        output.write(judgement(0, can_wait=True))
        output.stop_waiting()
        for index in range(1, 20):
            output.write(judgement(index, can_wait=True))
        totals = output.totals()
        release.set()
    assert totals == {"delivered": 0, "not_delivered": 20}


def test_a_temporary_answer_is_tried_again_in_place(bundle: Bundle, peer: HttpPeer) -> None:
    peer.answer = lambda number: 503 if number in (1, 2, 3) else 202
    with open_output(address(peer), bundle) as output:
        for index in range(5):
            output.write(judgement(index))
        assert output.totals() == {"delivered": 5, "not_delivered": 0}
    assert indices(peer) == list(range(5))
    assert len(peer.headers) == 8
    keys = [headers["Idempotency-Key"] for headers in peer.headers]
    assert keys[1] == keys[2] == keys[3] == keys[4]
    assert len(set(keys)) == 5


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (301, 1), (500, 8)])
def test_a_message_that_is_refused_holds_up_no_other(
    bundle: Bundle,
    peer: HttpPeer,
    status: int,
    attempts: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peer.answer = lambda number: status if number < attempts else 200
    with open_output(address(peer), bundle) as output:
        output.write(judgement(0))
        output.write(judgement(1))
        assert output.totals() == {"delivered": 1, "not_delivered": 1}
    assert indices(peer) == [1]
    assert len(peer.headers) == attempts + 1
    assert f"a message was refused: status {status}" in capsys.readouterr().err


def test_a_connection_that_was_closed_while_idle_is_no_failure(
    bundle: Bundle, peer: HttpPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_output(address(peer), bundle) as output:
        for index in range(3):
            output.write(judgement(index))
            assert output.totals() == {"delivered": index + 1, "not_delivered": 0}
            peer.cut()
    assert peer.connections == 3
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "has no http:// or https://"),
        ("host/path", "has no http:// or https://"),
        ("http://host:port/", "is not valid"),
        ("https://admin:pw-7@host/", "has a user name"),
        ("https://host/a b", "must be percent-encoded"),
        ("https://host/?headers=/absent/file", "cannot be read"),
        ("https://host/?ca=/absent/file", "cannot be read"),
        ("https://host/?queue=0", "queue must be from 1"),
        ("https://host/?timeout=nan", "timeout must be above 0"),
        ("https://admin:pw-7@host/?qeue=1", "is unknown"),
    ],
)
def test_a_wrong_target_is_one_line_without_its_secrets(
    bundle: Bundle, target: str, message: str
) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        open_output(f"webhook:{target}", bundle)
    assert "\n" not in str(caught.value)
    assert "pw-7" not in str(caught.value)


@pytest.mark.parametrize("content", [b"Authorization Bearer pw-7", b"X: pw-7\xc3\xa9", b"X: \xff"])
def test_a_wrong_file_of_headers_is_not_quoted(
    bundle: Bundle, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "headers.txt"
    file.write_bytes(b"# first\n" + content)
    with pytest.raises(OutputError, match=r"Authorization: Bearer TOKEN") as caught:
        open_output(f"webhook:https://host/?headers={file}", bundle)
    assert "pw-7" not in str(caught.value)


def test_https_is_checked_against_the_given_certificate(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", *request.split(), "subjectAltName=DNS:localhost", *files]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    peer = HttpPeer(context=context)
    target = f"webhook:https://localhost:{peer.port}/"
    with open_output(f"{target}?end_s=30&ca={certificate}", bundle) as output:
        output.write(judgement(0))
        assert output.totals() == {"delivered": 1, "not_delivered": 0}
    with open_output(f"{target}?end_s=0.5", bundle) as output:
        output.write(judgement(1))
        assert output.totals() == {"delivered": 0, "not_delivered": 1}
    peer.kill()
    assert "certificate verify failed" in capsys.readouterr().err
