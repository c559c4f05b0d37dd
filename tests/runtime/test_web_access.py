"""Who may see the live page, and what it refuses."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from fakes.page import ask

from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import OutputError, open_output
from flawline.runtime.outputs.web import app
from flawline.runtime.outputs.web.access import Access, host_of, is_loopback
from flawline.runtime.outputs.web.guard import LARGEST_BODY
from flawline.runtime.outputs.web.output import LivePage

TOKEN = "0123456789abcdef-secret"
FORM = {"content_type": "application/x-www-form-urlencoded"}


def open_page(bundle: Bundle, target: str) -> LivePage:
    page = open_output(f"web:{target}", bundle)
    assert isinstance(page, LivePage)
    return page


@pytest.fixture
def page(bundle: Bundle) -> Iterator[LivePage]:
    """A page for this machine alone."""
    with open_page(bundle, "127.0.0.1:0?names=line4.example") as page:
        yield page


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token.txt"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def locked(bundle: Bundle, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LivePage]:
    """A page that other machines can reach."""
    monkeypatch.setattr(app, "FAILED_LOGIN_S", 0.0)
    with open_page(bundle, f"0.0.0.0:0?token_file={token_file}") as page:
        yield page


def log_in(port: int, token: str = TOKEN) -> str:
    """Give the token as a browser does, and return its cookie."""
    answer = ask(port, "/login", "POST", urlencode({"token": token}).encode(), **FORM)
    assert answer.status == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    return cookie.split(";")[0]


# An address that others can reach needs a token.


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.7", "line4.example:8080"])
def test_an_outward_address_without_a_token_is_refused(bundle: Bundle, address: str) -> None:
    with pytest.raises(OutputError, match=r"needs a token.*--web-token-file") as caught:
        open_output(f"web:{address}", bundle)
    assert "\n" not in str(caught.value)


def test_addresses_of_this_machine_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "line4", "localhost.example")))


def test_nothing_is_shown_without_the_token(locked: LivePage) -> None:
    for path in ("/api/state", "/api/events", "/api/parts", "/metrics", "/api/openapi.json"):
        answer = ask(locked.port, path)
        assert answer.status == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    browser = ask(locked.port, "/", accept="text/html,*/*;q=0.8")
    assert (browser.status, browser.headers["location"]) == (303, "/login")
    # What shows nothing of the parts.
    assert ask(locked.port, "/login").status == 200
    assert ask(locked.port, "/static/base.css").status == 200
    assert ask(locked.port, "/healthz").status == 503


def test_programs_give_the_token_in_a_header(locked: LivePage) -> None:
    assert ask(locked.port, "/api/state", authorization=f"Bearer {TOKEN}").status == 200
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", "", f"Bearer {TOKEN[:-1]}"):
        assert ask(locked.port, "/api/state", authorization=wrong).status == 401, wrong


def test_browsers_give_the_token_once(locked: LivePage) -> None:
    cookie = log_in(locked.port)
    assert TOKEN not in cookie
    assert ask(locked.port, "/api/state", cookie=cookie).status == 200
    assert ask(locked.port, "/login", cookie=cookie).headers["location"] == "/"
    for wrong in (cookie[:-1], f"{cookie}0", cookie.replace("=", "=9"), "flawline_1=x", ";;=;"):
        assert ask(locked.port, "/api/state", cookie=wrong).status == 401, wrong


def test_a_wrong_token_is_said_on_the_form(locked: LivePage) -> None:
    for body in (b"token=wrong", b"", b"token=", b"other=1", b"\xff\xfe", b"token=" + b"a" * 600):
        answer = ask(locked.port, "/login", "POST", body, **FORM)
        assert answer.status == 401, body
        assert b"This is not the token" in answer.body
        assert "set-cookie" not in answer.headers


def test_a_session_outlives_a_new_start_but_not_its_token(
    bundle: Bundle, token_file: Path, locked: LivePage
) -> None:
    cookie = log_in(locked.port)
    port = locked.port
    locked.close()
    with open_page(bundle, f"0.0.0.0:{port}?token_file={token_file}") as again:
        assert ask(again.port, "/api/state", cookie=cookie).status == 200
    token_file.write_text(f"{TOKEN}-2")
    with open_page(bundle, f"0.0.0.0:{port}?token_file={token_file}") as other:
        assert ask(other.port, "/api/state", cookie=cookie).status == 401


def test_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(TOKEN, 8080)
    cookie = f"{access.cookie}={access.new_session()}"
    assert access.is_known(None, cookie)
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert not access.is_known(None, cookie)
    assert TOKEN not in repr(access)


def test_a_log_out_forgets_the_session(locked: LivePage) -> None:
    answer = ask(locked.port, "/logout", "POST", b"", cookie=log_in(locked.port))
    assert answer.status == 303
    assert "flawline_" in answer.headers["set-cookie"]
    assert "Max-Age=0" in answer.headers["set-cookie"]


# Other sites.


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "evil.example:80", "a@127.0.0.1", "[::1"]
)
def test_a_name_of_another_site_is_refused(page: LivePage, host: str) -> None:
    """As a page of that site would use whose name leads here (DNS rebinding)."""
    answer = ask(page.port, "/api/state", host=host)
    assert answer.status in (400, 421)


def test_names_and_addresses_of_the_machine_are_accepted(page: LivePage) -> None:
    own = socket.gethostname()
    for host in ("127.0.0.1", "localhost:1", "[::1]:8080", "10.1.2.3", "LINE4.example", own):
        assert ask(page.port, "/api/state", host=host).status == 200, host
    assert host_of("localhost.:80") == "localhost"


def test_a_change_from_another_site_is_refused(page: LivePage) -> None:
    body = {"person": "Anna", "revision": "x", "threshold": 1.0}
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{page.port + 1}"},
        {"origin": "http://["},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        answer = ask(page.port, "/api/threshold", "POST", body, **headers)
        assert answer.status == 403, headers
    # A form of another site cannot send JSON without being asked for by the browser first.
    plain = ask(page.port, "/api/threshold", "POST", b'{"person": "A"}', content_type="text/plain")
    assert plain.status == 422
    own = ask(page.port, "/api/threshold", "POST", body, origin=f"http://127.0.0.1:{page.port}")
    assert own.status == 409


def test_every_answer_has_the_headers_that_browsers_need(page: LivePage) -> None:
    paths = ("/", "/api/state", "/static/page.js", "/static/none", "/metrics", "/nothing")
    answers = [ask(page.port, path) for path in paths]
    answers.append(ask(page.port, "/", host="evil.example"))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answers[1].headers


def test_the_page_has_no_inline_script_and_loads_nothing_from_elsewhere(page: LivePage) -> None:
    for path in ("/", "/login"):
        text = ask(page.port, path).body.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text)
        assert not re.search(r"(?:src|href|action)=.?(?:https?:)?//", text)
    assert "docs" not in str(ask(page.port, "/api/openapi.json").json["paths"])
    assert ask(page.port, "/docs").status == 404


def test_a_large_request_is_refused(page: LivePage) -> None:
    body = b" " * (LARGEST_BODY + 1)
    assert ask(page.port, "/api/threshold", "POST", body).status == 413
    assert ask(page.port, "/login", "POST", iter([body]), **FORM).status == 413  # type: ignore[arg-type]
    assert ask(page.port, "/api/state").status == 200


# Files and flags.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not hold one line with a token"),
        (b"one\ntwo\n", "does not hold one line with a token"),
        (b"a token with spaces in it", "does not hold one line with a token"),
        (b"short", "the token has 5 characters, and needs 16"),
        (b"\xff" * 20, "is not ASCII text"),
        (None, "cannot be read"),
    ],
)
def test_a_token_file_that_cannot_be_used(
    bundle: Bundle, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "token.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match=reason) as caught:
        open_output(f"web:127.0.0.1:0?token_file={path}", bundle)
    assert "two" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_others_may_read_gives_a_warning(
    bundle: Bundle, token_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token_file.chmod(0o644)
    open_page(bundle, f"127.0.0.1:0?token_file={token_file}").close()
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["", "127.0.0.1:99999", "http://127.0.0.1", "a b", "::1"])
def test_a_target_that_is_no_address(bundle: Bundle, target: str) -> None:
    with pytest.raises(OutputError, match="is not ADDRESS or ADDRESS:PORT; write web:ADDRESS"):
        open_output(f"web:{target}", bundle)


def test_a_port_that_is_taken(bundle: Bundle, page: LivePage) -> None:
    with pytest.raises(OutputError, match=r"cannot listen .*choose an address"):
        open_output(f"web:127.0.0.1:{page.port}", bundle)


def test_the_flags_are_short_for_the_output(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(bundle.path), "--camera", "synthetic://?frames=2"]
    with pytest.raises(SystemExit):
        infer_stream.main([*words, "--web-token-file", "token.txt"])
    assert "--web-token-file needs --web" in capsys.readouterr().err
    path = tmp_path / "to ken?.txt"
    path.write_text(TOKEN)
    path.chmod(0o600)
    flags = ["--web", "127.0.0.1:0", "--web-token-file", str(path)]
    assert infer_stream.main([*words, *flags, "--engine", "onnxruntime"]) == 0
    captured = capsys.readouterr()
    assert "the live page is at http://127.0.0.1:" in captured.err
    # The lines are still printed.
    assert len(captured.out.splitlines()) == 3
