"""The command that merges an adapter into its base."""

from pathlib import Path

from jaxrl_lm import data
from jaxrl_lm.cli.console import print_text
from jaxrl_lm.cli.settings import MergeConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained, save_pretrained
from jaxrl_lm.models.adapters import read_adapter
from jaxrl_lm.models.pretrained import REWARD_SCALE_FILE, resolve_folder, tokenizer_folder
from jaxrl_lm.models.reward_heads import read_scale, write_scale


def run_merge(config: MergeConfig) -> None:
    """Merge, and say where the model is.

    Raises:
        InputError: the adapter or its base is invalid, they do not fit, or the folder exists.
    """
    out = Path(config.out)
    if out.exists():
        raise InputError(f"out={config.out!r} exists; choose another folder")
    folder = resolve_folder(config.adapter)
    is_reward = read_adapter(folder).is_classifier
    if is_reward:
        model, params = from_pretrained(folder, "reward", base=config.base)
    else:
        model, params = from_pretrained(folder, base=config.base)
    source = tokenizer_folder(folder, config.base)
    tokenizer = data.load_tokenizer(source, vocab_size=model.config.vocab_size, is_padding_read=is_reward)
    save_pretrained(out, model, params)
    data.save_tokenizer(tokenizer, out)
    if (folder / REWARD_SCALE_FILE).is_file():
        write_scale(out, read_scale(folder))
    print_text(f"model:  {out}", soft_wrap=True)
