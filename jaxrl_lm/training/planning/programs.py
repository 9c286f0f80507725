"""The programs of a run as shapes on a described mesh: a learner's update, generation, and a reward model's scores.

They are the trainers' own. Nothing is allocated: parameters are shapes that know how they are split.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrl_lm import models
from jaxrl_lm.algorithms import PreferenceBatch, ReferencedRows
from jaxrl_lm.data import PackedRows
from jaxrl_lm.distributed.sharding import (
    batch_sharding,
    fitting,
    num_batch_parts,
    shardings_of,
    spec_of,
    state_shardings,
)
from jaxrl_lm.models.attention import CACHE_AXES
from jaxrl_lm.rewards.scoring import apply_model
from jaxrl_lm.rollouts.answers import AnswerConfig
from jaxrl_lm.rollouts.generation import Generation, generation_program
from jaxrl_lm.rollouts.sampling import SamplingConfig
from jaxrl_lm.training.planning.config import ONLINE, PlanConfig
from jaxrl_lm.types import AnswerEvaluation, PyTree


class Program(NamedTuple):
    """A jitted function with the shapes that it is called with.

    Attributes:
        function: as `jax.jit` returns it.
        args: its arguments.
        while_trips: trips of its while loops.
        uses: names of the parts of memory among its arguments.
        read: shapes that every trip reads from memory; all of them at least.
    """

    function: Any
    args: tuple[Any, ...]
    while_trips: int
    uses: frozenset[str]
    read: PyTree


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What is compiled.

    Attributes:
        programs: by name.
        parts: what stays in memory during the whole run, by name: trees of shapes.
        mesh: of the described devices.
    """

    programs: dict[str, Program]
    parts: dict[str, PyTree]
    mesh: Mesh


def plan_run(config: PlanConfig, folder: Path, mesh: Mesh) -> PlannedRun:
    """The programs of a run.

    Args:
        config: settings of the plan.
        folder: with the model's config.json.
        mesh: of the devices of a slice, in use.
    """
    shapes = _Shapes(config, folder, mesh)
    return shapes.online() if config.algorithm in ONLINE else shapes.supervised()


