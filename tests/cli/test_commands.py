"""Commands: options, configuration files, exit codes, what they print."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from jaxrl_lm import data
from jaxrl_lm.cli import rlhf
from jaxrl_lm.cli.commands import COMMANDS, DEFAULTS, overview
from jaxrl_lm.cli.doctor import advice, usage
from jaxrl_lm.cli.label_settings import ServeConfig
from jaxrl_lm.cli.main import _fail, parse, run
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import from_pretrained
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.rlhf.config import RLHFConfig
from tests.byte_model import write_byte_model

BASE = ["ppo", "--model", "m", "--prompts", "p", "--reward", "vowels", "--out", "o"]

pytestmark = pytest.mark.usefixtures("pictures_drawn_once")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    folder = tmp_path_factory.mktemp("models") / "byte-gpt2"
    write_byte_model(folder, num_layers=1, model_size=16, num_heads=2, context=32)
    return folder


def test_options_fill_nested_settings() -> None:
    config = parse([*BASE, "--ppo.learning-rate", "0.001", "--answers.stop", ".", "!", "--kl.target", "None"])
    assert isinstance(config, PPORunConfig)
    assert config.ppo.learning_rate == 0.001
    assert config.answers.stop == (".", "!")
    assert config.kl.target is None


def test_config_file_has_the_same_names_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    content = {
        "model": "m",
        "prompts": "p",
        "reward": "vowels",
        "out": "from-file",
        "remat": "full",
        "answers": {"stop": [".", "!"], "max_new_tokens": 7},
        "kl": {"target": None},
        "ppo": {"num_minibatches": 4},
    }
    file.write_text(yaml.safe_dump(content))
    config = parse(["ppo", "--config", str(file), "--out", "from-line", "--remat", "none"])
    assert config.out == "from-line"
    assert config.remat == "none"
    assert config.answers.stop == (".", "!")
    assert config.answers.max_new_tokens == 7
    assert config.kl.target is None
    assert config.ppo.num_minibatches == 4


def test_the_config_of_a_run_is_a_config_file(tmp_path: Path, model: Path) -> None:
    (tmp_path / "p.txt").write_text("ab\n")
    options = [
        "--batch-size=2",
        "--num-updates=1",
        "--answers.max-new-tokens=3",
        "--num-samples=1",
        "--watch=a=vowels",
    ]
    first = [f"--model={model}", f"--prompts={tmp_path / 'p.txt'}", "--reward=vowels", f"--out={tmp_path / 'run'}"]
    assert run(["ppo", *first, *options]) == 0
    assert parse(["ppo", f"--config={tmp_path / 'run' / 'config.yaml'}"]) == parse(["ppo", *first, *options])


@pytest.mark.parametrize("content", [None, "- a list", "a: [unclosed"])
def test_unreadable_config_file(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=r"config\.yaml"):
        parse(["ppo", "--config", str(file)])


def test_unknown_name_in_a_config_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("learning_rate: 1\n")
    assert run([*BASE, "--config", str(tmp_path / "c.yaml")]) == 2
    assert "learning-rate" in capfd.readouterr().err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_option_is_documented(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert capfd.readouterr().out
    for kind in _dataclasses(COMMANDS[command].load_settings()):
        documented = "".join(base.__doc__ or "" for base in kind.__mro__)
        missing = [field.name for field in fields(kind) if f"  {field.name}: " not in documented]  # pyright: ignore
        assert not missing, f"{kind.__name__}: {missing}"


def test_help_lists_every_command_with_its_summary(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == run(["--help"]) == run(["-h"]) == 0
    out = capfd.readouterr().out
    assert out == 3 * overview()
    assert all(re.search(rf"^  {name} +{re.escape(command.summary)}$", out, re.M) for name, command in COMMANDS.items())


@pytest.mark.parametrize("first", ["train", "label"])
def test_help_of_a_first_word_lists_its_commands(first: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([first, "--help"]) == 0
    listed = re.findall(r"^  (\S+ \S+)  ", capfd.readouterr().out, re.M)
    assert listed == [name for name in COMMANDS if name.startswith(f"{first} ")]


def test_label_alone_serves() -> None:
    assert DEFAULTS == {"label": "label serve"}
    assert parse(["label", "--out=o"]) == parse(["label", "serve", "--out=o"]) == ServeConfig(out="o")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian", "ppo"], ["'trian'", "did you mean train?", "jaxrl-lm --help"]),
        (["train", "ppoo"], ["'ppoo'", "did you mean ppo?", "jaxrl-lm train --help"]),
        (["train"], ["no command is given", "q-learning, double-q", "jaxrl-lm train --help"]),
        (["train", "--out=o"], ["'--out=o'", "q-learning, double-q", "jaxrl-lm train --help"]),
        (["label", "exprot"], ["did you mean export", "jaxrl-lm label --help"]),
        (["--out=o"], ["'--out=o'", "jaxrl-lm --help"]),
        (["train", "ppo", "--num-env=3"], ["--num-env=3", "jaxrl-lm train ppo --help"]),
        (["train", "ppo", "--out=o", "--num-envs=x"], ["--num-envs", "jaxrl-lm train ppo --help"]),
        (["label", "--out=o", "--prot=3"], ["--prot=3", "jaxrl-lm label serve --help"]),
        (["train", "ppo", "--out=o", "--discount=2"], ["discount=2", "jaxrl-lm train ppo --help"]),
    ],
)
def test_a_mistake_says_where_the_help_is(args: list[str], words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    message = " ".join(shown.err.replace("│", " ").split())
    assert all(word in message for word in words), message


def test_help_has_required_options_first_and_those_of_every_run_last(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["dpo", "--help"]) == 0
    shown = re.findall(r"^│ --([\w-]+)", capfd.readouterr().out, re.M)
    assert set(shown[:3]) == {"out", "model", "preferences"}
    order = [shown.index(name) for name in ("num-epochs", "max-tokens", "save-every", "wandb-project", "seed")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", ["ppo", "sarsa"])
def test_the_algorithm_of_a_train_command_is_not_an_option_and_other_commands_refuse_its_config(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", name, "--help"]) == 0
    shown = capfd.readouterr().out
    assert "--num-envs" in shown
    assert not re.search("--(algorithm|kind)", shown)
    file = tmp_path / "config.yaml"
    settings = parse(["train", name, "--out=o", "--discount=0.5"])
    file.write_text(yaml.safe_dump(json.loads(json.dumps(settings.saved()))))
    assert name in settings.saved().values()
    assert parse(["train", name, f"--config={file}"]).discount == 0.5
    assert run(["train", "q-learning", f"--config={file}"]) == 2
    assert name in capfd.readouterr().err


def test_help_speaks_of_chunks_and_of_the_best_checkpoint_only_in_environments(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(["train", "sarsa", "--help"]) == 0
    shown = " ".join(capfd.readouterr().out.replace("│", " ").split())
    for words in (
        "chunks of updates between checkpoints",
        "the best one is kept as well",
        "chunks of updates to profile",
    ):
        assert words in shown
    assert run(["sft", "--help"]) == 0
    shown = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "number of newest checkpoints to keep. (default: 2)" in shown
    assert "chunk" not in shown


def _dataclasses(kind: type) -> list[type]:
    """A configuration's class, and those of the parts that it holds by default, at any depth."""
    factories = [field.default_factory for field in fields(kind)]  # pyright: ignore
    parts = [type(factory()) for factory in factories if factory is not MISSING]  # pyright: ignore
    return [kind, *(inner for part in parts if is_dataclass(part) for inner in _dataclasses(part))]


