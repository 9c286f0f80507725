"""The page in a real browser: keyboard, undo, two annotators at once, new links, faults, kill -9."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from jaxrl_lm import feedback
from jaxrl_lm.feedback import LabelStore
from tests.feedback.conftest import TOKEN, Clock, exported, said, served, shown


def test_keys_label_undo_and_end(make_store: Callable[..., LabelStore], open_page: Callable[..., Page]) -> None:
    store = make_store(3)
    with served(store) as url:
        page = open_page("ann", url)
        assert "token" not in page.url
        expect(page.locator("#undo")).to_be_disabled()
        first = shown(page)
        page.keyboard.press("b")
        said(page).to_contain_text("Saved: B is better. Item 2.")
        page.keyboard.press("u")
        said(page).to_contain_text("Undone")
        assert shown(page) == first
        page.keyboard.press("ArrowLeft")
        said(page).to_contain_text("Saved: A is better. Item 2.")
        expect(page.locator("#progress-text")).to_have_text("1 of 3 done")
        page.keyboard.down("t")
        said(page).to_contain_text("Saved: tie. Item 3.")
        page.keyboard.down("t")  # held down: the browser repeats it, and it must not count again
        page.keyboard.up("t")
        page.keyboard.press("Control+s")
        said(page).to_contain_text("Item 3.")
        page.keyboard.press("s")
        expect(page.get_by_role("heading", name="Nothing left for you")).to_be_visible()
    (row,) = exported(store)
    assert (row["chosen"], row["rejected"]) == tuple(first)


def test_two_people_at_once_share_the_work(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store = make_store(6)
    with served(store) as url:
        pages = {name: open_page(name, url) for name in ("ann", "bob")}
        labelled = []
        for turn in range(3):
            prompts = {name: page.locator("#prompt").inner_text() for name, page in pages.items()}
            labelled += prompts.values()
            for name, page in pages.items():
                page.get_by_role("button", name="A is better" if name == "ann" else "B is better").click()
                ended = "No item available" if name == "ann" else "All done"
                said(page).to_contain_text(f"Item {turn + 2}." if turn < 2 else ended)
        assert sorted(labelled) == [f"prompt {place}" for place in range(6)]
        expect(pages["bob"].get_by_role("heading", name="All done")).to_be_visible()
        pages["bob"].get_by_role("link", name="See the stats").click()
        expect(pages["bob"].locator("#people")).to_contain_text("ann")
        expect(pages["bob"].locator("#tiles")).to_contain_text("6 / 6")
    assert sorted(row["annotator"] for row in exported(store)) == ["ann"] * 3 + ["bob"] * 3


def test_the_stats_page_shows_what_was_worked_out_by_hand(
    make_store: Callable[..., LabelStore], clock: Clock, open_page: Callable[..., Page]
) -> None:
    store = make_store(11, overlap=2)
    said_of_items = {
        "ann": (["0"] * 4 + ["1"] * 4 + ["tie"] * 2 + ["0"], 6.0),
        "bob": (["0"] * 4 + ["1"] * 3 + ["0"] + ["tie", "0"] + ["skip"], 24.0),
    }
    for name, (verdicts, seconds) in said_of_items.items():
        annotator = store.find_annotator(name).id
        for verdict in verdicts:
            lease = store.next_lease(annotator)
            assert lease is not None
            clock.now += seconds
            ranked = [completion.split(".")[1] for completion in map(str, lease.completions)]
            store.label(annotator, lease.id, str(ranked.index(verdict)) if verdict.isdigit() else verdict)
    with served(store) as url:
        page = open_page("cyd", url)
        expect(page.locator("#progress-text")).to_contain_text("10 of 11 done")
        page.get_by_role("link", name="Stats").click()
        # Finished as on the label page: the eleventh item has ann's label only.
        expect(page.locator(".tile .figure").first).to_have_text("10 / 11")
        # Of 20 verdicts 3 are ties, 17 choices; 2 of 10 items differ. D_e = 1 - (3 * 2 + 17 * 16 / 2) / (20 * 19).
        alpha = 1 - 0.2 / (1 - (6 + 136) / 380)  # 0.681
        expect(page.locator(".tile", has_text="Krippendorff").locator(".figure")).to_have_text(f"{alpha:.2f}")
        # p_o = 8 / 10, p_c = 0.2 * 0.1 + 0.8 * 0.9 / 2 = 0.38
        kappa = (0.8 - 0.38) / (1 - 0.38)  # 0.677
        expect(page.locator("#pairs td")).to_have_text(["10", "80 %", f"{kappa:.2f}"])
        heads = page.locator("#people-head th").all_inner_texts()
        for name, labels, speed in (("ann", "11", ["6.0 s", "600"]), ("bob", "10", ["24.0 s", "150"])):
            cells = page.locator("#people tr", has_text=name).locator("th, td").all_inner_texts()
            shown_of = dict(zip(heads, cells, strict=True))
            assert [shown_of["Labels"], shown_of["Median time"], shown_of["Labels per hour"]] == [labels, *speed]


def test_the_focus_stays_with_the_item(make_store: Callable[..., LabelStore], open_page: Callable[..., Page]) -> None:
    with served(make_store(2)) as url:
        page = open_page("ann", url)
        for ended in ("Item 2.", "All done"):
            page.get_by_role("button", name="A is better").click()
            said(page).to_contain_text(ended)
            expect(page.locator("#main")).to_be_focused()
        page.get_by_role("button", name="Undo the last label").click()
        said(page).to_contain_text("Undone")
        expect(page.locator("#main")).to_be_focused()


def test_a_skip_that_another_took_up_stands(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store = make_store(2)
    with served(store) as url:
        page = open_page("ann", url)
        page.keyboard.press("s")
        said(page).to_contain_text("Saved: skipped. Item 2.")
        open_page("bob", url)
        page.keyboard.press("u")
        expect(page.get_by_role("alert")).to_contain_text("You skipped this item, and another annotator has it now.")
        expect(page.locator("#prompt")).to_have_text("prompt 1")
        page.keyboard.press("a")
        said(page).to_contain_text("Saved")
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_stale_tab_makes_no_second_label(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store = make_store(2)
    with served(store) as url:
        page = open_page("ann", url)
        stale = page.context.new_page()
        stale.goto(url)
        expect(stale.locator("#view-item")).to_be_visible()
        page.keyboard.press("a")
        said(page).to_contain_text("Saved")
        stale.keyboard.press("b")
        said(stale).to_contain_text("the first label is kept")
        notice = stale.get_by_text("Already saved; the first label is kept.", exact=True)
        expect(notice).to_be_visible()
        assert len(exported(store)) == 1
        stale.keyboard.press("a")
        said(stale).to_contain_text("All done")
        expect(notice).to_be_hidden()


def test_the_page_that_waits_looks_again_after_a_failed_look(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store = make_store(2)
    ann, bob = (store.find_annotator(name).id for name in ("ann", "bob"))
    assert store.next_lease(bob) is not None
    with served(store) as url:
        page = open_page("ann", url)
        page.keyboard.press("a")
        said(page).to_contain_text("No item available now")
        page.route("**/api/next", lambda route: route.abort(), times=1)
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached", timeout=10_000)
        store.release(bob)
        expect(page.locator("#view-item")).to_be_visible(timeout=10_000)
        expect(page.get_by_role("alert")).to_be_hidden()
    assert store.progress(ann).num_mine == 1


def test_a_tab_that_shows_another_name_saves_nothing_and_starts_again(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store = make_store(2)
    with served(store) as url:
        page = open_page("ann", url)
        other = page.context.new_page()
        other.goto(url)
        expect(other.locator("#view-item")).to_be_visible()
        other.get_by_role("button", name="switch annotator").click()
        other.get_by_label("Name").fill("bob")
        other.get_by_role("button", name="Start").click()
        expect(other.locator("#view-item")).to_be_visible()
        page.keyboard.press("a")
        expect(page.get_by_role("alert")).to_contain_text("bob has since signed in with this browser")
        expect(page.locator("#person-name")).to_have_text("bob")
        assert exported(store) == []
        page.keyboard.press("a")
        said(page).to_contain_text("Saved")
        expect(page.get_by_role("alert")).to_be_hidden()
    (row,) = exported(store)
    assert row["annotator"] == "bob"


def test_a_label_that_was_not_saved_is_shown_and_tried_again(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page], tmp_path: Path
) -> None:
    store = make_store(2)
    with served(store) as url:
        page = open_page("ann", url)
        other = sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        page.keyboard.press("a")
        expect(page.get_by_role("alert")).to_contain_text("Not saved: the database is locked")
        other.execute("ROLLBACK")
        assert exported(store) == []
        page.get_by_role("button", name="Try again").click()
        said(page).to_contain_text("Saved: A is better. Item 2.")
        expect(page.get_by_role("alert")).to_be_hidden()
    assert len(exported(store)) == 1


def test_an_undo_whose_answer_was_lost_is_tried_again_and_takes_back_one_label(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store = make_store(3)
    with served(store) as url:
        page = open_page("ann", url)
        for number in (2, 3):
            page.keyboard.press("a")
            said(page).to_contain_text(f"Item {number}.")

        def lose_answer(route: Route) -> None:
            route.fetch()
            route.abort()

        page.route("**/api/undo", lose_answer, times=1)
        page.keyboard.press("u")
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        page.get_by_role("button", name="Try again").click()
        said(page).to_contain_text("Undone: label it again. Item 2.")
        expect(page.locator("#prompt")).to_have_text("prompt 1")
    assert len(exported(store)) == 1


@pytest.mark.parametrize(("mode", "key", "field"), [("thumbs", "g", "label"), ("best-of-4", "3", "best")])
def test_the_other_modes(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page], mode: str, key: str, field: str
) -> None:
    store = make_store(1, mode=mode)
    with served(store) as url:
        page = open_page("ann", url)
        texts = shown(page)
        page.keyboard.press(key)
        expect(page.get_by_role("heading", name="All done")).to_be_visible()
    (row,) = exported(store)
    if mode == "thumbs":
        assert row[field] is True
    else:
        assert row[f"sample{row[field]}"] == texts[2]


def test_without_a_token_the_page_asks_for_it(make_store: Callable[..., LabelStore], browser: Browser) -> None:
    with served(make_store(1)) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}#token=wrong")
        expect(page.get_by_role("alert")).to_contain_text("not the token")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_label("Name")).to_be_visible()


def test_all_tabs_of_a_browser_know_the_secret_of_its_newest_session(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    with served(make_store(2)) as url:
        page = open_page("ann", url)
        other = page.context.new_page()
        other.goto(f"{url}#token={TOKEN}")
        other.get_by_label("Name").fill("ann")
        other.get_by_role("button", name="Start").click()
        expect(other.locator("#view-item")).to_be_visible()
        page.keyboard.press("a")
        said(page).to_contain_text("Saved")
        page.evaluate("localStorage.clear()")
        page.keyboard.press("a")
        expect(page.get_by_label("Token")).to_be_visible()


def test_the_last_label_can_be_undone_before_the_page_closes_by_itself(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store, told = make_store(1), []
    with feedback.listen(0) as listener:
        options = {"is_ended_when_done": True, "end_seconds": 2.0, "announce": told.append}
        thread = threading.Thread(target=feedback.serve, args=(store, listener), kwargs=options)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        page = open_page("ann", url, token=_token(told))
        page.keyboard.press("a")
        expect(page.locator("#done-ending")).to_contain_text("stops in a few seconds")
        page.wait_for_timeout(1000)
        page.keyboard.press("u")
        expect(page.locator("#view-item")).to_be_visible()
        page.wait_for_timeout(2500)
        assert thread.is_alive()
        page.keyboard.press("b")
        said(page).to_contain_text("stops in a few seconds")
        thread.join(20)
        assert not thread.is_alive()
    assert len(exported(store)) == 1


def _token(told: list[str]) -> str:
    while not told:
        time.sleep(0.01)
    return told[0].split("#token=")[1]


def test_a_new_link_pasted_into_the_same_tab_is_followed(
    make_store: Callable[..., LabelStore], open_page: Callable[..., Page]
) -> None:
    store = make_store(3)
    with served(store) as url:
        page = open_page("ann", url)
        stats = page.context.new_page()
        stats.goto(f"{url}stats")
        expect(stats.locator("#tiles")).to_contain_text("0 / 3")
        page.keyboard.press("a")
        said(page).to_contain_text("Saved")
    with served(store, port=int(url.split(":")[2].strip("/")), token="another"):
        page.goto(f"{url}#token=another")
        expect(page.get_by_label("Name")).to_be_visible()
        expect(page.locator("#progress")).to_be_hidden()
        assert page.url == url
        page.get_by_label("Name").fill("ann")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#progress-text")).to_have_text("1 of 3 done")
        stats.goto(f"{url}stats#token=another")
        expect(stats.locator("#tiles")).to_contain_text("1 / 3")
        assert stats.url == f"{url}stats"


def test_the_token_form_sends_the_token_once(make_store: Callable[..., LabelStore], browser: Browser) -> None:
    with served(make_store(1)) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        sent = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_label("Name")).to_be_visible()
        page.wait_for_timeout(300)
        assert sent == [f"{url}api/session"]


def test_a_label_that_the_page_confirmed_survives_kill_9(open_page: Callable[..., Page], tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {place}", "completions": ["left", "right"]} for place in range(3)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "jaxrl_lm.cli.main", "label", f"--out={tmp_path / 'out'}", "--port=0"]
    command.append(f"--completions={tmp_path / 'answers.jsonl'}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url, token = _address(process)
            page = open_page("ann", url, token=token)
            page.keyboard.press("a")
            said(page).to_contain_text("Saved: A is better. Item 2.")
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.keyboard.press("b")
            expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        finally:
            process.kill()
    engine = feedback.open_database(f"sqlite:///{tmp_path / 'out' / 'labels.sqlite'}", is_new_allowed=False)
    with feedback.lock_server(engine):  # the killed server holds nothing
        assert len(feedback.export_labels(engine, "pairwise").rows) == 1
    engine.dispose()


def _address(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        found = re.search(r"(http://127\.0\.0\.1:\d+/)#token=(\S+)", line)
        if found:
            return found[1], found[2]
        assert time.monotonic() < deadline
    raise AssertionError("the server ended without an address")
