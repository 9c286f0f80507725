"""Access control: a token, sessions, and headers that block other sites and active content in model text."""

import asyncio
import secrets
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxrl_lm.feedback.store import Annotator

LOCAL_HOSTS = ("127.0.0.1", "localhost")
MAX_BODY_BYTES = 16_384
REQUEST_SECONDS = 10.0
"""Time limit for a request's headers, and again for its body."""
MAX_SESSIONS = 10_000
CSRF_HEADER = "X-CSRF-Token"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


@dataclass(kw_only=True)
class Session:
    """A browser that has presented the token.

    Attributes:
        csrf: secret it must send with every change.
        annotator: the annotator, once signed in.
    """

    csrf: str
    annotator: Annotator | None = None


class Sessions:
    """Sessions by cookie, for the lifetime of the server."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, token: str) -> str:
        """Open a session for a valid token and return its cookie.

        Raises:
            HTTPException: 403, the token is wrong.
        """
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            raise HTTPException(403, "This is not the token printed by the server.")
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            if len(self._sessions) >= MAX_SESSIONS:  # drop the oldest; its browser asks for the token again
                del self._sessions[next(iter(self._sessions))]
            self._sessions[cookie] = Session(csrf=secrets.token_urlsafe(32))
        return cookie

    def find(self, cookie: str | None) -> Session:
        """The session of a cookie.

        Raises:
            HTTPException: 401, there is none.
        """
        session = self._sessions.get(cookie or "")
        if session is None:
            raise HTTPException(401, "Open the link printed by the server.")
        return session


def cookie_name(request: Request) -> str:
    """One cookie per port, because browsers share cookies between ports."""
    return f"jaxrl_lm_label_{request.url.port or 80}"


def check_origin(request: Request) -> None:
    """Refuse changes requested from elsewhere than the page itself.

    Raises:
        HTTPException: 403, the origin is another site or missing.
    """
    if not _is_from(request.headers.get("host"), request.headers.get("origin", "")):
        raise HTTPException(403, "Only the label page may send this request.")
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send JSON.")


def _is_from(host: str | None, origin: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:  # http://[
        return False
    return parts.scheme in ("http", "https") and parts.netloc == host


def check_csrf(request: Request, session: Session) -> None:
    """Refuse requests without the session's secret.

    Raises:
        HTTPException: 403, the secret is missing or wrong.
    """
    sent = request.headers.get(CSRF_HEADER, "")
    if not secrets.compare_digest(sent.encode(), session.csrf.encode()):
        raise HTTPException(403, "The page is out of date; open the link printed by the server.")


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: 413, the body is too large; 408, it is not complete in time.
    """
    body = b""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"The request is larger than {MAX_BODY_BYTES} bytes.")
    except TimeoutError:
        headers = {"Connection": "close"}
        raise HTTPException(408, f"The request was not complete in {REQUEST_SECONDS} seconds.", headers) from None
    return body


class SecurityHeaders:
    """Adds the headers to every response, including those of errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, send_with_headers)