class _Shapes:
    """Makes the shapes of one plan."""

    def __init__(self, config: PlanConfig, folder: Path, mesh: Mesh) -> None:
        self.config, self.folder, self.mesh = config, folder, mesh

    def model(self, head: Any = None) -> tuple[Any, PyTree]:
        """A model of the plan's size, and its parameters."""
        how: dict[str, Any] = {"dtype": jnp.dtype(self.config.dtype), "remat": self.config.remat}
        model: Any = models.model_from_config(self.folder, head, **how)
        if model.family.is_causal and model.config.is_uniform:
            model = model.clone(is_scanned=True)
        return model, self.split(models.param_shapes(model), shardings_of(models.logical_axes(model), self.mesh))

    def split(self, shapes: PyTree, shardings: PyTree) -> PyTree:
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
        )

    def batch(self, *shape: int, dtype: Any = jnp.int32, num_leading: int = 0) -> jax.ShapeDtypeStruct:
        """A batch `[B, ...]`, split if the mesh divides it."""
        is_split = len(shape) > num_leading and shape[num_leading] % num_batch_parts(self.mesh) == 0
        sharding = batch_sharding(self.mesh, num_leading) if is_split else self.everywhere
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    @property
    def everywhere(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def key(self) -> jax.ShapeDtypeStruct:
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.ShapeDtypeStruct((), key.dtype, sharding=self.everywhere)

    def update(self, learner: Any, params: PyTree, init_args: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """The state, and the update as the trainers jit it."""
        state = jax.eval_shape(learner.init, params, *init_args)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
        state = self.split(state, state_shardings(state, params, shardings, self.mesh))
        out = (jax.tree.map(lambda leaf: leaf.sharding, state), self.everywhere)
        return state, Program(
            jax.jit(learner.update, donate_argnums=0, out_shardings=out), (state, *args), 1, frozenset(), state
        )

    def online(self) -> PlannedRun:
        """PPO, RLOO or GRPO: generation, scoring by a reward model if there is one, and the update."""
        config = self.config
        has_critic = config.algorithm == "ppo" and config.critic == "model"
        model, policy = self.model("value" if config.algorithm == "ppo" and not has_critic else None)
        value_model, critic = self.model("reward") if has_critic else (None, None)
        params = {"policy": policy, "value": critic} if has_critic else policy
        learner = self.settings().make_learner(model, value_model)
        reference = {name: part for name, part in policy.items() if name != "value_head"}
        scores = self.batch(config.batch_size, dtype=jnp.float32)
        generation, evaluation = self.generation(), self.evaluation(has_values=config.algorithm == "ppo")
        state, update = self.update(learner, params, (self.key,), (generation, evaluation, scores, self.key))
        sampling = SamplingConfig(max_new_tokens=config.new_tokens, stop_tokens=(0,), pad_token=0)
        per_prompt = learner.answers_per_prompt
        prompts = (self.batch(config.batch_size // per_prompt, config.prompt_tokens),) * 2
        parts = {"weights": policy, "critic": critic, "optimizer": _rest(state, params), "reference": reference}
        programs = {
            "generate": Program(
                generation_program,
                (model, policy, *prompts, self.key, sampling, False, per_prompt),
                config.new_tokens - 1,
                frozenset({"weights"}),
                self.read_by_decoding(model, policy),
            ),
            "evaluate": Program(
                jax.jit(learner.evaluate),
                (state, reference, generation),
                1,
                frozenset({"weights", "critic", "reference"}),
                (params, reference),
            ),
            "update": update._replace(uses=frozenset({"weights", "critic", "optimizer"})),
        }
        if config.reward_model:
            reward, parts["reward model"] = self.model("reward")
            ids = self.batch(config.batch_size, config.prompt_tokens + config.new_tokens)
            inputs = {"input_ids": ids, "attention_mask": ids}
            programs["score"] = Program(
                jax.jit(apply_model, static_argnums=0),
                (reward, parts["reward model"], inputs),
                1,
                frozenset({"reward model"}),
                parts["reward model"],
            )
        parts = {name: part for name, part in parts.items() if part is not None}
        return PlannedRun(programs=programs, parts=parts, mesh=self.mesh)

    def read_by_decoding(self, model: Any, params: PyTree) -> PyTree:
        """What a decoding step reads: the parameters in the dtype of activations, and all slots of the cache."""
        config = self.config
        size = config.prompt_tokens + config.new_tokens
        cache = jax.eval_shape(lambda: model.config.init_cache(config.batch_size, size, model.dtype, is_scanned=True))

        def split(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = fitting(leaf.shape, spec_of(("layers", *CACHE_AXES)), self.mesh)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, spec))

        weights = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, model.dtype, sharding=leaf.sharding), params
        )
        return weights, split(cache.keys), split(cache.values)

    def supervised(self) -> PlannedRun:
        """SFT, DPO or a reward model: the update alone."""
        config = self.config
        model, params = self.model("reward" if config.algorithm == "reward-model" else None)
        learner = self.settings().make_learner(model, num_updates=1000)
        state, update = self.update(learner, params, (), (self.examples(is_causal=model.family.is_causal),))
        parts = {"weights": params, "optimizer": _rest(state, params)}
        return PlannedRun(programs={"update": update._replace(uses=frozenset(parts))}, parts=parts, mesh=self.mesh)

    def settings(self) -> Any:
        """The settings of the planned run's command."""
        config = self.config
        given: dict[str, Any] = {"model": "", "out": ""}
        if config.algorithm in ONLINE:
            given |= {"prompts": "", "reward": "", "batch_size": config.batch_size}
            given["answers"] = AnswerConfig(max_new_tokens=config.new_tokens)
            given[config.kind.UPDATE] = config.update_settings()
            if config.algorithm == "ppo" and config.critic == "model":
                given["value_model"] = "value"
            if config.group_size is not None:
                given["group_size"] = config.group_size
        else:
            given["data" if config.algorithm == "sft" else "preferences"] = ""
        return config.kind(**given)

    def generation(self) -> Generation:
        """Completions of full length."""
        config = self.config
        batch, length = config.batch_size, config.new_tokens
        whole = self.batch(batch, config.prompt_tokens + length)
        numbers = self.batch(batch, length, dtype=jnp.float32)
        return Generation(
            sequences=whole,
            attention_mask=whole,
            response_mask=self.batch(batch, length),
            log_probs=numbers,
            values=numbers,
            num_steps=jax.ShapeDtypeStruct((), jnp.int32, sharding=self.everywhere),
        )

    def evaluation(self, *, has_values: bool) -> AnswerEvaluation:
        """What `evaluate` makes of them."""
        numbers = self.batch(self.config.batch_size, self.config.new_tokens, dtype=jnp.float32)
        values = numbers if has_values else None
        return AnswerEvaluation(log_probs=numbers, values=values, reference_log_probs=numbers)

    def examples(self, *, is_causal: bool) -> PyTree:
        """One batch of examples; an encoder also reads which of two texts a token belongs to."""
        config = self.config
        batch, length = config.batch_size, config.prompt_tokens + config.new_tokens

        def rows(*shape: int) -> PackedRows:
            ids = self.batch(1, *shape, length, num_leading=1)
            return PackedRows(ids, ids, self.batch(1, *shape, length, dtype=bool, num_leading=1))

        if config.algorithm == "sft":
            return rows(batch)
        if config.algorithm == "dpo":
            reference = self.batch(1, batch, 2, dtype=jnp.float32, num_leading=1)
            return ReferencedRows(rows(batch, 2), reference)
        ids = self.batch(1, batch, 2, length, num_leading=1)
        targets = self.batch(1, batch, num_leading=1)
        inputs = {"input_ids": ids, "attention_mask": ids} | ({} if is_causal else {"token_type_ids": ids})
        return PreferenceBatch(inputs=inputs, targets=targets)


def _rest(state: PyTree, params: PyTree) -> PyTree:
    """The leaves of a state without the parameters."""
    counts = len(jax.tree.leaves(params))
    leaves = jax.tree.leaves(state)
    start = next(
        index
        for index in range(len(leaves))
        if [leaf.shape for leaf in leaves[index : index + counts]] == [leaf.shape for leaf in jax.tree.leaves(params)]
    )
    return leaves[:start] + leaves[start + counts :]
