"""The whole chain of RLHF: fine-tune, then rounds of labels, reward model and PPO."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_lm import data, guarded, rewards, storage
from jaxrl_lm.core.checksums import checksum_value
from jaxrl_lm.data import Preference, Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.rewards.annotator import prefers_first
from jaxrl_lm.rewards.text_rewards import MODEL_PREFIX
from jaxrl_lm.training.answering import AnsweringConfig, answer_prompts
from jaxrl_lm.training.errors import Interrupted
from jaxrl_lm.training.observers import check_observers
from jaxrl_lm.training.offline.sft import SFTRunConfig
from jaxrl_lm.training.offline.train import train_offline
from jaxrl_lm.training.online.config import PPORunConfig
from jaxrl_lm.training.online.task import load_named_reward
from jaxrl_lm.training.online.train import train_online
from jaxrl_lm.training.reward_model.config import RewardModelRunConfig
from jaxrl_lm.training.reward_model.train import train_reward_model
from jaxrl_lm.training.rlhf.comparison import PolicyCompletions, compare_policies
from jaxrl_lm.training.rlhf.config import RLHFConfig
from jaxrl_lm.training.rlhf.report import write_chain_report
from jaxrl_lm.training.run import full_disk_in_words, run_config, train_stage
from jaxrl_lm.training.settings import default_values

_NUM_STRIPS = 8

# What may differ between two starts of a chain; a stage that has begun refuses other settings of its own.
_CHANGEABLE = frozenset(
    {"out", "sft", "reward_model", "ppo", "labels.port", "labels.file", "num_compared", "rounds", "stop_after"}
)

# Settings of a stage that may name a file of the chain.
_OWN_PATHS = ("out", "model", "preferences", "reward")


class Pair(NamedTuple):
    """Two completions of a prompt."""

    prompt: Prompt
    first: str
    second: str


Annotate = Callable[[list[Pair], Path, int], list[Preference]]
"""`annotate(pairs, folder, round) -> preferences`: labels pairs; may leave some out, and keep files in the folder."""


@dataclass(frozen=True, kw_only=True)
class ChainResult:
    """Result of a chain.

    Attributes:
        folder: of the chain.
        policies: base model, fine-tuned model and the policy of every round, with their completions of the prompts on
            which they are compared; scored by "proxy", the newest reward model or the ready reward, and by "gold"
            where there is one. Empty where `stop_after` ended the chain before its last policy.
    """

    folder: storage.RunFolder
    policies: list[PolicyCompletions]


def run_rlhf(config: RLHFConfig, annotate: Annotate | None) -> ChainResult:
    """Run every stage that has not ended yet, and compare the policies.

    Args:
        config: settings.
        annotate: says which completions are better; see `simulated_annotator`. None where `config.reward` is ready.

    Raises:
        InputError: an input is invalid, or the folder belongs to a chain of other settings.
        Interrupted: Ctrl-C or SIGTERM; the stage's state is saved, and the same command continues the chain.
        TrainingDivergedError: a loss is not finite.
        DiskFullError: a file could not be written for lack of space; the same command continues the chain.
    """
    folder = storage.RunFolder(Path(config.out))
    try:
        with full_disk_in_words(folder, lambda _: "run the same command to continue"):
            return _run_stages(config, annotate)
    except Interrupted as stop:
        raise Interrupted("stopped; progress is saved, run the same command to resume", stop.signal_number) from stop


def _run_stages(config: RLHFConfig, annotate: Annotate | None) -> ChainResult:
    prompts = data.read_prompts(config.prompts, column=config.prompt_column, chat=config.chat)
    fingerprints = {"prompts": checksum_value([(each.prompt, each.columns) for each in prompts])}
    fingerprints |= {name: rewards.reward_fingerprint(reward) for name, reward in _load_rewards(config).items()}
    for stage in ("sft", "reward_model", "ppo"):
        check_observers(getattr(config, stage), prefix=f"{stage}.")
    _check_first_labels(config, annotate)
    folder = _open(config, fingerprints)
    start = _fine_tune(config, folder)
    policies: dict[str, str | Path] = {"base": config.model}
    if config.sft_data is not None:
        policies["SFT"] = start
    if config.stop_after == "sft":
        return ChainResult(folder=folder, policies=[])
    reward, newest = config.reward, start
    preferences: list[Preference] = []
    for number in range(1, config.rounds + 1):
        ends = config.stop_after if number == config.rounds else "ppo"
        round_folder = _round_folder(folder.path, number)
        round_folder.mkdir(exist_ok=True)
        if config.reward is None:
            assert annotate is not None
            preferences += _label(config, newest, prompts, annotate, round_folder, number)
            if ends == "labels":
                return ChainResult(folder=folder, policies=[])
            reward = f"{MODEL_PREFIX}{_learn_reward(config, start, preferences, round_folder)}"
            if ends == "reward_model":
                return ChainResult(folder=folder, policies=[])
        assert reward is not None
        newest = _optimize(config, start, reward, round_folder)
        policies[f"PPO round {number}"] = newest
    assert reward is not None
    return _compare(config, folder, policies, start, prompts, reward)


def _open(config: RLHFConfig, fingerprints: dict[str, int]) -> storage.RunFolder:
    """Create the chain's folder, or open that of a chain with the same settings, prompts and rewards.

    Each stage checks its own settings once it has started (`train_stage`); until then they may change.
    """
    path = Path(config.out)
    if _labels_file(_round_folder(path, config.rounds + 1)).exists():
        raise InputError(f"rounds={config.rounds}: the chain has labels of more rounds; give as many, or another --out")
    folder = storage.RunFolder.open_or_create(path, asdict(config), ignore=_CHANGEABLE, defaults=default_values(config))
    _follow_move(path)
    storage.sweep_leftovers(folder)
    file = path / "inputs.json"
    remedy = "delete it if prompts and rewards are those that the chain was started with"
    began_with = guarded.read_object(file, remedy=remedy) if file.exists() else {}
    changed = [name for name, value in fingerprints.items() if began_with.get(name, value) != value]
    if changed:
        raise InputError(
            f"out={config.out!r}: {', '.join(changed)} changed since the chain was started; restore what it read, or "
            "give another --out"
        )
    storage.write_atomically(file, json.dumps(began_with | fingerprints))
    return folder


def _follow_move(chain: Path) -> None:
    """Correct the paths of the chain's own files in its stages' settings, in case the chain's folder was moved."""
    for path in (chain / "sft", *chain.glob("round-*/reward-model"), *chain.glob("round-*/ppo")):
        stage, place = storage.RunFolder(path), path.relative_to(chain).parts
        if not stage.config_file.exists():
            continue
        saved = stage.read_config()
        out = Path(str(saved.get("out")))
        if out != path and out.parts[-len(place) :] == place:
            before = out.parents[len(place) - 1]
            own = {name: str(saved[name]) for name in _OWN_PATHS if isinstance(saved.get(name), str)}
            moved = saved | {name: _moved(value, before, chain) for name, value in own.items()}
            storage.RunFolder.open(path, moved, ignore=frozenset(moved))


