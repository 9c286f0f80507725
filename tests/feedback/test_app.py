"""The web application's rules: token, session, origin, host, headers, one label a lease."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from jaxrl_lm import feedback
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import LabelStore, server

URL = "http://127.0.0.1:8642"
TOKEN = "the token"


class Browser:
    """What a browser that shows the page sends."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.headers = {"Origin": URL}
        self.name = ""

    def post(self, path: str, **fields: Any):
        return self.client.post(path, json={"name": self.name, **fields}, headers=self.headers)

    def enter(self, name: str) -> "Browser":
        self.headers["X-CSRF-Token"] = self.post("/api/session", token=TOKEN).json()["csrf"]
        assert self.post("/api/annotator", name=name).json() == {"name": name}
        self.name = name
        return self


@pytest.fixture
def store(make_store: Callable[..., LabelStore]) -> LabelStore:
    return make_store(3)


@pytest.fixture
def client(store: LabelStore) -> Iterator[TestClient]:
    with TestClient(feedback.make_app(store, TOKEN, hosts=["label.example"]), base_url=URL) as client:
        yield client


@pytest.fixture
def ann(client: TestClient) -> Browser:
    return Browser(client).enter("ann")


def test_nothing_is_told_without_the_token(client: TestClient) -> None:
    for path in ("/api/session", "/api/stats"):
        assert client.get(path).status_code == 401
    for path in ("/api/annotator", "/api/next", "/api/label", "/api/undo", "/api/leave"):
        assert Browser(client).post(path, name="ann").status_code == 401
    for token in ("", "another", "the token ", "ä"):
        assert Browser(client).post("/api/session", token=token).status_code == 403
    assert client.cookies.get("jaxrl_lm_label_8642") is None


def test_the_cookie_is_for_this_site_and_no_script(client: TestClient) -> None:
    cookie = Browser(client).post("/api/session", token=TOKEN).headers["set-cookie"].lower()
    assert cookie.startswith("jaxrl_lm_label_8642=")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie


def test_the_cookie_is_for_https_only_behind_an_https_proxy(store: LabelStore) -> None:
    app = feedback.make_app(store, TOKEN, hosts=["label.example"])
    with TestClient(app, base_url="http://label.example") as client:
        sent = {"Origin": "https://label.example"}
        cookie = client.post("/api/session", json={"token": TOKEN}, headers=sent).headers["set-cookie"]
    assert "secure" in cookie.lower()


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "https://localhost:8642", "http://["]
)
def test_other_sites_cannot_change_anything(ann: Browser, store: LabelStore, origin: str | None) -> None:
    lease = ann.post("/api/next").json()["item"]["id"]
    del ann.headers["Origin"]
    if origin is not None:
        ann.headers["Origin"] = origin
    assert ann.post("/api/label", lease=lease, verdict="0").status_code == 403
    assert feedback.export_labels(store.engine, "pairwise").rows == []


def test_a_change_needs_the_sessions_secret_and_json(ann: Browser) -> None:
    sent = {**ann.headers, "Content-Type": "text/plain"}
    assert ann.client.post("/api/next", content="{}", headers=sent).status_code == 415
    for secret in ("", "another", "ä".encode()):
        ann.headers["X-CSRF-Token"] = secret
        assert ann.post("/api/next").status_code == 403


