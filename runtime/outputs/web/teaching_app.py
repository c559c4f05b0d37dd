"""The addresses of the page for teaching.

Imported only where FastAPI is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field

from flawline.runtime.moved_threshold import LONGEST_NAME, SHORTEST_NAME
from flawline.runtime.outputs.web.collection import MOST_PICTURES
from flawline.runtime.outputs.web.teaching_desk import TeachingDesk
from flawline.runtime.outputs.web.teaching_shapes import TeachingState

LARGEST_ID = 2**53
PATH = "/api/teaching"

Person = Annotated[str, Field(min_length=SHORTEST_NAME, max_length=LONGEST_NAME)]
Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]
BundleId = Annotated[str, Field(min_length=1, max_length=64)]


class Mark(BaseModel):
    """A kept part that is good, and who says so."""

    person: Person
    part: Id


class Collect(BaseModel):
    """How many of the next frames are kept as pictures of good parts; 0 stops that."""

    person: Person
    count: Annotated[int, Field(ge=0, le=MOST_PICTURES)]


class Remove(BaseModel):
    """The picture to remove; null removes all, or all of a kind."""

    person: Person
    picture: Id | None
    kind: Literal["false_reject", "good"] | None = None


class Start(BaseModel):
    """How the bundle that judges, with this identifier, is to be taught."""

    person: Person
    bundle: BundleId
    mode: Literal["append", "new"]


class Stop(BaseModel):
    """Who ends the teaching run."""

    person: Person


class BringBack(BaseModel):
    """Who brings the bundle back that was before the one with this identifier."""

    person: Person
    bundle: BundleId


class TeachingRoutes:
    """What shows and changes the pictures, and begins and ends a teaching run."""

    def __init__(self, desk: TeachingDesk) -> None:
        self._desk = desk

    def add_to(self, app: FastAPI) -> None:
        """Add the addresses to an application."""
        router = APIRouter(responses={409: {"description": "refused, with the reason"}})
        router.add_api_route(PATH, self.state, response_model=TeachingState)
        router.add_api_route(
            f"{PATH}/pictures/{{number}}",
            self.picture,
            responses={
                200: {"content": {"image/jpeg": {}}},
                404: {"description": "there is none"},
            },
            response_class=Response,
        )
        changes: dict[str, Callable[..., TeachingState]] = {
            "mark": self.mark,
            "collect": self.collect,
            "remove": self.remove,
            "start": self.start,
            "stop": self.stop,
            "undo": self.undo,
        }
        for name, change in changes.items():
            path = f"{PATH}/{name}"
            router.add_api_route(path, change, methods=["POST"], response_model=TeachingState)
        app.include_router(router)

    def state(self) -> TeachingState:
        """Return what the bundle can be taught from, and how the last teaching run went."""
        return self._desk.state()

    def picture(self, number: Annotated[int, PathParameter(ge=1, le=LARGEST_ID)]) -> Response:
        """Return a small picture of one of the pictures."""
        content = self._desk.shown(number)
        if content is None:
            raise HTTPException(404, "there is no such picture, or no longer")
        headers = {"cache-control": "private, max-age=3600"}
        return Response(content, media_type="image/jpeg", headers=headers)

    def mark(self, wanted: Mark) -> TeachingState:
        """Take a part as good, although it was rejected."""
        return self._desk.mark(wanted.part, wanted.person)

    def collect(self, wanted: Collect) -> TeachingState:
        """Keep the next frames as pictures of good parts."""
        return self._desk.collect(wanted.count, wanted.person)

    def remove(self, wanted: Remove) -> TeachingState:
        """Remove a picture, or all of a kind, or all of them."""
        return self._desk.remove(wanted.picture, wanted.person, wanted.kind)

    def start(self, wanted: Start) -> TeachingState:
        """Teach the bundle, and put the new one in its place."""
        return self._desk.start(wanted.mode, wanted.bundle, wanted.person)

    def stop(self, wanted: Stop) -> TeachingState:
        """End the teaching run."""
        return self._desk.stop(wanted.person)

    def undo(self, wanted: BringBack) -> TeachingState:
        """Bring the bundle back that was in the place before."""
        return self._desk.undo(wanted.bundle, wanted.person)
