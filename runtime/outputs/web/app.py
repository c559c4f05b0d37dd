"""The addresses of the page: its files, the state of the stream, pictures and the threshold desk.

Imported only where FastAPI is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, cast
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel, Field

from flawline import FlawlineError, __version__
from flawline.runtime.moved_threshold import LONGEST_NAME, SHORTEST_NAME
from flawline.runtime.outputs.web.access import SESSION_S, Access
from flawline.runtime.outputs.web.board import Board
from flawline.runtime.outputs.web.desk import Desk, DeskState
from flawline.runtime.outputs.web.feed import Feed
from flawline.runtime.outputs.web.files import PageFile, page_files
from flawline.runtime.outputs.web.guard import LOGIN, App, Guard, TooLargeError
from flawline.runtime.outputs.web.lane import Lane
from flawline.runtime.outputs.web.metrics import metrics_text
from flawline.runtime.outputs.web.pictures import Pictures
from flawline.runtime.outputs.web.shapes import HealthState, KeptState, State
from flawline.runtime.outputs.web.state import health_of, kept_states, state_of
from flawline.runtime.outputs.web.teaching_app import TeachingRoutes
from flawline.runtime.outputs.web.teaching_desk import TeachingDesk

MOST_WATCHERS = 24
FAILED_LOGIN_S = 1.0  # seconds that the answer to a wrong token takes
LARGEST_SCORE = 1e30
LARGEST_ID = 2**53
WRONG_TOKEN = b"<p class='refused' role='alert'>This is not the token.</p>"
MESSAGE = b"<!-- message -->"

Name = Annotated[str, PathParameter(min_length=1, max_length=64)]
Number = Annotated[int, PathParameter(ge=1, le=LARGEST_ID)]
Score = Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE, allow_inf_nan=False)]
Person = Annotated[str, Field(min_length=SHORTEST_NAME, max_length=LONGEST_NAME)]
Revision = Annotated[str, Field(min_length=1, max_length=64)]

# Descriptions of answers, by their status.
Answers = dict[int | str, dict[str, Any]]
NOT_FOUND: Answers = {404: {"description": "there is none"}}
REFUSED: Answers = {409: {"description": "refused, with the reason"}}
JPEG: Answers = {200: {"content": {"image/jpeg": {}}}, **NOT_FOUND}
TEXT: Answers = {200: {"content": {"text/plain": {}}}}
UNHEALTHY: Answers = {503: {"model": HealthState, "description": "the stream is not healthy"}}


class Move(BaseModel):
    """New thresholds, and who chose them. Without the second one, that of the bundle stays."""

    person: Person
    revision: Revision
    threshold: Score
    review_threshold: Score | None = None


class Undo(BaseModel):
    """Who brings the previous thresholds back."""

    person: Person
    revision: Revision


class Scores(BaseModel):
    """The last frames of a lane: number, score or null, verdict (0 good, 1 review, 2 anomalous,
    3 unjudged) and time of each."""

    points: list[tuple[int, float | None, int, float]]


def create_app(
    board: Board, teaching: TeachingDesk, access: Access, is_closed: Callable[[], bool]
) -> App:
    """Return the ASGI application of the page, behind its guard."""
    return Guard(cast(App, inner_app(board, teaching, access, is_closed)), access)


def inner_app(
    board: Board, teaching: TeachingDesk, access: Access, is_closed: Callable[[], bool]
) -> FastAPI:
    """Return the application without its guard, which has the OpenAPI description."""
    app = FastAPI(
        title="Flawline",
        version=__version__,
        description="The live page of a stream.",
        openapi_url="/api/openapi.json",
        # Their pages load scripts from other sites.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(FlawlineError, _refused)
    app.add_exception_handler(TooLargeError, _too_large)
    app.add_exception_handler(RequestValidationError, _invalid)
    _Files(access).add_to(app)
    _Watching(board, is_closed).add_to(app)
    _Desk(board).add_to(app)
    TeachingRoutes(teaching).add_to(app)
    return app


async def _refused(_request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 409)


async def _too_large(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"detail": "the request is too large"}, 413)


async def _invalid(_request: Request, error: Exception) -> Response:
    """Say what is wrong with a request. Its values, which may be no JSON, are not repeated."""
    faults = []
    for fault in cast(RequestValidationError, error).errors():
        faults.append({key: fault[key] for key in ("loc", "msg", "type")})
    return JSONResponse({"detail": faults}, 422)


class _Files:
    """The page itself, and the form for its token."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._files = page_files()

    def add_to(self, app: FastAPI) -> None:
        app.add_api_route("/", self.page, include_in_schema=False)
        app.add_api_route("/static/{name}", self.file, include_in_schema=False)
        app.add_api_route(LOGIN, self.form, include_in_schema=False)
        app.add_api_route(LOGIN, self.log_in, methods=["POST"], include_in_schema=False)
        app.add_api_route("/logout", self.log_out, methods=["POST"], include_in_schema=False)

    async def page(self, request: Request) -> Response:
        return self._answer(request, self._files["index.html"])

    async def file(self, request: Request, name: str) -> Response:
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404)
        return self._answer(request, file)

    async def form(self, request: Request) -> Response:
        if self._access.is_known(None, request.headers.get("cookie")):
            return RedirectResponse("/", 303)
        return self._answer(request, self._files["login.html"])

    async def log_in(self, request: Request) -> Response:
        body = (await request.body()).decode("ascii", "replace")
        (given, *_) = parse_qs(body, max_num_fields=4).get("token", [""])
        if not self._access.accepts_token(given.strip()):
            await asyncio.sleep(FAILED_LOGIN_S)
            form = self._files["login.html"]
            content = form.content.replace(MESSAGE, WRONG_TOKEN)
            return Response(content, 401, media_type=form.kind)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._access.cookie,
            self._access.new_session(),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def log_out(self) -> Response:
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(self._access.cookie, httponly=True, samesite="strict")
        return answer

    def _answer(self, request: Request, file: PageFile) -> Response:
        headers = {"cache-control": "no-cache", "etag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(None, 304, headers)
        return Response(file.content, 200, headers, file.kind)


class _Watching:
    """What shows the stream and changes nothing."""

    def __init__(self, board: Board, is_closed: Callable[[], bool]) -> None:
        self._board = board
        self._pictures = Pictures()
        self._feed = Feed(board, is_closed)
        self._watchers = 0
        self._turn = asyncio.Lock()

    def add_to(self, app: FastAPI) -> None:
        get = app.add_api_route
        get("/api/state", self.state, response_model=State)
        get("/api/events", self.events, include_in_schema=False)
        get("/api/lanes/{name}/scores", self.scores, response_model=Scores, responses=NOT_FOUND)
        get("/api/lanes/{name}/picture", self.picture, responses=JPEG, response_class=Response)
        get("/api/parts", self.parts, response_model=list[KeptState])
        get("/api/parts/{number}/picture", self.part, responses=JPEG, response_class=Response)
        get("/metrics", self.metrics, responses=TEXT, response_class=Response)
        get("/healthz", self.health, response_model=HealthState, responses=UNHEALTHY)

    async def state(self) -> State:
        """Return all that the page shows but for scores and pictures."""
        return state_of(self._board)

    async def events(self) -> Response:
        if self._watchers >= MOST_WATCHERS:
            raise HTTPException(
                503, f"{MOST_WATCHERS} browsers watch already", {"retry-after": "10"}
            )
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._counted(), headers=headers, media_type="text/event-stream")

    async def _counted(self) -> AsyncIterator[bytes]:
        self._watchers += 1
        try:
            async for event in self._feed.events():
                yield event
        finally:
            self._watchers -= 1

    async def scores(self, name: Name) -> Scores:
        """Return the last scores of a lane."""
        return Scores(points=self._lane(name).points(0))

    def picture(
        self, name: Name, anomaly_map: Annotated[bool, Query(alias="map")] = True
    ) -> Response:
        """Return the newest picture of a lane; x-frame is the number of its frame."""
        shown = self._lane(name).to_show()
        if shown is None or not shown.has_image:
            raise HTTPException(404, "there is no image of the newest frame")
        number, picture = self._pictures.newest(shown, anomaly_map)
        return Response(picture, media_type="image/jpeg", headers={"x-frame": str(number)})

    async def parts(self) -> tuple[KeptState, ...]:
        """Return the last parts that were rejected or are for review, the newest first."""
        return kept_states(self._board.kept.parts())

    async def part(self, number: Number) -> Response:
        """Return the picture of such a part."""
        kept = self._board.kept
        # One after the other, and without a thread that waits: those are for the newest frames.
        async with self._turn:
            if kept.needs_encoding(number):
                await asyncio.sleep(self._pictures.pause)
            picture = await run_in_threadpool(kept.picture, number, self._pictures.encode)
        if picture is None:
            raise HTTPException(404, "there is no image of this part, or no longer")
        headers = {"cache-control": "private, max-age=3600"}
        return Response(picture, media_type="image/jpeg", headers=headers)

    async def metrics(self) -> Response:
        """Return counters and times for Prometheus."""
        return Response(metrics_text(self._board), media_type="text/plain; version=0.0.4")

    async def health(self, response: Response) -> HealthState:
        """Return whether the stream does what it is meant to do; the status is 503 if not."""
        health = health_of(self._board)
        if health.faults:
            response.status_code = 503
        return health

    def _lane(self, name: str) -> Lane:
        lane = self._board.lanes.get(name)
        if lane is None:
            raise HTTPException(404, "there is no such camera")
        return lane


class _Desk:
    """The threshold desk."""

    def __init__(self, board: Board) -> None:
        self._desk = Desk(board)

    def add_to(self, app: FastAPI) -> None:
        path = "/api/threshold"
        router = APIRouter(responses=REFUSED)
        router.add_api_route(path, self.state, response_model=DeskState)
        router.add_api_route(path, self.move, methods=["POST"], response_model=DeskState)
        router.add_api_route(f"{path}/undo", self.undo, methods=["POST"], response_model=DeskState)
        app.include_router(router)

    def state(self) -> DeskState:
        """Return the thresholds of the bundle that judges, and what supports them."""
        return self._desk.state()

    def move(self, wanted: Move) -> DeskState:
        """Write thresholds into the bundle, with a line in its audit log."""
        return self._desk.move(
            wanted.threshold, wanted.review_threshold, wanted.person, wanted.revision
        )

    def undo(self, wanted: Undo) -> DeskState:
        """Bring the previous thresholds back, with a line in the audit log."""
        return self._desk.undo(wanted.person, wanted.revision)
