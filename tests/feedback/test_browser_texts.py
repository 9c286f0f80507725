"""Untrusted, huge and unseen texts in a real browser."""

from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy import Engine

from jaxrl_lm import feedback
from jaxrl_lm.feedback import Item, LabelStore
from tests.feedback.conftest import exported, served, shown

HOSTILE = (
    '<img src="x" onerror="document.title=1"><script>document.title=2</script>\x00\x1b[31m\u202edrow\u202c &amp; end'
)


def test_hostile_and_huge_texts_are_text(engine: Engine, open_page: Callable[..., Page]) -> None:
    huge = "a line of an answer\n" * 5000
    prompt = [{"role": "user", "content": HOSTILE}]
    feedback.add_items(engine, [Item(mode="pairwise", prompt=prompt, completions=(huge, HOSTILE))])
    store = LabelStore(engine, mode="pairwise")
    with served(store) as url:
        page = open_page("<b>ann</b>", url, width=400)
        assert page.title() == "Label · jaxrl_lm"
        assert page.locator("main img, main script, .person b").count() == 0
        for text in (page.locator(".turn-body").inner_text(), *(each for each in shown(page) if len(each) < 1000)):
            assert text.startswith('<img src="x" onerror=')
            assert "NUL" in text
            assert "ESC[31mU+202EdrowU+202C &amp; end" in text.replace(" ESC", "ESC")
        assert any(len(text) >= 5000 * 19 for text in shown(page))
        # The huge answer scrolls inside its card, the page does not scroll sideways, the buttons stay in sight.
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        heights = page.locator(".answer .text").evaluate_all("all => all.map(e => [e.clientHeight, e.scrollHeight])")
        assert max(heights, key=lambda pair: pair[1])[1] > 50_000
        assert max(height for height, _ in heights) < 400
        expect(page.get_by_role("button", name="Tie")).to_be_in_viewport()
        page.get_by_role("button", name="B is better").click()
        expect(page.get_by_role("heading", name="All done")).to_be_visible()
    (row,) = exported(store)
    assert {row["chosen"], row["rejected"]} == {huge, HOSTILE}


def test_very_many_unseen_characters_are_shown_soon(engine: Engine, open_page: Callable[..., Page]) -> None:
    many = "\x01a" * 50_000
    prompt = [{"role": "user", "content": "\x01a" * 1500}, {"role": "assistant", "content": "\x01a" * 1500}]
    feedback.add_items(engine, [Item(mode="pairwise", prompt=prompt, completions=(many, many + "b"))])
    with served(LabelStore(engine, mode="pairwise")) as url:
        page = open_page("ann", url, wait=20.0)  # a few seconds on two busy cores; a node for each run took 41
        assert page.locator("#prompt .control").count() == 2000
        assert page.locator(".answer .control").count() == 4000
        for text in page.locator(".answer .text").evaluate_all("all => all.map(each => each.textContent)"):
            assert text.startswith("SOHaSOHa")
            assert text.rstrip("b").endswith("\ufffda" * 48_000)


def test_lines_may_end_in_two_characters_and_blank_letters_are_named(
    engine: Engine, open_page: Callable[..., Page]
) -> None:
    completions = ("one\r\ntwo\rthree", "x\u3164\u2800\u034f\u115f\uffa0\U000e0100y")
    feedback.add_items(engine, [Item(mode="pairwise", prompt="p", completions=completions)])
    with served(LabelStore(engine, mode="pairwise")) as url:
        texts = open_page("ann", url).locator(".answer .text").evaluate_all("all => all.map(each => each.textContent)")
    assert sorted(texts) == ["one\ntwoCRthree", "xU+3164 U+2800 U+034F U+115F U+FFA0 U+E0100y"]
