"""Schemathesis sends what the page's OpenAPI description allows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")
schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from conftest import write_tiny_bundle
from fakes.page import Belt, ask, judged
from hypothesis import HealthCheck, given, settings

from flawline.runtime.moved_threshold import revision_of
from flawline.runtime.outputs import StreamState, open_output
from flawline.runtime.outputs.web.output import LivePage

OPERATIONS = [
    "GET /api/state",
    "GET /api/lanes/{name}/scores",
    "GET /api/lanes/{name}/picture",
    "GET /api/parts",
    "GET /api/parts/{number}/picture",
    "GET /metrics",
    "GET /healthz",
    "GET /api/threshold",
    "POST /api/threshold",
    "POST /api/threshold/undo",
    "GET /api/teaching",
    "GET /api/teaching/pictures/{number}",
    "POST /api/teaching/mark",
    "POST /api/teaching/collect",
    "POST /api/teaching/remove",
    "POST /api/teaching/start",
    "POST /api/teaching/stop",
    "POST /api/teaching/undo",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePage]:
    """A healthy stream with a frame of each kind."""
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("page") / "bundle")
    page = open_output("web:127.0.0.1:0", bundle)
    assert isinstance(page, LivePage)
    with page:
        page.follow(lambda: StreamState("engine", "cap", False, (), ()))
        page.attach(Belt(knows_parts=True))
        for score in (20.0, 80.0, 200.0):
            page.write(judged(score))
        yield page


@pytest.fixture(scope="module")
def schema(page: LivePage) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{page.port}/api/openapi.json")


def scan(page: LivePage, schema: Any, name: str, mode: Any, examples: int) -> set[int]:
    """Send so many requests of one operation; return the statuses of the answers."""
    method, path = name.split()
    statuses = set()
    path_of_bundle = page._board.bundle.path

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        body = case.body
        # A change gets further if it states what the desk shows.
        if isinstance(body, dict) and "revision" in body and len(str(body)) % 2:
            case.body = {**body, "revision": revision_of(path_of_bundle)}
        status = case.call(timeout=20).status_code
        statuses.add(status)
        assert status < 500, case.as_curl_command()

    send()
    return statuses


def test_the_scan_covers_every_operation(schema: Any) -> None:
    found = []
    for operation in schema.get_all_operations():
        found.append(f"{operation.ok().method.upper()} {operation.ok().path}")
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_request_is_an_error_of_the_server(page: LivePage, schema: Any, name: str) -> None:
    modes = schemathesis.GenerationMode
    assert scan(page, schema, name, modes.POSITIVE, 6)
    if "{" in name or "POST" in name:
        assert scan(page, schema, name, modes.NEGATIVE, 6) - {200}
    # It is what it was.
    assert ask(page.port, "/api/state").status == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_long_scan_finds_no_error_of_the_server(page: LivePage, schema: Any, name: str) -> None:
    for mode in schemathesis.GenerationMode:
        if mode is schemathesis.GenerationMode.POSITIVE or "{" in name or "POST" in name:
            scan(page, schema, name, mode, 500)
