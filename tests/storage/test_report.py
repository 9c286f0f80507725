"""The report: one file that opens offline, holds the numbers, and cannot be steered by a model's text."""

import base64
import html
import io
import re
import unicodedata
from html.parser import HTMLParser

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder, append_jsonl, write_report
from jaxrl_lm.storage.report import _visible

HOSTILE = "</div><script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes' \x1b[31m\u202egnp.exe\x00"
# No script, link, iframe, form, object, base, a.
ALLOWED_TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "p",
    "div",
    "table",
    "tr",
    "th",
    "td",
    "img",
    "article",
    "b",
    "span",
}


def sample(**fields):
    defaults = {
        "step": 0,
        "phase": "before",
        "index": 0,
        "prompt": "p",
        "completion": "c",
        "reward": 0.5,
        "kl": 0.0,
    }
    return {**defaults, **fields}


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"seed": 3, "ppo": {"clip": 0.2}})


def report(folder, title="A run"):
    path = write_report(folder, title=title)
    assert path == folder.report_file
    return path.read_text(encoding="utf-8")


def assert_self_contained(page):
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} <= ALLOWED_TAGS
    for _, attributes in parsed.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("href", "srcset", "style")}
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "@import" not in page
    policies = [
        a["content"] for t, a in parsed.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "script-src" not in policies[0]


def test_a_run_with_one_line_of_metrics_and_no_samples_has_a_report(folder):
    append_jsonl(folder.metrics_file, [{"step": 0, "reward/mean": 0.25}])
    page = report(folder)
    assert_self_contained(page)
    assert "reward/mean" in page
    assert "0.25" in page
    assert "<h2>Samples</h2>" not in page
    assert page.count("<img ") == 1


def test_a_run_with_nothing_but_its_configuration_has_a_report(folder):
    text = Page(report(folder)).text
    assert "ppo.clip" in text


def test_the_pictures_are_inside_and_whole(folder):
    append_jsonl(folder.metrics_file, [{"step": s, "reward/mean": s * 1.0, "kl/x": 0.1} for s in range(25)])
    page = report(folder)
    assert_self_contained(page)
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert pictures == [(folder.plots_folder / name).read_bytes() for name in ("reward.png", "kl.png")]
    assert matplotlib.image.imread(io.BytesIO(pictures[0])).std() > 0.01


def test_first_last_and_best_by_hand(folder):
    # 20 updates: the first tenth is 0, 1; the last tenth is 18, 19. The reward peaks at update 10.
    append_jsonl(
        folder.metrics_file,
        [
            {"step": s, "reward/m": 100.0 if s == 10 else float(s), "loss/p": float(-s), "ratio/m": 1.0 + s}
            | {"time/update_seconds": 20.0 - s, "time/steps_per_second": float(s)}
            for s in range(20)
        ],
    )
    page = report(folder)
    rows = {}
    for row in re.findall(r'<tr><td class="name">(.*?)</tr>', page):
        name, *cells = re.split(r"</td>(?:<td class=\"number\">)?", row)
        rows[name] = cells[:-1]
    assert rows["reward/m"] == ["0.5", "18.5", "100 (10)"]
    assert rows["loss/p"] == ["-0.5", "-18.5", "-"]
    assert rows["ratio/m"] == ["1.5", "19.5", "-"]
    assert rows["time/update_seconds"] == ["19.5", "1.5", "-"]
    assert rows["time/steps_per_second"] == ["0.5", "18.5", "-"]


def test_runs_in_environments_count_environment_steps(folder):
    append_jsonl(
        folder.metrics_file,
        [
            {"step": s, "steps/per_seed": 4096.0 * s, "eval/return": float(s == 2), "eval/regret": 1.0}
            for s in (1, 2, 3)
        ],
    )
    page = report(folder)
    assert ", 12,288 environment steps per seed</p>" in page
    assert ">1 (8,192)<" in page
    assert "update" not in page.partition("<h2>Configuration")[0].partition("</style>")[2]


def test_curves_come_before_tables(folder):
    append_jsonl(folder.metrics_file, [{"step": 0, "reward/mean": 1.0}])
    page = report(folder)
    assert page.index("<h2>Curves") < page.index("<h2>Metrics")


def test_a_metric_that_was_never_finite_is_said_to_be_so(folder):
    append_jsonl(folder.metrics_file, [{"step": 0, "reward/mean": None}])
    assert "not finite" in report(folder)


def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"note": HOSTILE, HOSTILE: {"x": 1}})
    append_jsonl(folder.metrics_file, [{"step": 0, f"reward/{HOSTILE}": 1.0}])
    append_jsonl(
        folder.samples_file,
        [sample(prompt=HOSTILE, completion=HOSTILE), sample(phase="after", completion=HOSTILE)],
    )
    page = report(folder, title=HOSTILE)
    assert_self_contained(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not set(page) & {"\x1b", "\u202e", "\x00"}
    text = Page(page).text
    for spelled in ("[U+001B]", "[U+202E]", "[U+0000]", "<script>alert(1)</script>"):
        assert spelled in text


def test_lone_surrogates_are_shown_not_choked_on(folder):
    append_jsonl(folder.samples_file, [sample(completion="half \ud83d emoji")])
    assert "half [U+D83D] emoji" in Page(report(folder, title="\ud83d")).text


@given(st.text(st.characters(codec=None)) | st.text(st.sampled_from('<>&"[U+1B]\x1b\u202e#;ltamp')))
def test_shown_text_holds_no_markup_and_no_controls_and_loses_nothing(text):
    page = _visible(text)
    page.encode("utf-8")
    control = re.compile(r'<span class="control">\[U\+([0-9A-F]+)\]</span>')
    assert not set(control.sub("", page)) & set("<>\"'")
    assert all(character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs") for character in page)
    assert html.unescape(control.sub(lambda match: chr(int(match[1], 16)), page)) == text


def test_before_and_after_stand_side_by_side_with_their_rewards(folder):
    append_jsonl(
        folder.samples_file,
        [
            sample(index=1, prompt="second", completion="bad", reward=-1.0),
            sample(index=0, prompt="first", completion="poor", reward=0.0),
            sample(index=0, prompt="first", completion="midway", phase="during", step=4, reward=0.25),
            sample(index=0, prompt="first", completion="fine", phase="after", step=9, reward=2.0, kl=0.125),
            sample(index=1, prompt="second", completion="good", phase="after", step=9, reward=1.0),
        ],
    )
    text = " ".join(Page(report(folder)).text.split())
    order = [
        "first",
        "before: reward 0, KL 0",
        "poor",
        "after: reward 2, KL 0.125",
        "fine",
        "second",
        "bad",
        "good",
    ]
    positions = [text.index(part, text.index("Samples")) for part in order]
    assert positions == sorted(positions)
    assert "midway" not in text
    assert "Mean reward over 2 prompts: -0.5 before, 1.5 after." in text


def test_an_unfinished_run_shows_its_latest_samples_in_the_place_of_after(folder):
    append_jsonl(
        folder.samples_file,
        [
            sample(completion="start"),
            sample(completion="later", phase="during", step=8, reward=None),
            sample(completion="earlier", phase="during", step=4),
        ],
    )
    text = Page(report(folder)).text
    assert "update 8: reward not finite" in text
    assert "later" in text
    assert "earlier" not in text


def test_a_prompt_without_a_partner_says_so(folder):
    append_jsonl(folder.samples_file, [sample(phase="after", step=3, completion="alone")])
    text = Page(report(folder)).text
    assert "before: no sample" in text
    assert "alone" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phase": "between"}, "line 2: phase is 'between', not one of before, during, after"),
        ({"completion": 3}, "line 2: completion is 3"),
        ({"reward": "high"}, "line 2: reward is 'high'"),
        ({"step": None}, "line 2: step is None"),
    ],
)
def test_a_bad_sample_is_an_error_with_its_line(folder, fields, message):
    append_jsonl(folder.samples_file, [sample(), sample(**fields)])
    with pytest.raises(InputError, match=message):
        write_report(folder, title="x")
    assert not folder.report_file.exists()
