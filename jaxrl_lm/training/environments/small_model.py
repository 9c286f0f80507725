"""Small models for text worlds: a GPT-2 at random with a tokenizer of the world's own words, as an ordinary folder."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.environments.config import read_env_options

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class SmallModelConfig:
    """Write a small GPT-2 for text worlds: random weights, and a tokenizer whose tokens are the worlds' words.

    Its weights are random, so it writes no moves; train it on some with `jaxrl-lm sft` before reinforcement learning.

    Attributes:
        out: folder to write; must not exist.
        env: ids of text worlds whose texts the tokenizer knows.
        env_options: options of the worlds as KEY=VALUE; those that one does not have are not given to it.
        num_layers: blocks.
        model_size: D.
        num_heads: N; divides D.
        context: longest sequence, in tokens.
        seed: of the weights.
    """

    out: str
    env: tuple[str, ...] = ("TextMaze-v0",)
    env_options: tuple[str, ...] = ()
    num_layers: int = 2
    model_size: int = 64
    num_heads: int = 4
    context: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "num_layers", "model_size", "num_heads", "context")
        if self.model_size % self.num_heads:
            raise InputError(f"num_heads={self.num_heads} must divide model_size={self.model_size}")
        if not self.env:
            raise InputError("env: name at least one text world")
        read_env_options(self.env_options)


def write_small_model(config: SmallModelConfig) -> Path:
    """Write the folder.

    Raises:
        InputError: it exists, or an environment is no text world.
    """
    out = Path(config.out)
    if out.exists():
        raise InputError(f"out={config.out!r} exists; choose another folder")
    tokenizer = _make_tokenizer(list(itertools.chain.from_iterable(_texts(name, config) for name in config.env)))
    end = tokenizer.eos_token_id
    content = {
        "model_type": "gpt2",
        "vocab_size": len(tokenizer),
        "n_positions": config.context,
        "n_embd": config.model_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    # Imported here, since help texts need only the settings.
    import jax
    from transformers import GPT2Config

    from jaxrl_lm import models
    from jaxrl_lm.models.families import family_of

    described = GPT2Config(**content).to_dict()
    model = models.CausalLM(family_of("gpt2").config_from_hf(described))
    models.save_pretrained(out, model, models.init_params(model, jax.random.key(config.seed)))
    tokenizer.save_pretrained(out)
    return out


def _texts(name: str, config: SmallModelConfig) -> list[str]:
    """All pieces of a world's observations, and its answers."""
    from jaxrl_lm.envs.registry import make, option_names
    from jaxrl_lm.envs.text.answers import STOP

    options = read_env_options(config.env_options)
    env, _ = make(name, **{key: value for key, value in options.items() if key in option_names(name)})
    if not hasattr(env, "story"):
        raise InputError(f"env={name!r} is no text world; choose one such as TextMaze-v0")
    pieces = [piece for place in env.story.places for piece in place]
    answers = [f" {env.answers.separator} ".join(pair) for pair in itertools.product(env.answers.moves, repeat=2)]
    return [*pieces, *(text + STOP.decode() for text in (*env.answers.moves, *answers))]


def _make_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE in which the words of these texts are tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
