"""A store on a clock that tests turn, what fills it, and a browser that shows its page."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import Engine

from jaxrl_lm import feedback
from jaxrl_lm.feedback import Item, LabelStore, Mode, server

TOKEN = "token-of-the-tests"


class Clock:
    """A clock that advances on request."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """URL of a database that is not there yet."""
    return f"sqlite:///{tmp_path / 'labels.sqlite'}"


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    opened = feedback.open_database(database, is_new_allowed=True, busy_seconds=0.2)
    yield opened
    opened.dispose()


@pytest.fixture
def make_store(engine: Engine, clock: Clock) -> Callable[..., LabelStore]:
    """A store with this many items of a mode; completion k of prompt i is `i.k`."""

    def make(num_items: int = 3, *, mode: Mode = "pairwise", overlap: int = 1) -> LabelStore:
        feedback.add_items(engine, numbered_items(num_items, mode))
        return LabelStore(engine, mode=mode, overlap=overlap, lease_seconds=60.0, clock=clock)

    return make


def numbered_items(num_items: int, mode: Mode) -> list[Item]:
    num = feedback.NUM_COMPLETIONS[mode]
    return [
        Item(mode=mode, prompt=f"prompt {place}", completions=tuple(f"{place}.{answer}" for answer in range(num)))
        for place in range(num_items)
    ]


def skip_without(program: str, reason: str) -> NoReturn:
    """Skip, or fail where JAXRL_LM_REQUIRE names the program, as `.ci/run` does."""
    if program in os.environ.get("JAXRL_LM_REQUIRE", "").split(","):
        pytest.fail(f"JAXRL_LM_REQUIRE names {program}, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        skip_without("chromium", "there is no chromium on the PATH; install Debian's package chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@contextmanager
def served(store: LabelStore, *, port: int = 0, token: str = TOKEN) -> Iterator[str]:
    """The address of a page that labels the store's items."""
    with feedback.listen(port) as listener:
        running = server.make_server(feedback.make_app(store, token))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page as a person; fails the test if a script fails or the policy blocks something."""
    contexts, complaints = [], []

    def open_as(name: str, url: str, *, token: str = TOKEN, width: int = 1400, wait: float = 5.0) -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if "Content Sec" in message.text else None)
        page.goto(f"{url}#token={token}")
        page.get_by_label("Name").fill(name)
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#view-item")).to_be_visible(timeout=1000 * wait)
        return page

    yield open_as
    for context in contexts:
        context.close()
    assert complaints == []


def said(page: Page) -> Any:
    return expect(page.get_by_role("status"))


def shown(page: Page) -> list[str]:
    return page.locator(".answer .text").all_inner_texts()


def exported(store: LabelStore) -> list[dict[str, Any]]:
    return feedback.export_labels(store.engine, store.mode).rows
