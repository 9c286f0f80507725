"""Commands that learn from given examples: `sft` and `dpo`."""

from jaxrl_lm.cli.language import print_result
from jaxrl_lm.training.dpo import train_dpo
from jaxrl_lm.training.sft import train_sft
from jaxrl_lm.training.supervised_config import DPOConfig, SFTConfig

_SFT_SHOWN = ("loss/total", "loss/perplexity", "evaluation/loss", "evaluation/perplexity", "time/tokens_per_second")
_DPO_SHOWN = (
    "loss/total",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margin",
    "rewards/accuracy",
    "evaluation/loss",
    "evaluation/accuracy",
    "time/tokens_per_second",
)


def run_sft(config: SFTConfig) -> None:
    """Fine-tune a language model on examples and say where everything lies."""
    print_result(train_sft(config), _SFT_SHOWN)


def run_dpo(config: DPOConfig) -> None:
    """Optimise a language model for preferences and say where everything lies."""
    print_result(train_dpo(config), _DPO_SHOWN)