def test_generate_prints_an_answer_to_each_prompt(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", f"--model={model}", "--prompt", "ab", "cde", "--max-new-tokens=4"]) == 0
    out = capfd.readouterr().out
    assert "> ab\n" in out
    assert "> cde\n" in out


def test_generate_and_errors_send_the_terminal_no_commands(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", f"--model={model}", "--prompt", "a\x1b[2J :smile:", "--max-new-tokens=2"]) == 0
    out = capfd.readouterr().out
    assert "> a[U+001B][2J :smile:\n" in out
    assert "\x1b" not in out
    assert _fail(InputError("reward raised \x1b[2J"), 2) == 2
    assert capfd.readouterr().err == "jaxrl-lm: reward raised [U+001B][2J\n"


def test_generate_answers_do_not_depend_on_the_batch_size(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("ab\ncde\nf\n")
    answers = []
    for batch_size in (1, 3):
        out = tmp_path / f"{batch_size}.jsonl"
        options = [f"--prompts={tmp_path / 'p.txt'}", f"--out={out}", f"--batch-size={batch_size}"]
        assert run(["generate", f"--model={model}", *options, "--max-new-tokens=6"]) == 0
        answers.append([json.loads(line)["completion"] for line in out.read_text().splitlines()])
    assert answers[0] == answers[1]


def test_generate_refuses_an_out_file_in_no_folder(model: Path, tmp_path: Path) -> None:
    assert run(["generate", f"--model={model}", "--prompt=ab", f"--out={tmp_path / 'none' / 'a.jsonl'}"]) == 2


def test_generate_stops_at_a_given_token(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt=ab", "--max-new-tokens=20", "--stop", *"abcdefghijklmnopqrstuvwxyz"]
    assert run(["generate", f"--model={model}", *options]) == 0
    answer = capfd.readouterr().out.split("\n", 1)[1]
    assert all(not letter.islower() or not letter.isascii() for letter in answer.strip()[:-1])


def test_generate_without_prompts_is_refused(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", f"--model={model}"]) == 2
    assert "--prompts FILE" in capfd.readouterr().err


def test_doctor_names_devices_and_versions(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--size", "64"]) == 0
    out = capfd.readouterr().out
    assert "jax" in out
    assert "GFLOP/s" in out


def test_doctor_says_which_commands_use_how_many_devices() -> None:
    assert usage(1, "cpu") == "All commands run on the one cpu device."
    assert "1 of the 8 tpu devices" in usage(8, "tpu")
    assert "--num-devices (0 for all)" in usage(8, "tpu")


def test_doctor_advises_the_dtype_that_was_faster() -> None:
    assert "--dtype bfloat16" in advice({"float32": 1.0, "bfloat16": 2.0})
    assert "keep --dtype float32" in advice({"float32": 2.0, "bfloat16": 1.0})


def test_demo_chains_all_stages_on_the_model_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chains: list[RLHFConfig] = []
    monkeypatch.setattr(rlhf, "run_chain", chains.append)
    assert run(["demo", f"--out={tmp_path / 'demo'}", "--seed=3"]) == 0
    (chain,) = chains
    assert chain.seed == 3
    assert len(data.read_prompts(chain.prompts)) == chain.num_compared
    assert chain.sft_data is not None
    assert data.read_prompt_completions(chain.sft_data)
    from_pretrained(chain.model)
    (weights,) = Path(chain.model).glob("*.msgpack")
    assert weights.stat().st_size < 8e6


def test_demo_refuses_a_folder_of_something_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    assert run(["demo", f"--out={tmp_path}"]) == 2
    assert "--out" in capfd.readouterr().err


def test_ctrl_c_saves_and_exits_130(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("ab\n")
    command = [sys.executable, "-m", "jaxrl_lm.cli.main", "ppo", f"--model={model}", "--reward=vowels"]
    command += [f"--prompts={tmp_path / 'p.txt'}", f"--out={tmp_path / 'run'}", "--num-updates=100000"]
    command += ["--batch-size=2", "--answers.max-new-tokens=3", "--num-samples=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in message
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) == metrics.read_text().count("\n")
