"""Async rewards keep what belongs to an event loop, such as a rate limit, from one batch to the next."""

import asyncio

from jaxrl_lm.data import Prompt
from jaxrl_lm.rewards import score_completions


def test_a_semaphore_outlives_a_batch():
    limit = asyncio.Semaphore(1)

    async def length(prompts, completions):
        found = []
        for text in completions:
            async with limit:
                await asyncio.sleep(0)
                found.append(float(len(text)))
        return found

    async def reward(prompts, completions):
        parts = await asyncio.gather(length(prompts, completions[:1]), length(prompts, completions[1:]))
        return [value for part in parts for value in part]

    prompts = [Prompt(prompt="p", columns={}), Prompt(prompt="q", columns={})]
    for _ in range(2):
        assert list(score_completions(reward, prompts, ["a", "bcd"])) == [1.0, 3.0]
