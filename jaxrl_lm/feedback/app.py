"""The web application: HTML pages and their JSON API."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.database import describe_error
from jaxrl_lm.feedback.security import (
    LOCAL_HOSTS,
    SecurityHeaders,
    Session,
    Sessions,
    check_csrf,
    check_origin,
    cookie_name,
    read_body,
)
from jaxrl_lm.feedback.statistics import compute_statistics
from jaxrl_lm.feedback.store import LabelStore, Lease, RefusedError

_STATIC = Path(__file__).parent / "static"

Fields = dict[str, str]
Reply = dict[str, Any]


def make_app(store: LabelStore, token: str, *, hosts: Sequence[str] = (), is_ended_when_done: bool = False) -> ASGIApp:
    """The application that labels the items of a store.

    Args:
        store: the items to label.
        token: the secret a browser must present first.
        hosts: extra host names under which browsers may reach the page.
        is_ended_when_done: whether the server stops once all items are labelled; shown on the page.
    """
    api = _Api(store, Sessions(token), is_ended_when_done=is_ended_when_done)
    routes = [
        Route("/", _page("index.html")),
        Route("/stats", _page("stats.html")),
        Route("/api/session", api.enter, methods=["POST"]),
        Route("/api/session", api.show_session),
        Route("/api/annotator", api.change(api.name_annotator), methods=["POST"]),
        Route("/api/next", api.change(api.next_item), methods=["POST"]),
        Route("/api/label", api.change(api.keep_label), methods=["POST"]),
        Route("/api/undo", api.change(api.undo_label), methods=["POST"]),
        Route("/api/leave", api.change(api.leave), methods=["POST"]),
        Route("/api/stats", api.show_statistics),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            # Blocks other sites whose name resolves to this address (DNS rebinding).
            Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_HOSTS, *hosts], www_redirect=False),
        ],
        exception_handlers={
            HTTPException: _on_http_error,
            InputError: _on_error(422),
            RefusedError: _on_error(409),
            DBAPIError: _on_database_error,
        },
    )
    return SecurityHeaders(app)


class _Api:
    def __init__(self, store: LabelStore, sessions: Sessions, *, is_ended_when_done: bool) -> None:
        self._store, self._sessions, self._is_ended_when_done = store, sessions, is_ended_when_done

    async def enter(self, request: Request) -> Response:
        """Exchange the token for a session cookie (unreadable by scripts, not sent by other sites) and its CSRF secret.

        Servers on other ports of this machine also receive the cookie, so the secret is only sent here.
        """
        check_origin(request)
        cookie = self._sessions.open(_field(await _fields(request), "token"))
        response = JSONResponse({"csrf": self._sessions.find(cookie).csrf})
        is_secure = request.headers.get("origin", "").startswith("https:")
        response.set_cookie(cookie_name(request), cookie, httponly=True, samesite="strict", secure=is_secure)
        return response

    async def show_session(self, request: Request) -> Response:
        """The session's annotator, the known names, the mode and the overlap."""
        session = self._find(request)
        names = await run_in_threadpool(self._store.list_names)
        name = None if session.annotator is None else session.annotator.name
        about = {"name": name, "names": names, "mode": self._store.mode}
        return JSONResponse({**about, "overlap": self._store.overlap})

    async def show_statistics(self, request: Request) -> Response:
        """The statistics of the stats page."""
        self._find(request)
        statistics = await run_in_threadpool(compute_statistics, self._store.engine, self._store.mode)
        return JSONResponse({**asdict(statistics), "overlap": self._store.overlap})

    def change(self, call: Callable[[Session, Fields], Reply]) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that changes state: only the page itself may call it."""

        async def endpoint(request: Request) -> Response:
            check_origin(request)
            session = self._find(request)
            check_csrf(request, session)
            return JSONResponse(await run_in_threadpool(call, session, await _fields(request)))

        return endpoint

    def name_annotator(self, session: Session, fields: Fields) -> Reply:
        """Set the session's annotator."""
        annotator = self._store.find_annotator(_field(fields, "name"))
        if session.annotator is not None and session.annotator != annotator:
            self._store.release(session.annotator.id)
        session.annotator = annotator
        return {"name": annotator.name}

    def next_item(self, session: Session, fields: Fields) -> Reply:
        """The next item to label."""
        annotator = _annotator(session, fields)
        return self._shown(annotator, self._store.next_lease(annotator))

    def keep_label(self, session: Session, fields: Fields) -> Reply:
        """Save a label; it is on disk when the response is sent."""
        annotator = _annotator(session, fields)
        is_new = self._store.label(annotator, _field(fields, "lease"), _field(fields, "verdict"))
        return {"is_repeat": not is_new}

    def undo_label(self, session: Session, fields: Fields) -> Reply:
        """Undo the label of a lease and show its item again; repeating the request undoes no other label."""
        annotator = _annotator(session, fields)
        return self._shown(annotator, self._store.undo(annotator, _field(fields, "lease")))

    def leave(self, session: Session, fields: Fields) -> Reply:
        """Release the annotator's item and sign out."""
        self._store.release(_annotator(session, fields))
        session.annotator = None
        return {}

    def _shown(self, annotator: int, lease: Lease | None) -> Reply:
        progress = asdict(self._store.progress(annotator))
        is_ending = lease is None and self._is_ended_when_done and self._store.is_over()
        shown = {"item": None if lease is None else asdict(lease), "progress": progress, "is_ending": is_ending}
        return {**shown, "undoable": self._store.last_labelled(annotator)}

    def _find(self, request: Request) -> Session:
        return self._sessions.find(request.cookies.get(cookie_name(request)))


def _page(name: str) -> Callable[[Request], Response]:
    def show(request: Request) -> Response:
        return FileResponse(_STATIC / name)

    return show


def _annotator(session: Session, fields: Fields) -> int:
    """The annotator in both session and page: another tab may still show a previous name."""
    annotator = session.annotator
    if annotator is None:
        raise RefusedError("Nobody is signed in; enter your name.")
    if _field(fields, "name") != annotator.name:
        raise RefusedError(f"{annotator.name} has since signed in with this browser; nothing was saved.")
    return annotator.id


async def _fields(request: Request) -> Fields:
    wrong = HTTPException(400, "Send a JSON object of strings.")
    try:
        fields = json.loads(await read_body(request))
        if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
            raise wrong
        "".join(fields.values()).encode()  # a lone surrogate must fail here
    except (ValueError, RecursionError):
        raise wrong from None
    return fields


def _field(fields: Fields, name: str) -> str:
    if name not in fields:
        raise HTTPException(400, f"The field {name!r} is missing.")
    return fields[name]


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _on_error(status: int) -> Callable[[Request, Exception], Response]:
    return lambda request, error: JSONResponse({"error": str(error)}, status)


def _on_database_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError)
    return JSONResponse({"error": f"Not saved: {describe_error(error)}."}, 503)
