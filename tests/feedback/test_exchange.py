"""Labels out and in: forms, round trips through the data readers, contradictions."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from jaxrl_lm import data, feedback
from jaxrl_lm.cli.label_completions import read_completions
from jaxrl_lm.cli.main import run
from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback import MODES, Item, LabelledItem, LabelStore, Mode, export_labels, import_labels
from jaxrl_lm.feedback.items import VERDICTS
from tests.byte_model import write_byte_model
from tests.feedback.conftest import Clock, numbered_items

PAIR = Item(mode="pairwise", prompt="p", completions=("good", "bad"))


def test_a_pair_in_either_order_is_the_same_item(engine: Engine) -> None:
    swapped = Item(mode="pairwise", prompt="p", completions=("bad", "good"))
    import_labels(engine, [LabelledItem(item=PAIR, verdict="0")], name="ann")
    assert import_labels(engine, [LabelledItem(item=swapped, verdict="1")], name="ann").num_repeated == 1
    assert import_labels(engine, [LabelledItem(item=swapped, verdict="0")], name="ann").num_contradicting == 1
    assert import_labels(engine, [LabelledItem(item=swapped, verdict="0")], name="bob").num_added == 1
    chosen = {row["annotator"]: row["chosen"] for row in export_labels(engine, "pairwise").rows}
    assert chosen == {"ann": "good", "bob": "bad"}


def test_agreement_does_not_depend_on_which_answer_the_file_has_first(engine: Engine) -> None:
    pairs = [Item(mode="pairwise", prompt=f"p{k}", completions=(f"good {k}", f"bad {k}")) for k in range(12)]
    import_labels(engine, [LabelledItem(item=pair, verdict="0") for pair in pairs], name="ann")
    store = LabelStore(engine, mode="pairwise", overlap=2)
    bob = store.find_annotator("bob").id
    while (lease := store.next_lease(bob)) is not None:
        place = [str(completion).startswith("good") for completion in lease.completions].index(True)
        store.label(bob, lease.id, str(place))
    statistics = feedback.compute_statistics(engine, "pairwise")
    assert statistics.alpha == pytest.approx(1.0)  # undefined if the first of the file were a verdict


def test_ties_and_skips_are_counted_and_left_out(make_store: Callable[..., LabelStore]) -> None:
    store = make_store(3)
    ann = store.find_annotator("ann").id
    for verdict in ("tie", "skip", "0"):
        lease = store.next_lease(ann)
        assert lease is not None
        store.label(ann, lease.id, verdict)
    exported = export_labels(store.engine, "pairwise")
    assert (len(exported.rows), exported.num_ties, exported.num_skips) == (1, 1, 1)


def test_labels_of_named_people_only(engine: Engine) -> None:
    for name in ("ann", "bob"):
        import_labels(engine, [LabelledItem(item=PAIR, verdict="0")], name=name)
    assert [row["annotator"] for row in export_labels(engine, "pairwise", names=["BOB"]).rows] == ["bob"]
    with pytest.raises(InputError, match=r"annotator='eve' is unknown; annotators in the database: ann, bob"):
        export_labels(engine, "pairwise", names=["eve"])


def test_an_import_that_fails_midway_leaves_nothing(engine: Engine) -> None:
    def rows():
        yield LabelledItem(item=PAIR, verdict="0")
        raise InputError("line 2 is broken")

    with pytest.raises(InputError, match="line 2"):
        import_labels(engine, rows(), name="ann")
    assert feedback.list_modes(engine) == []


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=4, max_size=4, unique=True), st.integers(0, 3))))
def test_any_text_survives_the_database(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[str], int]]
) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('texts') / 'labels.sqlite'}"
    engine = feedback.open_database(url, is_new_allowed=True)
    labelled = {
        (prompt, *sorted(completions)): LabelledItem(
            item=Item(mode="best-of-4", prompt=prompt, completions=tuple(completions)), verdict=str(best)
        )
        for prompt, completions, best in rows
    }
    import_labels(engine, labelled.values(), name="ann")
    found = export_labels(engine, "best-of-4").rows
    engine.dispose()
    assert [(row["query"], row[f"sample{row['best']}"]) for row in found] == [
        (each.item.prompt, each.item.completions[int(each.verdict)]) for each in labelled.values()
    ]


def label_command(*args: object) -> int:
    return run(["label", *map(str, args)])


ROWS = {
    "pairwise": {"prompt": "p", "chosen": "good \u202e", "rejected": "<b>bad</b>"},
    "thumbs": {
        "prompt": [{"role": "user", "content": "p"}],
        "completion": [{"role": "assistant", "content": "fine"}],
        "label": False,
    },
    "best-of-4": {"query": "p", **{f"sample{place}": f"answer {place}" for place in range(4)}, "best": 2},
}
READERS = {
    "pairwise": data.read_preferences,
    "thumbs": data.read_unpaired_preferences,
    "best-of-4": data.read_best_of_k,
}


@pytest.mark.parametrize("mode", ROWS)
def test_commands_import_and_export_what_the_readers_read(
    mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, folder, out = tmp_path / "in.jsonl", tmp_path / "labels", tmp_path / "out.jsonl"
    source.write_text(json.dumps(ROWS[mode]) + "\n")
    options = ("--labels", folder, "--mode", mode)
    assert label_command("import", *options, "--source", source, "--annotator", "ann") == 0
    assert label_command("export", "--labels", folder, "--out", out) == 0
    assert "1 labels" in capfd.readouterr().out
    assert label_command("stats", "--labels", folder) == 0
    assert "ann" in capfd.readouterr().out
    (before,), (after,) = READERS[mode](source), READERS[mode](out)
    assert after == before


@pytest.mark.parametrize("mode", ["pairwise", "best-of-4"])
def test_an_exported_data_set_brings_the_shown_order_back(mode: Mode, tmp_path: Path, engine: Engine) -> None:
    feedback.add_items(engine, numbered_items(8, mode))
    store = LabelStore(engine, mode=mode)
    ann = store.find_annotator("ann").id
    while (lease := store.next_lease(ann)) is not None:
        store.label(ann, lease.id, str(int(lease.prompt[-1]) % 2))  # half of them choose what was shown first
    rows = export_labels(engine, mode).rows
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f"sqlite:///{tmp_path / 'other.sqlite'}"
    assert label_command("import", "--database", url, "--mode", mode, "--source", tmp_path / "set.jsonl") == 0
    other = feedback.open_database(url, is_new_allowed=False)
    assert export_labels(other, mode).rows == rows
    (person,) = feedback.compute_statistics(other, mode).people
    assert (person.num_first_chosen, person.num_choices) == (4, 8)
    other.dispose()


def test_a_shown_order_that_is_neither_true_nor_false_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    row = ROWS["pairwise"] | {"annotator": "ann", "is_chosen_shown_first": "perhaps"}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    assert label_command("import", "--labels", tmp_path / "labels", "--source", tmp_path / "set.jsonl") == 2
    assert "is_chosen_shown_first='perhaps' must be true or false" in capfd.readouterr().err


def test_stats_counts_an_item_as_labelled_when_it_has_the_servers_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answers, labels = tmp_path / "answers.jsonl", tmp_path / "labels.jsonl"
    answers.write_text(json.dumps({"prompt": "p", "completions": ["good \u202e", "<b>bad</b>"]}))
    labels.write_text(json.dumps(ROWS["pairwise"]))
    monkeypatch.setattr(feedback, "serve", lambda *_, **__: None)
    folder = tmp_path / "out"
    assert label_command("--out", folder, "--completions", answers, "--overlap=2", "--port=0") == 0
    for name, num_compared in (("ann", 0), ("bob", 1)):
        assert label_command("import", "--labels", folder, "--source", labels, "--annotator", name) == 0
        capfd.readouterr()
        assert label_command("stats", "--labels", folder) == 0
        assert f"{num_compared} of 1 items labelled" in capfd.readouterr().out


@pytest.mark.parametrize("mode", MODES)
def test_every_verdict_survives_export_and_import(mode: Mode, tmp_path: Path, clock: Clock, engine: Engine) -> None:
    feedback.add_items(engine, numbered_items(12, mode))
    store = LabelStore(engine, mode=mode, overlap=2, clock=clock)
    lot = random.Random(0)
    for name in ("ann", "Bob \u00e9"):
        annotator = store.find_annotator(name).id
        while (lease := store.next_lease(annotator)) is not None:
            clock.now += lot.randint(1, 30)
            store.label(annotator, lease.id, lot.choice(VERDICTS[mode]))
    out = tmp_path / "verdicts.jsonl"
    assert label_command("export", "--labels", tmp_path, "--out", out, "--all-verdicts") == 0
    assert label_command("import", "--labels", tmp_path / "new", "--source", out) == 0
    copy = feedback.open_database(f"sqlite:///{tmp_path / 'new' / 'labels.sqlite'}", is_new_allowed=False)
    before = feedback.compute_statistics(engine, mode)
    assert {person.num_labels + person.num_skips for person in before.people} == {12}
    assert feedback.compute_statistics(copy, mode) == before
    assert feedback.export_verdicts(copy, mode) == feedback.export_verdicts(engine, mode)
    copy.dispose()


def test_places_follow_the_answers_when_the_database_has_them_in_another_order(engine: Engine) -> None:
    fours = [tuple("abcd"), tuple("dbca")]
    feedback.add_items(engine, [Item(mode="best-of-4", prompt="p", completions=fours[0])])
    item = Item(mode="best-of-4", prompt="p", completions=fours[1])
    labelled = LabelledItem(item=item, verdict="0", annotator="ann", seconds=2.5, shown_order=(2, 0, 1, 3))
    import_labels(engine, [labelled])
    (row,) = feedback.export_verdicts(engine, "best-of-4")
    assert [row["completions"][place] for place in row["shown_order"]] == list("cdba")
    assert (row["completions"][int(row["verdict"])], row["seconds"]) == ("d", 2.5)


@pytest.mark.parametrize("mode", ROWS)
def test_an_exported_data_set_says_whose_its_labels_are(mode: str, tmp_path: Path) -> None:
    source, folder, out = tmp_path / "in.jsonl", tmp_path / "labels", tmp_path / "out.jsonl"
    told = {"annotator": "ann", "seconds": 3.5}
    source.write_text(json.dumps({**ROWS[mode], **told}) + "\n")
    assert label_command("import", "--labels", folder, "--mode", mode, "--source", source) == 0
    assert label_command("export", "--labels", folder, "--out", out) == 0
    assert told.items() <= json.loads(out.read_text()).items()
    assert label_command("import", "--labels", folder, "--mode", mode, "--source", source, "--annotator", "bob") == 0
    engine = feedback.open_database(f"sqlite:///{folder / 'labels.sqlite'}", is_new_allowed=False)
    assert [person.name for person in feedback.compute_statistics(engine, cast(Mode, mode)).people] == ["ann", "bob"]
    engine.dispose()


FIVE = {**ROWS["best-of-4"], "sample4": "e", "annotator": "ann"}
VERDICT = {"mode": "pairwise", "prompt": "p", "completions": ["a", "b"], "verdict": "tie", "annotator": "ann"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS["pairwise"], "the row has no annotator; give one with --annotator NAME"),
        ({**ROWS["pairwise"], "annotator": "ann", "seconds": "soon"}, "'soon' is not a finite number"),
        ({**ROWS["pairwise"], "annotator": "ann", "seconds": -1}, "seconds=-1.0 must be 0 or more; omit it"),
        ({**ROWS["pairwise"], "annotator": "a" * 41}, "name has 41 characters; use at most 40"),
        ({**VERDICT, "annotator": "a" * 41}, "name has 41 characters; use at most 40"),
        (FIVE, "needs 4 completions, but has 5; give 4, or remove the row"),
        ({**VERDICT, "annotator": None}, "the row has no annotator"),
        ({**VERDICT, "mode": "best"}, "mode='best' must be one of pairwise"),
        ({**VERDICT, "verdict": "2"}, "verdict='2' must be one of 0, 1, tie, skip"),
        ({**VERDICT, "completions": "ab"}, "completions='ab' must be a list"),
        ({**VERDICT, "completions": ["a"]}, "needs 2 completions, but has 1"),
        ({**VERDICT, "completions": ["a", 3]}, "3 is not text"),
        ({**VERDICT, "seconds": -1}, "seconds=-1.0 must be 0 or more"),
        ({**VERDICT, "shown_order": [0, 0]}, "must contain each of [0, 1] once"),
        ({**VERDICT, "shown_order": "01"}, "must be a list of indices"),
    ],
)
def test_rows_that_cannot_be_imported_name_their_line(
    row: dict, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    mode = "best-of-4" if row is FIVE else "pairwise"
    assert label_command("import", "--labels", tmp_path / "l", "--mode", mode, "--source", tmp_path / "in.jsonl") == 2
    error = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in error
    assert "line 1" in error.replace("jsonl, line", "line")
    assert not (tmp_path / "l").exists()


def test_openais_token_ids_are_imported_as_the_text_of_a_named_tokenizer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_byte_model(tmp_path / "model", num_layers=1, model_size=16, num_heads=2, context=32)
    encode = data.load_tokenizer(tmp_path / "model", vocab_size=None).encode
    row = {name: encode(text) if isinstance(text, str) else text for name, text in ROWS["best-of-4"].items()}
    source, labels, out = tmp_path / "offline.json", tmp_path / "labels", tmp_path / "out.jsonl"
    source.write_text(json.dumps([row, row]))
    options = ("import", "--labels", labels, "--mode=best-of-4", "--source", source, "--annotator", "ann")
    assert label_command(*options) == 2
    assert "for example with `label import --tokenizer`" in " ".join(capfd.readouterr().err.split())
    assert label_command(*options, "--tokenizer", tmp_path / "none") == 2
    assert "tokenizer=" in capfd.readouterr().err
    assert label_command(*options, "--tokenizer", tmp_path / "model") == 0
    assert label_command("export", "--labels", labels, "--out", out) == 0
    assert json.loads(out.read_text()).items() >= ROWS["best-of-4"].items()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "out: not given"),
        (("--out=o",), "does not exist"),
        (("--out=o", "--policy=m"), "policy and prompts go together"),
        (("--out=o", "--policy=m", "--prompts=p", "--completions=a"), "remove one"),
        (("--database=sqlite:///x", "--policy=m", "--prompts=p"), "folder for the policy's completions"),
        (("--out=o", "--overlap=0"), "overlap=0"),
        (("--out=o", "--lease-minutes=0"), "lease_minutes=0.0"),
        (("--out=o", "--completions=none.jsonl"), "none.jsonl"),
        (("--out=o", "--port=70000"), "port=70000"),
        (("--out=o", "--hosts", "a*b"), "hosts='a*b' is not a host name"),
        (("--out=o", "--hosts", "good.example", "https://x"), "hosts='https://x'"),
        (("--out=o", "--hosts", "x:443"), "hosts='x:443'"),
        (("--out=o", "--hosts", "Label.Example"), "hosts='Label.Example'"),
        (("--out=o", "--hosts", "x/label"), "hosts='x/label'"),
        (("--out=o", "--hosts", ""), "hosts=''"),
        (("export", "--out=x.jsonl"), "labels: not given"),
        (("export", "--out=x.jsonl", "--labels=none"), "does not exist"),
        (("stats", "--labels=none"), "does not exist"),
        (("import", "--labels=l", "--source=none.jsonl", "--annotator=a"), "none.jsonl"),
        (("import", "--labels=l", "--source=none.jsonl", f"--annotator={'a' * 41}"), "name has 41 characters"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    assert label_command(*args) == 2
    assert message in " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_names_that_browsers_send_are_hosts() -> None:
    from jaxrl_lm.cli.label_settings import ServeConfig

    names = ("label.example.org", "box", "xn--bcher-kva.example", "*.example.org", "10.0.0.7", "*")
    assert ServeConfig(out="o", hosts=names).hosts == names


USER, ASSISTANT = {"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "completions=None must be a list"),
        ({"prompt": "p", "completions": "ab"}, "must be a list"),
        ({"prompt": "p", "completions": ["a", 3]}, "'completions[1]': 3 is not text"),
        ({"prompt": "p", "completions": ["a", None]}, "there is no 'completions[1]'"),
        ({"prompt": "p", "completions": ["a", [{"role": "user"}]]}, "its 'content' is missing or not text"),
        ({"prompt": "p", "completions": ["a", [ASSISTANT]]}, "messages, but the prompt is text"),
        ({"prompt": [USER], "completions": ["a", [{**USER, "content": "no"}]]}, "not begin with a message of the role"),
        (
            {"prompt": [USER], "completions": ["a", [{**ASSISTANT, "tool_calls": 3}]]},
            "its 'tool_calls' is not a list of objects",
        ),
        ({"prompt": "p", "completions": ["a", "\ud800"]}, "half of a surrogate pair"),
        ({"prompt": "p", "completions": ["a", "a"]}, "no items for mode pairwise"),
    ],
)
def test_answers_that_cannot_be_asked_name_their_row(
    row: dict, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert label_command("--out", tmp_path / "o", "--completions", tmp_path / "a.jsonl", "--port=0") == 2
    error = capfd.readouterr().err
    assert message in error
    assert "row 1" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("mode", "read"),
    [
        ("pairwise", data.read_preferences),
        ("thumbs", data.read_unpaired_preferences),
        ("best-of-4", data.read_best_of_k),
    ],
)
def test_labels_of_answers_that_are_messages_can_be_read_back(
    mode: Mode, read: Callable[[str], Sequence], engine: Engine, tmp_path: Path
) -> None:
    said = [[{**ASSISTANT, "content": f"answer {place}"}] for place in range(4)]
    blank = [ASSISTANT, {**ASSISTANT, "content": " "}]
    row = {"prompt": [USER], "completions": [*said[:3], blank, [USER, *said[3]]]}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    made = feedback.make_items(read_completions(str(tmp_path / "answers.jsonl"), "prompt"), mode)
    assert [reason.split(": ")[1] for reason in made.left_out] == ["1 of 5 completions are blank"]
    feedback.add_items(engine, made.items)
    store = LabelStore(engine, mode=mode)
    ann = store.find_annotator("ann").id
    while (lease := store.next_lease(ann)) is not None:
        store.label(ann, lease.id, VERDICTS[mode][0])
    rows = feedback.export_labels(engine, mode).rows
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read(str(tmp_path / "out.jsonl"))) == len(made.items) > 0


@pytest.mark.parametrize(
    ("mode", "read"),
    [
        ("pairwise", data.read_preferences),
        ("thumbs", data.read_unpaired_preferences),
        ("best-of-4", data.read_best_of_k),
    ],
)
def test_what_prompts_give_to_the_chat_template_survives_labels_export_and_import(
    mode: Mode, read: Callable[[str], Sequence], engine: Engine, tmp_path: Path
) -> None:
    given = [{"tools": [{"name": name}], "chat_template_kwargs": {"thinking": False}} for name in ("clock", "map")]
    texts = [f"answer {place}" for place in range(feedback.NUM_COMPLETIONS[mode])]
    rows = [{"prompt": [USER], "completions": texts, **columns} for columns in given]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = feedback.make_items(read_completions(str(tmp_path / "answers.jsonl"), "prompt"), mode)
    assert feedback.add_items(engine, made.items) == 2, "the same messages for other tools are another item"
    store = LabelStore(engine, mode=mode)
    ann = store.find_annotator("ann").id
    while (lease := store.next_lease(ann)) is not None:
        store.label(ann, lease.id, VERDICTS[mode][0])
    for option in ((), ("--all-verdicts",)):
        out, copy = tmp_path / f"out{len(option)}.jsonl", tmp_path / f"copy{len(option)}"
        assert label_command("export", "--labels", tmp_path, "--out", out, *option) == 0
        assert label_command("import", "--labels", copy, "--mode", mode, "--source", out) == 0
        again = tmp_path / f"again{len(option)}.jsonl"
        assert label_command("export", "--labels", copy, "--out", again) == 0
        assert [data.template_columns(record.prompt) for record in read(str(again))] == given
