"""Settings of every run, in a module without heavy imports, for `--help`."""

from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from jaxrl_lm import checks
from jaxrl_lm.distributed.config import HostsConfig, MeshConfig
from jaxrl_lm.models.lora_config import LoraConfig

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]  # as models.stack.Remat, without its imports
Kernels = Literal["auto", "plain"]  # as models.attention.Kernels


_NOT_SAVED = ("hosts", "resume")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Settings of every run that are also options of each stage of `rlhf`, such as `--sft.save-every`.

    Attributes:
        save_every: updates between checkpoints; the last is always saved.
        keep_checkpoints: number of newest checkpoints to keep.
        wandb_project: also log to this Weights & Biases project.
        profile_updates: number of updates to profile, after the first one, into the run's folder `profile`, for
            TensorBoard or Perfetto; 0 profiles none.
    """

    save_every: int = 50
    keep_checkpoints: int = 2
    wandb_project: str | None = None
    profile_updates: int = 0

    def __post_init__(self) -> None:
        checks.at_least(self, 1, "save_every", "keep_checkpoints")
        checks.at_least(self, 0, "profile_updates")


def default_value(field: Field) -> Any:
    """The default of a dataclass field; `MISSING` if it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def default_values(config: Any) -> dict[str, Any]:
    """Default values of a dataclass by field, nested ones as dictionaries; fields without a default are left out."""
    values = {each.name: default_value(each) for each in fields(config)}
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in values.items()
        if value is not MISSING
    }


@dataclass(frozen=True, kw_only=True)
class RunConfig(StageConfig):
    """Settings of every run.

    Attributes:
        out: folder of the run; must not exist, unless resuming.
        seed: random seed.
        hosts: several processes that train together.
        resume: resume the run in `out`.
    """

    out: str
    seed: int = 0
    hosts: HostsConfig = field(default_factory=HostsConfig)
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.seed(self.seed)

    def saved(self) -> dict[str, Any]:
        """The content of config.yaml: everything but `resume` and `hosts`, which are not settings of the run."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SAVED}

    def defaults(self) -> dict[str, Any]:
        """Default values, in the form of `saved`; options that are newer than a run had their defaults in it."""
        return {name: value for name, value in default_values(self).items() if name not in _NOT_SAVED}

    def make_mesh(self) -> Any:
        """The mesh that the run uses, a `jax.sharding.Mesh`; None where the run arranges its devices itself."""
        return None

    def length_setting(self) -> str | None:
        """The setting to raise to make a finished run longer; None if a schedule depends on the run's length."""
        return None

    def free_settings(self) -> frozenset[str]:
        """Settings that may differ on resuming, because they change no result."""
        return frozenset({"out", "save_every", "keep_checkpoints", "wandb_project", "profile_updates"})


@dataclass(frozen=True, kw_only=True)
class ModelStageConfig(StageConfig):
    """Settings of every stage that trains a language model.

    Attributes:
        dtype: dtype of activations; parameters, optimizer and losses are float32.
        remat: activations that the backward pass recomputes: none of them, all but the products of weights (dots), or
            all (full: the least memory, about a third more compute).
        scan_layers: compile one program for all layers, which takes as long as for one; None does so except on a CPU,
            where separate ones run a tenth faster.
        attention: how attention of whole rows is computed: by a fused kernel where there is one (auto; TPUs, and NVIDIA
            GPUs in bfloat16), or without (plain), to see whether a difference comes from the kernel. Rows of fewer than
            128 tokens, and decoding, use none.
        mesh: arrangement of the devices.
        lora: low-rank adapters: with a rank above 0 only these and the heads are trained.
    """

    dtype: Dtype = "float32"
    remat: Remat = "none"
    scan_layers: bool | None = None
    attention: Kernels = "auto"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    @property
    def model_options(self) -> dict[str, Any]:
        """How models are loaded, as options of `language_model.load_model`."""
        return {name: getattr(self, name) for name in ("dtype", "remat", "scan_layers", "attention")}


@dataclass(frozen=True, kw_only=True)
class ModelRunConfig(ModelStageConfig, RunConfig):
    """Settings of every run that trains a language model.

    Attributes:
        model: initial model: a folder or a Hugging Face hub id.
    """

    model: str

    def make_mesh(self) -> Any:
        from jaxrl_lm.distributed.mesh import make_mesh  # here, because it imports JAX

        return make_mesh(self.mesh)

    def free_settings(self) -> frozenset[str]:
        return super().free_settings() | {"mesh"}
