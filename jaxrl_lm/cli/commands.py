"""The table of all commands of `jaxrl-lm`. A command is imported only when it is run or its help is shown.

A new command is a line here.
"""

import pkgutil
from collections.abc import Callable
from contextlib import nullcontext
from difflib import get_close_matches
from typing import Any, NamedTuple

from jaxrl_lm.cli.extras import needing
from jaxrl_lm.errors import InputError


class Command(NamedTuple):
    """One command.

    Attributes:
        summary: what it does, for the list of commands.
        settings: "module:Class" of its options, a frozen dataclass.
        run: "module:function" that is called with them.
        extra: the extra of the package that it needs, if any.
    """

    summary: str
    settings: str
    run: str
    extra: str | None = None

    def load_settings(self) -> type:
        """Import the class of its options."""
        return pkgutil.resolve_name(self.settings)

    def load_run(self) -> Callable[[Any], None]:
        """Import the function that runs it.

        Raises:
            InputError: a package of its extra is not installed.
        """
        with nullcontext() if self.extra is None else needing(self.extra, "this command"):
            return pkgutil.resolve_name(self.run)


_ENVIRONMENTS = "jaxrl_lm.training.environments.algorithms"
_RUN_TRAIN = "jaxrl_lm.cli.environment:run_train"
_RUN_OFFLINE = "jaxrl_lm.cli.language:run_offline"
_RUN_ONLINE = "jaxrl_lm.cli.language:run_online"
_ONLINE = "jaxrl_lm.training.online.config"
_LABEL = "jaxrl_lm.cli.label"
_LABEL_SETTINGS = "jaxrl_lm.cli.label_settings"

GROUPS: dict[str, dict[str, Command]] = {
    "Training in environments": {
        "train q-learning": Command("Q-learning with a table", f"{_ENVIRONMENTS}:TrainQLearningConfig", _RUN_TRAIN),
        "train double-q": Command("double Q-learning", f"{_ENVIRONMENTS}:TrainDoubleQConfig", _RUN_TRAIN),
        "train sarsa": Command("SARSA", f"{_ENVIRONMENTS}:TrainSarsaConfig", _RUN_TRAIN),
        "train expected-sarsa": Command("expected SARSA", f"{_ENVIRONMENTS}:TrainExpectedSarsaConfig", _RUN_TRAIN),
        "train q-lambda": Command(
            "Q(lambda), with eligibility traces", f"{_ENVIRONMENTS}:TrainQLambdaConfig", _RUN_TRAIN
        ),
        "train dqn": Command("DQN and its improvements", f"{_ENVIRONMENTS}:TrainDQNConfig", _RUN_TRAIN),
        "train pqn": Command("PQN, without a replay memory", f"{_ENVIRONMENTS}:TrainPQNConfig", _RUN_TRAIN),
        "train ppo": Command("PPO", f"{_ENVIRONMENTS}:TrainPPOConfig", _RUN_TRAIN),
        "train text-ppo": Command(
            "PPO of a language model in a text world", f"{_ENVIRONMENTS}:TrainTextPPOConfig", _RUN_TRAIN
        ),
        "evaluate": Command(
            "play episodes with a trained agent",
            "jaxrl_lm.cli.settings:EvaluateConfig",
            "jaxrl_lm.cli.environment:run_evaluate",
        ),
        "report": Command(
            "draw the plots and the report of a run again",
            "jaxrl_lm.cli.settings:ReportConfig",
            "jaxrl_lm.cli.environment:run_report",
        ),
    },
    "Language models": {
        "sft": Command("supervised fine-tuning", "jaxrl_lm.training.offline.sft:SFTRunConfig", _RUN_OFFLINE),
        "dpo": Command("direct preference optimization", "jaxrl_lm.training.offline.dpo:DPORunConfig", _RUN_OFFLINE),
        "reward-model": Command(
            "train a reward model on human preferences",
            "jaxrl_lm.training.reward_model.config:RewardModelRunConfig",
            "jaxrl_lm.cli.reward:run_reward_model",
        ),
        "ppo": Command("PPO on a reward function or model", f"{_ONLINE}:PPORunConfig", _RUN_ONLINE),
        "rloo": Command("RLOO, without a value function", f"{_ONLINE}:RLOORunConfig", _RUN_ONLINE),
        "grpo": Command("GRPO, without a value function", f"{_ONLINE}:GRPORunConfig", _RUN_ONLINE),
        "rlhf": Command(
            "SFT, labels, reward model and PPO in one",
            "jaxrl_lm.training.rlhf.config:RLHFConfig",
            "jaxrl_lm.cli.rlhf:run_chain",
        ),
        "generate": Command(
            "complete prompts", "jaxrl_lm.cli.settings:GenerateConfig", "jaxrl_lm.cli.language:run_generate"
        ),
        "init-model": Command(
            "write a small random GPT-2 for text worlds",
            "jaxrl_lm.training.environments.small_model:SmallModelConfig",
            "jaxrl_lm.cli.environment:run_init_model",
        ),
        "merge": Command(
            "merge an adapter into its base", "jaxrl_lm.cli.settings:MergeConfig", "jaxrl_lm.cli.merge:run_merge"
        ),
    },
    "Human feedback": {
        "label serve": Command(
            "serve a web page on which people label completions",
            f"{_LABEL_SETTINGS}:ServeConfig",
            f"{_LABEL}:run_serve",
            "label",
        ),
        "label export": Command(
            "write the labels as a data set", f"{_LABEL_SETTINGS}:ExportConfig", f"{_LABEL}:run_export", "label"
        ),
        "label import": Command(
            "add the labels of a data set", f"{_LABEL_SETTINGS}:ImportConfig", f"{_LABEL}:run_import", "label"
        ),
        "label stats": Command(
            "who labelled how much, and how far they agree",
            f"{_LABEL_SETTINGS}:StatsConfig",
            f"{_LABEL}:run_stats",
            "label",
        ),
    },
    "Other": {
        "demo": Command(
            "RLHF on a small model, in two minutes", "jaxrl_lm.cli.demo:DemoConfig", "jaxrl_lm.cli.demo:run_demo"
        ),
        "launch": Command(
            "train on several hosts of a Ray cluster",
            "jaxrl_lm.cli.settings:LaunchConfig",
            "jaxrl_lm.cli.launch:run_launch",
        ),
        "plan": Command(
            "tell whether a run fits on a TPU slice, without a TPU",
            "jaxrl_lm.training.planning.config:PlanConfig",
            "jaxrl_lm.cli.plan:run_plan",
        ),
        "bench": Command(
            "measure speed, and compare it with what the devices can do",
            "jaxrl_lm.benchmarking.config:BenchConfig",
            "jaxrl_lm.cli.bench:run_bench",
        ),
        "doctor": Command(
            "show devices and versions", "jaxrl_lm.cli.doctor:DoctorConfig", "jaxrl_lm.cli.doctor:run_doctor"
        ),
    },
}

COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}

DEFAULTS = {"label": "label serve"}
"""The command that is run if the first word of a command of two words is given alone."""


def find_command(args: list[str]) -> tuple[str, list[str]]:
    """Split a command line into the name of the command and its options.

    Raises:
        InputError: there is no such command.
    """
    first, second = [*args, "", ""][:2]
    if f"{first} {second}" in COMMANDS:
        return f"{first} {second}", args[2:]
    if first in COMMANDS:
        return first, args[1:]
    if first in DEFAULTS and (not second or second.startswith("-")):
        return DEFAULTS[first], args[1:]
    known = [name.removeprefix(f"{first} ") for name in list_commands(first)]
    if known:
        raise InputError(f"jaxrl-lm {first}: {_no_such(second, known)}; see jaxrl-lm {first} --help")
    words = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    raise InputError(f"{_no_such(first, words)}; see jaxrl-lm --help")


def list_commands(first: str) -> list[str]:
    """The commands of two words that begin with this word."""
    return [name for name in COMMANDS if name.startswith(f"{first} ")]


def _no_such(word: str, known: list[str]) -> str:
    """The error message for a word that is not a command."""
    problem = f"there is no command {word!r}" if word else "no command is given"
    matches = get_close_matches(word, known)
    if matches:
        problem += f"; did you mean {' or '.join(matches)}?"
    return f"{problem} Commands: {', '.join(known)}" if matches else f"{problem}; commands: {', '.join(known)}"


def overview(first: str | None = None) -> str:
    """A table of the commands with their summaries.

    Args:
        first: list only commands of two words that begin with this word.
    """
    names = list(COMMANDS) if first is None else list_commands(first)
    width = max(map(len, names))
    lines = [f"usage: jaxrl-lm {f'{first} ' if first else ''}COMMAND [OPTIONS]", ""]
    if first is None:
        lines = [*lines, "PPO and Q-learning in JAX, for environments and for language models.", ""]
    for title, group in GROUPS.items():
        listed = [f"  {name:<{width}}  {command.summary}" for name, command in group.items() if name in names]
        if listed:
            lines += [f"{title}:", *listed, ""]
    if first in (None, *DEFAULTS):
        lines += [f"`jaxrl-lm {word}` alone is `jaxrl-lm {name}`." for word, name in DEFAULTS.items()]
    lines += [
        f"`jaxrl-lm {f'{first} ' if first else ''}COMMAND --help` lists the options of a command.",
        "Each can also be given in a file, with the same names: `--config FILE.yaml`.",
    ]
    return "\n".join(lines) + "\n"