def test_the_cookie_alone_does_not_yield_the_secret(ann: Browser) -> None:
    for path in ("/", "/api/session", "/api/stats"):  # a server on another port is sent the cookie
        answer = ann.client.get(path)
        assert answer.status_code == 200
        assert ann.headers["X-CSRF-Token"] not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8642", 200),
        ("localhost:9000", 200),
        ("label.example", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("evil.example:8642", 400),
        ("", 400),
    ],
)
def test_only_known_hosts_are_answered(client: TestClient, host: str, status: int) -> None:
    assert client.get("/", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("path", ["/", "/stats", "/static/label.js", "/api/session", "/nowhere"])
def test_every_response_forbids_foreign_and_inline_code(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"


def test_a_failure_of_the_server_has_the_headers_too(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "list_names", lambda: 1 / 0)
    with TestClient(feedback.make_app(store, TOKEN), base_url=URL, raise_server_exceptions=False) as client:
        Browser(client).post("/api/session", token=TOKEN)
        answer = client.get("/api/session")
    assert answer.status_code == 500
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("page", ["index.html", "stats.html"])
def test_pages_hold_no_inline_code_and_load_nothing_from_elsewhere(page: str) -> None:
    text = (Path(feedback.__file__).parent / "static" / page).read_text()
    assert "<style" not in text
    assert " style=" not in text
    assert " on" not in "".join(part.split(">")[0] for part in text.split("<")[1:]).lower().replace(" one", "")
    assert "//" not in text
    assert text.count("<script") == text.count('<script type="module" src="/static/')


def test_no_script_makes_nodes_of_markup() -> None:
    for file in (Path(feedback.__file__).parent / "static").glob("*.js"):
        code = file.read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
            assert way not in code, f"{file.name}: {way}"


@pytest.mark.parametrize("body", ["", "[]", "1", '{"name": 1}', "{", '{"name": "\\ud800"}', "[" * 9000])
def test_bodies_that_are_no_object_of_texts(ann: Browser, body: str) -> None:
    sent = {**ann.headers, "Content-Type": "application/json"}
    assert ann.client.post("/api/annotator", content=body, headers=sent).status_code == 400


def test_a_body_larger_than_anything_the_page_sends(ann: Browser) -> None:
    assert ann.post("/api/annotator", name="x" * 20_000).status_code == 413


def test_who_has_not_said_a_name_gets_nothing(client: TestClient) -> None:
    browser = Browser(client)
    browser.headers["X-CSRF-Token"] = browser.post("/api/session", token=TOKEN).json()["csrf"]
    for path in ("/api/next", "/api/undo", "/api/leave"):
        assert browser.post(path).status_code == 409
    answer = browser.post("/api/annotator", name=" ")
    assert answer.status_code == 422
    assert "name is empty" in answer.json()["error"]


def test_a_stale_page_that_sends_twice_makes_one_label(ann: Browser, store: LabelStore) -> None:
    lease = ann.post("/api/next").json()["item"]["id"]
    assert ann.post("/api/label", lease=lease, verdict="0").json() == {"is_repeat": False}
    assert ann.post("/api/label", lease=lease, verdict="1").json() == {"is_repeat": True}
    assert len(feedback.export_labels(store.engine, "pairwise").rows) == 1


def test_undo_names_the_label_and_can_be_sent_twice(ann: Browser) -> None:
    answer = ann.post("/api/next").json()
    first = answer["item"]
    assert answer["undoable"] is None
    ann.post("/api/label", lease=first["id"], verdict="skip")
    assert ann.post("/api/next").json()["undoable"] == first["id"]
    again = ann.post("/api/undo", lease=first["id"]).json()
    assert again["item"]["completions"] == first["completions"]
    assert (again["progress"]["num_mine"], again["undoable"]) == (0, None)
    assert ann.post("/api/undo", lease=first["id"]).json() == again
    assert ann.post("/api/undo", lease=again["item"]["id"]).status_code == 409
    assert ann.post("/api/undo").status_code == 400


def test_a_page_that_shows_who_was_there_before_changes_nothing(ann: Browser, store: LabelStore) -> None:
    lease = ann.post("/api/next").json()["item"]["id"]
    assert ann.post("/api/annotator", name="bob").json() == {"name": "bob"}  # in another tab of the browser
    for path in ("/api/next", "/api/label", "/api/undo", "/api/leave"):
        answer = ann.post(path, lease=lease, verdict="0")
        assert (answer.status_code, answer.json()["error"].split()[0]) == (409, "bob")
    assert ann.client.post("/api/next", json={}, headers=ann.headers).status_code == 400
    assert store.list_names() == ["ann", "bob"]
    ann.name = "bob"
    assert ann.post("/api/next").status_code == 200


def test_two_browsers_are_two_people(ann: Browser, store: LabelStore) -> None:
    with TestClient(ann.client.app, base_url=URL) as other:
        bob = Browser(other)
        assert bob.post("/api/next").status_code == 401
        bob.enter("bob")
        assert other.get("/api/session").json()["names"] == ["ann", "bob"]
        prompts = {browser.post("/api/next").json()["item"]["prompt"] for browser in (ann, bob)}
        assert prompts == {"prompt 0", "prompt 1"}
        assert ann.post("/api/leave").json() == {}
        assert ann.client.get("/api/session").json()["name"] is None


def test_a_database_that_is_locked_answers_503_and_saves_at_the_second_try(ann: Browser, tmp_path: Path) -> None:
    lease = ann.post("/api/next").json()["item"]["id"]
    other = sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = ann.post("/api/label", lease=lease, verdict="0")
    assert answer.status_code == 503
    assert "Not saved: the database is locked" in answer.json()["error"]
    other.execute("ROLLBACK")
    assert ann.post("/api/label", lease=lease, verdict="0").json() == {"is_repeat": False}


def test_wrong_verdicts_and_missing_fields(ann: Browser) -> None:
    lease = ann.post("/api/next").json()["item"]["id"]
    assert ann.post("/api/label", lease=lease, verdict="up").status_code == 422
    assert ann.post("/api/label", lease=lease).status_code == 400
    assert ann.post("/api/label", lease="none", verdict="0").status_code == 409


def test_statistics_are_told(ann: Browser) -> None:
    lease = ann.post("/api/next").json()["item"]["id"]
    ann.post("/api/label", lease=lease, verdict="0")
    statistics = ann.client.get("/api/stats").json()
    assert statistics["people"][0]["name"] == "ann"
    assert json.dumps(statistics, allow_nan=False)


def test_a_port_that_is_in_use_or_none() -> None:
    with feedback.listen(0) as listener, pytest.raises(InputError, match="is in use; choose another --port"):
        feedback.listen(listener.getsockname()[1])
    with pytest.raises(InputError, match="port=-1 must be"):
        feedback.listen(-1)


def test_the_server_ends_when_all_is_labelled_and_listens_on_this_machine_only(store: LabelStore) -> None:
    ann = store.find_annotator("ann").id
    while (lease := store.next_lease(ann)) is not None:
        store.label(ann, lease.id, "0")
    told: list[str] = []
    with feedback.listen(0) as listener:
        feedback.serve(store, listener, is_ended_when_done=True, end_seconds=0.0, announce=told.append)
    (address,) = told
    assert address.startswith("http://127.0.0.1:")
    assert len(address.split("/#token=")[1]) >= 32


class _Watched(LabelStore):
    """Says whether it is over by a list: None for a database that is busy. After its end it is over."""

    def __init__(self, store: LabelStore, looks: list[bool | None]) -> None:
        super().__init__(store.engine, mode="pairwise")
        self.looks = looks

    def is_over(self) -> bool:
        look = self.looks.pop(0) if self.looks else True
        if look is None:
            raise OperationalError("select", {}, sqlite3.OperationalError("database is locked"))
        return look


@pytest.mark.parametrize("interruption", [False, None])
def test_the_server_ends_only_after_a_while_without_a_break(store: LabelStore, interruption: bool | None) -> None:
    watched = _Watched(store, [True, interruption, True, interruption])
    started = time.monotonic()
    with feedback.listen(0) as listener:
        feedback.serve(watched, listener, is_ended_when_done=True, end_seconds=0.2, announce=lambda _: None)
    assert watched.looks == []
    assert time.monotonic() - started > 0.8  # four looks 0.2 apart, and as long again without a break


@pytest.mark.parametrize("is_ended_when_done", [False, True])
def test_the_page_is_told_that_it_ends(store: LabelStore, is_ended_when_done: bool) -> None:
    app = feedback.make_app(store, TOKEN, is_ended_when_done=is_ended_when_done)
    with TestClient(app, base_url=URL) as client:
        ann = Browser(client).enter("ann")
        while (item := (answer := ann.post("/api/next").json())["item"]) is not None:
            assert not answer["is_ending"]
            ann.post("/api/label", lease=item["id"], verdict="0")
        assert answer["is_ending"] is is_ended_when_done
        assert ann.post("/api/undo", lease=answer["undoable"]).json()["is_ending"] is False


def test_the_server_ends_when_its_lock_is_lost(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOCK_CHECK_SECONDS", 0.05)
    num_checks = count()

    def check() -> None:
        if next(num_checks) == 3:
            raise InputError("the lock is lost")

    with feedback.listen(0) as listener, pytest.raises(InputError, match="the lock is lost"):
        feedback.serve(store, listener, check_lock=check, announce=str)
    assert next(num_checks) == 4
