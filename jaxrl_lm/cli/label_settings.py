"""Options of `jaxrl-lm label`, which need none of the packages of the extra `label`."""

import re
from dataclasses import dataclass, field

from jaxrl_lm.errors import InputError
from jaxrl_lm.feedback.items import NUM_COMPLETIONS, Mode, Pairs
from jaxrl_lm.training.answering import AnsweringConfig

_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
"""A host name as browsers send it, without port; `*` matches every name, `*.` every subdomain."""


@dataclass(frozen=True, kw_only=True)
class LabelAnsweringConfig(AnsweringConfig):
    """How the policy generates completions.

    Attributes:
        num_completions: completions per prompt; None for as many as the mode shows per item.
    """

    num_completions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_completions is not None and self.num_completions < 1:
            raise InputError(f"answering.num_completions={self.num_completions} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve a page for labelling completions; without --policy and --completions, continue with the items in --out.

    Attributes:
        out: folder for labels.sqlite and the policy's completions; run the same command again to continue.
        policy: folder or Hugging Face hub id of the model that completes --prompts.
        prompts: a file of prompts, in any format that `ppo` reads.
        prompt_column: prompt column of --prompts or --completions.
        completions: a file of existing completions, instead of --policy: rows with a prompt and completions, a list of
            texts.
        database: SQLAlchemy URL for the labels, such as postgresql+psycopg://user@host/name, instead of
            labels.sqlite in --out.
        mode: the better of two, thumbs up or down, or the best of four.
        pairs: with more than two completions per prompt, compare 1 with 2, 3 with 4, ..., or all pairs.
        overlap: annotators per item.
        lease_minutes: how long an annotator keeps an item before it may go to another.
        port: port of the page on 127.0.0.1; 0 for any free port.
        hosts: extra host names under which browsers may reach the page, such as that of an HTTPS proxy.
        end_when_done: stop once every item has its labels, or was skipped and is not being labelled.
        answering: how the policy generates completions.
    """

    out: str | None = None
    policy: str | None = None
    prompts: str | None = None
    prompt_column: str = "prompt"
    completions: str | None = None
    database: str | None = None
    mode: Mode = "pairwise"
    pairs: Pairs = "disjoint"
    overlap: int = 1
    lease_minutes: float = 10.0
    port: int = 8642
    hosts: tuple[str, ...] = ()
    end_when_done: bool = False
    answering: LabelAnsweringConfig = field(default_factory=LabelAnsweringConfig)

    def __post_init__(self) -> None:
        if self.out is None and self.database is None:
            raise InputError("out: not given; name the folder for the labels with --out FOLDER")
        if self.policy is not None and self.completions is not None:
            raise InputError("policy and completions are both given; remove one")
        if (self.policy is None) != (self.prompts is None):
            raise InputError("policy and prompts go together; use --policy MODEL --prompts FILE, or --completions FILE")
        if self.policy is not None and self.out is None:
            raise InputError("out: not given; name the folder for the policy's completions with --out FOLDER")
        if self.overlap < 1:
            raise InputError(f"overlap={self.overlap} must be at least 1, the number of annotators per item")
        if not self.lease_minutes > 0:
            raise InputError(f"lease_minutes={self.lease_minutes} must be above 0")
        wrong = [host for host in self.hosts if not _HOST.fullmatch(host)]
        if wrong:
            raise InputError(
                f"hosts={wrong[0]!r} is not a host name; write it in lower case without https://, "
                "port or path, such as label.example.org (*.example.org for all subdomains)"
            )
        num = self.answering.num_completions
        if self.policy is not None and num is not None and num < NUM_COMPLETIONS[self.mode]:
            raise InputError(f"answering.num_completions={num} is too few for mode {self.mode}; omit it")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write labels as a data set for `reward-model`: preferences, thumbs or best of four.

    Attributes:
        labels: the folder that `label` wrote.
        database: SQLAlchemy URL of the labels, if `label` was given one.
        out: a new .jsonl file.
        mode: which labels to export, if there are items of several modes.
        annotators: names of annotators to export; empty for all.
        all_verdicts: instead of a data set, write one row per verdict, including ties and skips, with its item,
            annotator, time, seconds and the order shown; `label import` reads it back.
    """

    out: str
    labels: str | None = None
    database: str | None = None
    mode: Mode | None = None
    annotators: tuple[str, ...] = ()
    all_verdicts: bool = False


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Add labels of a data set (preferences, thumbs or best of four) or of `label export --all-verdicts`.

    Attributes:
        labels: the folder of the labels, created if missing.
        database: SQLAlchemy URL for the labels, instead of labels.sqlite in --labels.
        source: a file in the mode's format (preference, unpaired preference or best of four), or one written by
            `label export --all-verdicts`.
        tokenizer: folder or hub id of the tokenizer if the file contains token ids, as OpenAI's labels contain
            GPT-2's; None if it contains texts.
        mode: how the items were labelled; rows of --all-verdicts contain their mode.
        annotator: the annotator's name, instead of each row's `annotator`.
    """

    source: str
    annotator: str | None = None
    labels: str | None = None
    database: str | None = None
    tokenizer: str | None = None
    mode: Mode = "pairwise"


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Print labels, pace and agreement of annotators.

    Attributes:
        labels: the folder that `label` wrote.
        database: SQLAlchemy URL of the labels, where that was given to `label`.
    """

    labels: str | None = None
    database: str | None = None
