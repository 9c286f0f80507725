"""Direct preference optimization of a language model: its settings, and what it reads."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxrl_lm import data
from jaxrl_lm.algorithms.dpo import DPOLossConfig, make_dpo
from jaxrl_lm.data import Preference
from jaxrl_lm.training.language_model import LoadedModel
from jaxrl_lm.training.offline.preferences import PreferenceRunConfig
from jaxrl_lm.training.offline.task import ExampleRows
from jaxrl_lm.training.reward_model.labels import labels_tokenizer
from jaxrl_lm.types import SupervisedLearner


@dataclass(frozen=True, kw_only=True)
class DPORunConfig(PreferenceRunConfig):
    """Direct preference optimization of a language model on preference pairs; the initial model is the reference.

    Attributes:
        preferences: rows with `prompt`, `chosen` and `rejected`, or another form of pairs: .jsonl, .json, .csv, .tsv,
            .parquet, each also .gz, or hub:NAME[[:CONFIG]:SPLIT].
        labels_tokenizer: folder or hub id of the tokenizer of labels given as token ids, such as OpenAI's; None uses
            that of `model`, which must then have all ids but one (padding).
        batch_size: pairs per batch.
        dpo: DPO loss.
    """

    TITLE: ClassVar[str] = "Direct preference optimization"
    EXAMPLES: ClassVar[str] = "preferences"
    SHOWN: ClassVar[tuple[str, ...]] = (
        "loss/total",
        "rewards/margin",
        "rewards/accuracy",
        "rewards/chosen",
        "rewards/rejected",
        "evaluation/loss",
        "evaluation/accuracy",
        "time/tokens_per_second",
    )

    preferences: str
    labels_tokenizer: str | None = None
    dpo: DPOLossConfig = field(default_factory=DPOLossConfig)

    def read(self, source: str) -> list[Preference]:
        return data.read_preferences(source, tokenizer=labels_tokenizer(self.model, self.labels_tokenizer))

    def make_rows(self, examples: list[Preference], loaded: LoadedModel, option: str) -> ExampleRows:
        pairs = [[(each.prompt, each.chosen), (each.prompt, each.rejected)] for each in examples]
        sequences, _ = self.encode(pairs, loaded, option)
        return ExampleRows(arrays=self.with_reference(sequences, loaded), sequences=sequences)

    def make_learner(self, model: Any, *, num_updates: int) -> SupervisedLearner:
        return make_dpo(self.optimizer, self.dpo, model, num_updates=num_updates)