def _moved(value: str, before: Path, now: Path) -> str:
    """A path, or the reward of a model's path, in the folder `now` if it was in the folder `before`."""
    kind = MODEL_PREFIX if value.startswith(MODEL_PREFIX) else ""
    path = Path(value.removeprefix(kind))
    is_inside = path.is_relative_to(before) and (now / path.relative_to(before)).exists()
    return f"{kind}{now / path.relative_to(before)}" if is_inside else value


def _round_folder(chain: Path, number: int) -> Path:
    return chain / f"round-{number}"


def _labels_file(round_folder: Path) -> Path:
    return round_folder / "labels.jsonl"


def _load_rewards(config: RLHFConfig) -> dict[str, rewards.RewardFunction]:
    """Load every reward function, by its option, so that errors appear before the first stage."""
    ppo = config.ppo
    named = {"reward": config.reward, "labels.gold": config.labels.gold}
    named |= {f"ppo.watch={name}={spec!r}": spec for name, spec in ppo.watched_rewards().items()}
    return {option: load_named_reward(option, name) for option, name in named.items() if name is not None}


def _check_first_labels(config: RLHFConfig, annotate: Annotate | None) -> None:
    """Read the labels of a file, so that errors appear before fine-tuning."""
    round_folder = _round_folder(Path(config.out), 1)
    if annotate is not None and config.labels.annotator == "file" and not _labels_file(round_folder).exists():
        annotate([], round_folder, 1)


