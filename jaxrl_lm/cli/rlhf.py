"""`jaxrl-lm rlhf`: the whole chain, with labels from a simulated annotator, a file, or people on a web page."""

from pathlib import Path

from rich.table import Table

from jaxrl_lm import data, rewards, storage
from jaxrl_lm.cli.console import print_text, result_console
from jaxrl_lm.cli.extras import needing
from jaxrl_lm.data import Preference
from jaxrl_lm.data.fields import text_field
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.reward_model.labels import labels_tokenizer
from jaxrl_lm.training.rlhf.config import RLHFConfig
from jaxrl_lm.training.rlhf.report import table_of
from jaxrl_lm.training.rlhf.train import Annotate, ChainResult, Pair, file_annotator, run_rlhf, simulated_annotator


def run_chain(config: RLHFConfig) -> None:
    """Run the chain and print its results."""
    print_chain(run_rlhf(config, _annotator(config)))


def print_chain(result: ChainResult) -> None:
    """Print the table of policies, their completions of one prompt, and the path of the report."""
    if not result.policies:
        print_text(
            f"stopped after the stage given by --stop-after: {result.folder.path}; give a later one to continue",
            soft_wrap=True,
        )
        return
    heads, rows = table_of(result.policies)
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    console = result_console()
    console.print(table)
    print_text(result.policies[0].prompts[0], console=console, style="dim")
    for policy in result.policies:
        print_text(f"{policy.name}: {policy.completions[0].strip()}", console=console)
    print_text(f"report: {result.folder.report_file}", console=console, soft_wrap=True)


def _annotator(config: RLHFConfig) -> Annotate | None:
    labels = config.labels
    if config.reward is not None:
        return None
    if labels.file is not None:
        return file_annotator(labels.file, labels_tokenizer(config.model, config.reward_model.labels_tokenizer))
    if labels.annotator == "page":
        return page_annotator(labels.port)
    assert labels.gold is not None
    return simulated_annotator(rewards.load_reward(labels.gold), noise=labels.noise, seed=config.seed)


def page_annotator(port: int) -> Annotate:
    """An annotator that serves the pairs on the page of `jaxrl-lm label` until all are labelled or skipped."""
    with needing("label", "labels.annotator=page"):
        from jaxrl_lm.cli.label import database_errors_in_words, serve_labels
        from jaxrl_lm.cli.label_settings import ServeConfig
        from jaxrl_lm.feedback import export_labels, open_database

    def annotate(pairs: list[Pair], folder: Path, number: int) -> list[Preference]:
        label_folder = folder / "people"
        file = label_folder / "answers.jsonl"
        label_folder.mkdir(exist_ok=True)
        rows = [
            {
                "prompt": pair.prompt.prompt,
                "completions": [pair.first, pair.second],
                **data.template_columns(pair.prompt.prompt),
            }
            for pair in pairs
        ]
        storage.write_atomically(file, "")
        storage.append_jsonl(file, rows)
        with database_errors_in_words():
            stopped_by = serve_labels(
                ServeConfig(out=str(label_folder), completions=str(file), port=port, end_when_done=True)
            )
            engine = open_database(f"sqlite:///{label_folder / 'labels.sqlite'}", is_new_allowed=False)
            found = export_labels(engine, "pairwise").rows
            engine.dispose()
        if stopped_by is not None:
            raise Interrupted(
                f"stopped while round {number} was being labelled; labels are saved, run the same command to continue",
                stopped_by,
            )
        return [
            Preference(prompt=text_field(row, "prompt", "labels"), chosen=row["chosen"], rejected=row["rejected"])
            for row in found
        ]

    return annotate
