"""`jaxrl-lm init-model`: a small model whose tokenizer knows the words of text worlds."""

from pathlib import Path

import pytest

from jaxrl_lm.cli.main import run
from jaxrl_lm.data import load_tokenizer
from jaxrl_lm.envs import make
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.training.environments.small_model import SmallModelConfig, write_small_model

SMALL = ["--num-layers=1", "--model-size=16", "--num-heads=2", "--context=64"]


def test_the_words_of_the_worlds_are_tokens(tmp_path: Path) -> None:
    out = tmp_path / "model"
    worlds = ["--env", "TextMaze-v0", "FrozenLake-text"]
    assert (
        run(["init-model", f"--out={out}", *worlds, "--env-options", "told=coordinates", "num_levels=8", *SMALL]) == 0
    )
    tokenizer = load_tokenizer(out, vocab_size=from_pretrained(out)[0].config.vocab_size)
    maze, _ = make("TextMaze-v0", tokenizer=tokenizer)
    assert [maze.vocabulary.texts[token] for token in maze.answer((1,))] == [b"move", b" down", b"\n"]
    lake, _ = make("FrozenLake-text", tokenizer=tokenizer, told="coordinates", num_levels=8)
    assert lake.vocabulary.decode(lake.answer((0, 2))) == b"Left || Right\n"
    assert len(lake.answer((0, 2))) <= 5


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        folder = write_small_model(
            SmallModelConfig(
                out=str(tmp_path / str(number)), num_layers=1, model_size=8, num_heads=1, context=8, seed=seed
            )
        )
        texts.append((folder / "model.safetensors").read_bytes())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 must divide model_size=64"),
        ({"env": ()}, "env: name at least one text world"),
        ({"env": ("Maze-v0",), "env_options": ("size=5", "num_levels=2")}, "env='Maze-v0' is no text world"),
        ({"out": "."}, "out='.' exists; choose another folder"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_small_model(SmallModelConfig(**{"out": str(tmp_path / "model"), **settings}))