def simulated_annotator(gold: rewards.RewardFunction, *, noise: float, seed: int) -> Annotate:
    """An annotator that prefers the higher gold reward, with the noise of the Bradley-Terry model."""

    def annotate(pairs: list[Pair], folder: Path, number: int) -> list[Preference]:
        del folder
        prompts = [pair.prompt for pair in pairs]
        first, second = (
            np.asarray(rewards.score_completions(gold, prompts, [getattr(pair, side) for pair in pairs]))
            for side in ("first", "second")
        )
        chosen = prefers_first(first, second, noise=noise, seed=_seed(seed, number))
        return [preference_of(pair, is_first=bool(is_first)) for pair, is_first in zip(pairs, chosen, strict=True)]

    return annotate


def file_annotator(source: str, tokenizer: Any = None) -> Annotate:
    """An annotator that reads preferences from a file, or from a file per round if the name contains {round}.

    Args:
        source: as `data.read_preferences` takes it.
        tokenizer: of files that hold token ids.
    """

    def annotate(pairs: list[Pair], folder: Path, number: int) -> list[Preference]:
        del pairs, folder
        return data.read_preferences(source.replace("{round}", str(number)), tokenizer=tokenizer)

    return annotate


def preference_of(pair: Pair, *, is_first: bool) -> Preference:
    """The preference for one completion of a pair."""
    chosen, rejected = (pair.first, pair.second) if is_first else (pair.second, pair.first)
    return Preference(prompt=pair.prompt.prompt, chosen=chosen, rejected=rejected)


def _fine_tune(config: RLHFConfig, folder: storage.RunFolder) -> str | Path:
    if config.sft_data is None:
        return config.model
    given = {"model": config.model, "data": config.sft_data, "out": str(folder.path / "sft")}
    stage = run_config(SFTRunConfig, config.sft, seed=_stage_seed(config, config.sft.seed), **given)
    return train_stage(train_offline, stage).model_folder


def _label(
    config: RLHFConfig, policy: str | Path, prompts: list[Prompt], annotate: Annotate, round_folder: Path, number: int
) -> list[Preference]:
    """Labels of pairs of the policy's completions; labels of an earlier start are reused."""
    file = _labels_file(round_folder)
    if not file.exists():
        labels = annotate(_make_pairs(config, policy, prompts, round_folder, number), round_folder, number)
        if not labels:
            raise InputError(
                f"labels: round {number} has none (ties and skips do not count), so there is nothing to "
                f"learn; delete {str(round_folder)!r} and run the same command to ask again"
            )
        data.write_jsonl(file, labels)
    return data.read_preferences(file)


