"""One update of PPO, RLOO or GRPO on the host: complete prompts, score the completions, learn.

Reward functions run while the devices evaluate the completions, which needs no scores. With `answers.ahead` the devices
also sample the completions of the next update meanwhile.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_lm import data, distributed, rollouts
from jaxrl_lm.core.records import record
from jaxrl_lm.rollouts import Generation
from jaxrl_lm.training.language_model import LoadedModel
from jaxrl_lm.training.online.config import OnlineRunConfig
from jaxrl_lm.training.online.task import OnlineTask
from jaxrl_lm.training.run import Update
from jaxrl_lm.types import AnswerLearner, PyTree


@record
class AheadState:
    """State of a run that samples ahead.

    Attributes:
        learner: the learner's state.
        generation: completions for the next update, padded to the longest prompt and completion, so that checkpoints
            have one shape; `num_steps` is 0 before the first update, which has none.
    """

    learner: PyTree
    generation: Generation


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a run has loaded.

    Attributes:
        task: prompts, rewards, the policy.
        learner: the algorithm.
        params: to train.
        value: a value network of its own, or None.
    """

    task: OnlineTask
    learner: AnswerLearner
    params: PyTree
    value: LoadedModel | None

    def init_state(self) -> PyTree:
        """The state before the first update.

        Parameters are copied, for they may be the reference's as well; with adapters it needs none of its own.
        """
        config = self.task.config
        has_reference = self.task.reference_params is not None
        key = jax.random.key(config.seed)
        state = distributed.init_state(self.learner.init, self.params, key, is_copied=has_reference)
        if not config.answers.ahead:
            return state
        return AheadState(learner=state, generation=self.task.no_generation())

    def learner_state(self, state: PyTree) -> PyTree:
        """The learner's part of a state."""
        return state.learner if isinstance(state, AheadState) else state

    def policy_params(self, state: PyTree) -> PyTree:
        """Parameters of the policy."""
        return self.learner.policy_params(self.learner_state(state))


def make_update(loaded: Loaded) -> Update:
    """One update: completions, scores, learning, metrics."""
    update = _Update(loaded)
    return update.ahead if loaded.task.config.answers.ahead else update.in_turn


@dataclass
class _Clock:
    """Seconds of the parts of an update."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[f"time/{name}"] = time.perf_counter() - started


class _Update:
    """The parts of an update, with their compiled programs."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._learner = learner = loaded.learner
        self._config: OnlineRunConfig = loaded.task.config
        self._learn = distributed.jit_update(learner.update)
        self._evaluate = distributed.counted(jax.jit(learner.evaluate))
        self._forward_rows = jax.jit(learner.forward_rows)
        self._key, self._reference = jax.random.key(self._config.seed), loaded.task.reference_params

    def in_turn(self, state: PyTree, num_done: int) -> tuple[PyTree, dict[str, float]]:
        """Sample with the parameters that learn."""
        clock = _Clock()
        with clock.time("update"):
            with clock.time("generate"):
                generation = self._sample(state, num_done)
                completed = distributed.on_host(generation)
            state, metrics = self._learn_from(state, generation, completed, num_done, clock, None)
        return state, metrics | self._times(metrics, clock)

    def ahead(self, state: AheadState, num_done: int) -> tuple[AheadState, dict[str, float]]:
        """Learn from completions of the parameters before the last update, and sample those for the next one."""
        clock, task, sampled = _Clock(), self._loaded.task, list[Generation]()
        with clock.time("update"):
            is_first = int(distributed.on_host(state.generation.num_steps)) == 0
            generation = self._sample(state.learner, num_done) if is_first else state.generation
            asked = self._asked(num_done)
            generation = task.narrowed(generation, asked)
            completed = distributed.on_host(generation)

            def sample_next() -> None:
                with clock.time("generate"):
                    sampled.append(task.widened(self._sample(state.learner, num_done + 1)))

            learner, metrics = self._learn_from(state.learner, generation, completed, num_done, clock, sample_next)
        return AheadState(learner=learner, generation=sampled[0]), metrics | self._times(metrics, clock)

    def _asked(self, num_done: int) -> np.ndarray:
        """Indices of the prompts of an update."""
        num_prompts = self._config.batch_size // self._learner.answers_per_prompt
        return data.prompt_order(len(self._loaded.task.prompts), num_prompts, num_done, self._config.seed)

    def _keys(self, num_done: int) -> Any:
        """The keys of sampling and of learning."""
        return jax.random.split(jax.random.fold_in(self._key, num_done))

    def _sample(self, state: PyTree, num_done: int) -> Generation:
        """The completions for an update."""
        task, num_answers, key = self._loaded.task, self._learner.answers_per_prompt, self._keys(num_done)[0]
        params = self._learner.policy_params(state)
        return task.answer(params, self._asked(num_done), key, per_prompt=num_answers)

    def _learn_from(
        self,
        state: PyTree,
        generation: Generation,
        completed: Generation,
        num_done: int,
        clock: _Clock,
        meanwhile: Callable[[], None] | None,
    ) -> tuple[PyTree, dict[str, float]]:
        """Score completions while the devices evaluate them and do what is to be done `meanwhile`; then learn."""
        task, key, num_answers = self._loaded.task, self._keys(num_done)[1], self._learner.answers_per_prompt
        model = task.policy.model
        rollouts.count_generation(model, completed, per_prompt=num_answers)
        passes = jax.device_get(self._forward_rows(key, completed.attention_mask.sum(axis=1)))
        generation = rollouts.packed(model, generation, completed, passes)
        evaluation = self._evaluate(state, self._reference, generation)

        def score() -> tuple[np.ndarray, dict[str, float]]:
            with clock.time("reward"):
                return task.score(np.repeat(self._asked(num_done), num_answers), completed, num_done=num_done)

        scores, reward_metrics = _beside(score, meanwhile)
        with clock.time("learn"):
            scores = distributed.place_batch(jnp.asarray(scores))
            state, metrics = self._learn(state, generation, evaluation, scores, key)
            numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
        return state, reward_metrics | numbers

    def _times(self, metrics: dict[str, float], clock: _Clock) -> dict[str, float]:
        num_tokens = metrics["answer/length"] * self._config.batch_size
        return clock.seconds | {"time/tokens_per_second": num_tokens / clock.seconds["time/update"]}


def _beside(score: Callable[[], Any], meanwhile: Callable[[], None] | None) -> Any:
    """What `score` returns, with `meanwhile` called beside it in another thread.

    Reward functions stay in the main thread, outside of which Python has no signals, such as alarms for a time limit.
    Several processes call both one after the other, since each may wait for the others.
    """
    if meanwhile is None:
        return score()
    if jax.process_count() > 1:
        meanwhile()
        return score()
    mesh = distributed.current_mesh()  # of this thread

    def call() -> None:
        with distributed.use_mesh(mesh):
            meanwhile()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(copy_context().run, call)
        found = score()
        future.result()
    return found
