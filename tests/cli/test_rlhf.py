"""People as annotators of a chain: their choices on the page become the labels, Ctrl-C stops it; what is printed."""

import sqlite3
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jaxrl_lm import feedback
from jaxrl_lm.cli.rlhf import page_annotator, print_chain
from jaxrl_lm.data import Preference, Prompt, template_columns
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import LabelStore
from jaxrl_lm.storage import RunFolder
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.rlhf.comparison import PolicyCompletions
from jaxrl_lm.training.rlhf.train import ChainResult, Pair

PAIRS = [
    Pair(Prompt(prompt=f"p{number}", columns={}), f"short {number}", f"a longer one {number}") for number in range(3)
]


def prefer_longer(store: LabelStore, most: int) -> None:
    """Ann labels so many pairs: the longer answer is better."""
    ann = store.find_annotator("ann").id
    for _ in range(most):
        lease = store.next_lease(ann)
        if lease is None:
            return
        longest = max(lease.completions, key=len)
        store.label(ann, lease.id, str(lease.completions.index(longest)))


def test_peoples_choices_become_preferences_and_ctrl_c_stops_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(store: LabelStore, *args: object, **options: object) -> None:
        prefer_longer(store, 1)
        raise KeyboardInterrupt

    def finished(store: LabelStore, *args: object, **options: object) -> None:
        assert options["is_ended_when_done"]
        prefer_longer(store, 9)

    annotate = page_annotator(port=0)
    monkeypatch.setattr(feedback, "serve", interrupted)
    with pytest.raises(Interrupted, match="labels are saved, run the same command"):
        annotate(PAIRS, tmp_path, 1)
    monkeypatch.setattr(feedback, "serve", finished)
    labels = annotate(PAIRS, tmp_path, 1)
    expected = [Preference(prompt=pair.prompt.prompt, chosen=pair.second, rejected=pair.first) for pair in PAIRS]
    assert sorted(labels, key=lambda label: str(label.prompt)) == expected


def test_what_a_prompt_gives_to_the_chat_template_comes_back_from_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"tools": [{"name": "clock"}], "chat_template_kwargs": {"thinking": False}}
    prompt = Prompt(prompt=[{"role": "user", "content": "What time is it?"}], columns=columns)
    monkeypatch.setattr(feedback, "serve", lambda store, *_, **__: prefer_longer(store, 9))
    (label,) = page_annotator(port=0)([Pair(prompt, "noon", "no idea")], tmp_path, 1)
    assert label == Preference(prompt=prompt.prompt, chosen="no idea", rejected="noon")
    assert template_columns(label.prompt) == columns


def test_a_locked_database_stops_the_chain_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(store: LabelStore, *args: object, **options: object) -> None:
        other = sqlite3.connect(tmp_path / "people" / "labels.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            store.find_annotator("ann")
        finally:
            other.execute("ROLLBACK")

    opened = partial(feedback.open_database, busy_seconds=0.1)
    monkeypatch.setattr(feedback, "open_database", opened)
    monkeypatch.setattr(feedback, "serve", locked)
    with pytest.raises(InputError, match="labels: the database is locked by another program; close that program"):
        page_annotator(port=0)(PAIRS, tmp_path, 1)


def test_what_models_write_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x1b[31m:smile: [bold]red[/bold]\r\nnext\u202e \ud83d"
    policy = PolicyCompletions(name="p", prompts=[text], completions=[text], scores={}, kl=np.zeros(1), strips=[])
    print_chain(ChainResult(folder=RunFolder(Path(":smile:")), policies=[policy]))
    shown = capsys.readouterr().out
    spelled = "[U+001B][31m:smile: [bold]red[/bold][U+000D]\nnext[U+202E] [U+D83D]"
    assert f"\n{spelled}\np: {spelled}\nreport: :smile:/" in shown
    assert not set(shown) & {"\x1b", "\r", "\u202e"}


def test_the_page_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jaxrl_lm.cli.label", raising=False)
    monkeypatch.setitem(sys.modules, "jaxrl_lm.cli.label_tables", None)
    with pytest.raises(InputError, match=r"labels.annotator=page needs .* pip install 'jaxrl-lm\[label\]'"):
        page_annotator(port=0)
