"""Commands that learn from given examples: `sft`."""

from jaxrl_lm.cli.language import print_result
from jaxrl_lm.training.sft import train_sft
from jaxrl_lm.training.supervised_config import SFTConfig

_SFT_SHOWN = ("loss/total", "loss/perplexity", "evaluation/loss", "evaluation/perplexity", "time/tokens_per_second")


def run_sft(config: SFTConfig) -> None:
    """Fine-tune a language model on examples and say where everything lies."""
    print_result(train_sft(config), _SFT_SHOWN)
