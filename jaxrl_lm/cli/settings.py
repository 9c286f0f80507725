"""Options of the commands that make no run of their own: evaluate, report, generate, merge and launch."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxrl_lm import checks
from jaxrl_lm.errors import InputError
from jaxrl_lm.training.answering import AnsweringConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Play whole episodes with a checkpoint of a run in an environment.

    `eval` is the greedy policy, `eval_sampled` acts as in training (PPO samples, Q-learners explore with their current
    epsilon), `eval_train` is greedy on levels of the training.

    Attributes:
        run: folder of the run.
        env_options: KEY=VALUE each, in place of the run's own, such as generator=wilson.
        episodes: episodes per seed; in generated mazes, the number of held-out levels of each seed.
        seed: random seed of levels and episodes.
        checkpoint: newest, best (the highest `eval/return`, mean over seeds, of a run with --eval-every; after a seed
            has diverged, the highest since then), or a number from the run's folder `checkpoints`: chunks of updates.
    """

    run: str
    env_options: tuple[str, ...] = ()
    episodes: int = 1000
    seed: int = 0
    checkpoint: Literal["newest", "best"] | int = "newest"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw the plots and the report of a run again; the run may still be training, or have been stopped.

    Attributes:
        run: folder of the run.
    """

    run: str


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(AnsweringConfig):
    """Complete prompts with a language model.

    Attributes:
        model: a folder or a Hugging Face hub id.
        prompt: prompts, as text.
        prompts: a file of prompts, in any form that `ppo` reads.
        prompt_column: column of the file that holds the prompt.
        out: write completions as JSON lines to this file, which must not exist, instead of printing them; printed
            ones have their control characters spelled out.
    """

    model: str
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]")] = ()
    prompts: str | None = None
    prompt_column: str = "prompt"
    out: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt and self.prompts is None:
            raise InputError("prompt: none given; give --prompt TEXT or --prompts FILE")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merge an adapter in PEFT's format (LoRA) into its base, and save the whole model in float32.

    Attributes:
        adapter: folder or hub id of the adapter, such as the folder `adapter` of a run.
        out: folder of the merged model; must not exist.
        base: folder or hub id of the base; None for the one that the adapter names.
    """

    adapter: str
    out: str
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Start a training command in one process on each of several hosts of a Ray cluster, connected with each other.

    The words after `--` are the command, without jaxrl-lm: launch --ray --workers 2 -- grpo --model ... --out runs/x.
    Each worker runs it in the launcher's working directory, with its variables PYTHONPATH, JAX_*, XLA_*, LIBTPU_*,
    NCCL_*, HF_*, WANDB_* and JAXRL_LM_*. The package, the inputs and that folder must be on every host. Process 0
    writes `--out`, and each its part of the checkpoints there: it must be on storage that all hosts see, above all to
    resume. The output shown is that of process 0, the exit code that of the command. Ctrl-C or SIGTERM lets the
    processes save and stop; a second one ends them at once.

    Attributes:
        command: training command and its options, after `--`.
        ray: start the processes with Ray, which is the one way so far.
        workers: number of processes; Ray spreads them over hosts as far as it can.
        device: what the processes compute on.
        resources_per_worker: KEY=VALUE each that a worker reserves, such as CPU=8 GPU=4 or memory=64e9; by default one
            CPU, with gpu one GPU as well, and with tpu all chips of a host.
        topology: topology of the TPU slice, such as 4x4.
        accelerator_type: Ray's name of the TPU generation, such as TPU-V6E.
        address: HOST:PORT of a Ray cluster, auto for the one that this machine belongs to, or local to start Ray on
            this machine alone until the command ends; None is the environment variable RAY_ADDRESS, or else local.
    """

    command: Annotated[tuple[str, ...], tyro.conf.arg(metavar="-- COMMAND [OPTIONS]"), tyro.conf.Positional] = ()
    ray: bool = False
    workers: int
    device: Literal["cpu", "gpu", "tpu"] = "cpu"
    resources_per_worker: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE [KEY=VALUE ...]")] = ()
    topology: str | None = None
    accelerator_type: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if not self.ray:
            raise InputError("ray=False: nothing else can start the processes; give --ray")
        checks.at_least(self, 1, "workers")
        for key, device in (("GPU", "gpu"), ("TPU", "tpu")):
            if key in self.resources() and self.device != device:
                raise InputError(f"resources_per_worker has {key}, and device={self.device}; give --device {device}")
        slice_options = (self.topology, self.accelerator_type)
        if self.device != "tpu" and slice_options != (None, None):
            raise InputError(
                f"topology={self.topology} and accelerator_type={self.accelerator_type} are for TPUs, and "
                f"device={self.device}; give --device tpu"
            )
        if self.device == "tpu" and self.workers > 1 and None in slice_options:
            raise InputError(
                f"topology={self.topology}, accelerator_type={self.accelerator_type}: workers={self.workers} on TPUs "
                "need both, such as --topology 4x4 --accelerator-type TPU-V6E"
            )

    def resources(self) -> dict[str, int | float]:
        """What each worker reserves, by Ray's names; what is not given is left to Ray.

        Raises:
            InputError: one is not KEY=VALUE with a number above 0, or comes twice.
        """
        found: dict[str, int | float] = {}
        for each in self.resources_per_worker:
            key, _, text = each.partition("=")
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not key or not 0 < value < math.inf:
                raise InputError(
                    f"resources_per_worker={each!r} must be KEY=VALUE with a number above 0, such as CPU=8 or GPU=4"
                )
            if key in found:
                raise InputError(f"resources_per_worker={each!r}: {key} comes twice; give it once")
            found[key] = int(value) if value.is_integer() else value
        return found