def _make_pairs(
    config: RLHFConfig, policy: str | Path, prompts: list[Prompt], round_folder: Path, number: int
) -> list[Pair]:
    """Sample two completions of each prompt; equal or empty ones are left out. Pairs of an earlier start are reused."""
    if config.labels.annotator == "file":
        return []
    file = round_folder / "pairs.jsonl"
    if file.exists():
        return _read_pairs(file, prompts)
    chosen = data.prompt_order(len(prompts), config.labels.num_pairs, 0, _seed(config.seed, number))
    asked = [prompts[index] for index in chosen]
    sampling = config.ppo.answers
    texts = answer_prompts(
        policy,
        [prompt for prompt in asked for _ in range(2)],
        AnsweringConfig(
            stop=sampling.stop,
            ignore_stops_before=sampling.ignore_stops_before,
            dtype=config.ppo.dtype,
            batch_size=64,
            seed=_seed(config.seed, number),
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            generation_config=False,  # people label what PPO samples
        ),
    )
    found = [
        (int(index), first, second)
        for index, first, second in zip(chosen, texts[::2], texts[1::2], strict=True)
        if first != second and first.strip() and second.strip()
    ]
    if not found:
        raise InputError(
            f"round {number}: all {len(asked)} pairs have equal or empty completions, nothing to label; the "
            "policy has collapsed: raise ppo.kl.coefficient or lower ppo.ppo.learning_rate with another --out"
        )
    lines = [
        json.dumps({"index": index, "prompt": prompts[index].text(), "completions": completions}) + "\n"
        for index, *completions in found
    ]
    storage.write_atomically(file, "".join(lines))
    return [Pair(prompts[index], first, second) for index, first, second in found]


def _read_pairs(file: Path, prompts: list[Prompt]) -> list[Pair]:
    """Pairs of an earlier start. A row names its prompt by its index, so that nothing of the prompt is lost in JSON.

    Raises:
        InputError: a row is not what `_make_pairs` writes.
    """
    pairs = []
    for line, row in enumerate(storage.read_jsonl(file), start=1):
        match row:
            case {"index": int(index), "completions": [str(first), str(second)]} if 0 <= index < len(prompts):
                pairs.append(Pair(prompts[index], first, second))
            case _:
                raise InputError(f"{file}: line {line} is not a pair of completions; delete the file to sample again")
    return pairs


def _learn_reward(config: RLHFConfig, start: str | Path, preferences: list[Preference], round_folder: Path) -> Path:
    """Train a reward model on all labels so far."""
    file = round_folder / "preferences.jsonl"
    if not file.exists():
        data.write_jsonl(file, preferences)
    given = {"preferences": str(file), "out": str(round_folder / "reward-model")}
    given |= {"model": config.reward_model.model or str(start)}
    given |= {"seed": _stage_seed(config, config.reward_model.seed)}
    stage = run_config(RewardModelRunConfig, config.reward_model, **given)
    return train_stage(train_reward_model, stage).model_folder


def _optimize(config: RLHFConfig, start: str | Path, reward: str, round_folder: Path) -> Path:
    gold = () if config.labels.gold is None else (f"gold={config.labels.gold}",)
    given = {
        "model": str(start),
        "prompts": config.prompts,
        "prompt_column": config.prompt_column,
        "chat": config.chat,
        "reward": reward,
        "watch": (*config.ppo.watch, *gold),
        "out": str(round_folder / "ppo"),
        "seed": _stage_seed(config, config.ppo.seed),
    }
    return train_stage(train_online, run_config(PPORunConfig, config.ppo, **given)).model_folder


def _compare(
    config: RLHFConfig,
    folder: storage.RunFolder,
    policies: dict[str, str | Path],
    start: str | Path,
    prompts: list[Prompt],
    reward: str,
) -> ChainResult:
    """Compare all policies on the same prompts by the last reward of PPO and, if there is one, the gold reward."""
    functions = {"proxy": rewards.load_reward(reward)}
    if config.labels.gold is not None:
        functions = {"gold": rewards.load_reward(config.labels.gold)} | functions
    order = data.prompt_order(len(prompts), min(config.num_compared, len(prompts)), 0, config.seed)
    found = compare_policies(
        policies,
        start,
        [prompts[index] for index in order],
        functions,
        config.ppo,
        proxy="proxy",
        num_strips=_NUM_STRIPS,
        seed=_seed(config.seed, 0),
    )
    write_chain_report(folder, found)
    return ChainResult(folder=folder, policies=found)


def _stage_seed(config: RLHFConfig, given: int | None) -> int:
    return config.seed if given is None else given


def _seed(seed: int, number: int) -> int:
    """The seed of a round; rounds and chains have different ones."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
