"""The HTTP server: requests that never end are closed, and signals close the database."""

import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaxrl_lm import feedback
from jaxrl_lm.cli import label, label_settings
from jaxrl_lm.feedback import LabelStore, security
from tests.feedback.conftest import TOKEN, served

BODY = json.dumps({"token": TOKEN}).encode()


@pytest.fixture
def port(make_store: Callable[..., LabelStore], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server that waits 0.3 seconds for the rest of a request."""
    monkeypatch.setattr(security, "REQUEST_SECONDS", 0.3)
    with served(make_store(1)) as url:
        yield int(url.split(":")[2].strip("/"))


@contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as opened:
        yield opened


def head(port: int, length: int) -> bytes:
    """The head of the request that enters with the token."""
    lines = [
        "POST /api/session HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Origin: http://127.0.0.1:{port}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def read_to_end(opened: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    return b"".join(iter(lambda: opened.recv(4096), b""))


@pytest.mark.parametrize("sent", [b"", b"POST /api/next HT", b"POST /api/next HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_connection_whose_request_does_not_come_is_closed(port: int, sent: bytes) -> None:
    with connection(port) as opened:
        opened.sendall(sent)
        assert read_to_end(opened) == b""


def test_bytes_that_trickle_in_do_not_keep_a_connection(port: int) -> None:
    def trickle(opened: socket.socket) -> None:
        for _ in range(100):
            opened.sendall(b"G")
            time.sleep(0.05)

    with connection(port) as opened, pytest.raises((BrokenPipeError, ConnectionResetError)):
        trickle(opened)


def test_the_second_request_of_a_connection_has_its_own_time(port: int) -> None:
    with connection(port) as opened:
        for _ in range(2):
            opened.sendall(head(port, len(BODY)) + BODY)
            assert opened.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(0.2)  # together longer than one request may take
        opened.sendall(b"POST /api/next HT")
        assert read_to_end(opened) == b""


def test_a_body_that_does_not_end_is_answered_and_closed(port: int) -> None:
    with connection(port) as opened:
        opened.sendall(head(port, 100) + b"{")
        answer = read_to_end(opened)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"The request was not complete in 0.3 seconds." in answer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_every_label_in_the_database_file_itself(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["a", "b"]}))
    file = tmp_path / "out" / "labels.sqlite"

    def label_and_signal(address: str) -> None:
        engine = feedback.open_database(f"sqlite:///{file}", is_new_allowed=False)
        store = LabelStore(engine, mode="pairwise")
        ann = store.find_annotator("ann").id
        lease = store.next_lease(ann)
        assert lease is not None
        store.label(ann, lease.id, "0")
        engine.dispose()
        assert Path(f"{file}-wal").stat().st_size > 0
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()

    def die(number: int, frame: object) -> None:
        raise RuntimeError("the server left the signal to the process")

    previous = signal.signal(signal.SIGTERM, die)  # which by default would end the tests
    monkeypatch.setattr(label, "_announce", label_and_signal)
    config = label_settings.ServeConfig(out=str(tmp_path / "out"), completions=str(tmp_path / "answers.jsonl"), port=0)
    try:
        assert label.serve_labels(config) == number
        assert signal.getsignal(signal.SIGTERM) is die
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert not Path(f"{file}-wal").exists()
    with sqlite3.connect(f"file:{file}?immutable=1", uri=True) as alone:
        assert alone.execute("select count(*) from labels").fetchone() == (1,)
    assert "Stopped." in capsys.readouterr().out
