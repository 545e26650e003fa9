"""A sequence taken over, with a real engine: the numbers of one that was never used for anything else, run in the same chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.engine_world import PROMPT, Route, logits_of, two_stages

ANSWER, NEXT = [70, 71, 72, 73], [80, 81, 82, 83, 84]
WASTE = [90, 91, 92, 93, 94, 95, 96, 97]


async def first_turn(route: Route) -> int:
    """Returns: how many tokens have KV."""
    await route.step(0, PROMPT)
    for index, token in enumerate(ANSWER):
        await route.step(len(PROMPT) + index, [token])
    return len(PROMPT) + len(ANSWER)


@pytest.mark.timeout(60)
async def test_a_prompt_that_starts_in_kept_kv_gives_the_numbers_of_a_cold_start_in_the_same_chunks(
    tmp_path: Path,
) -> None:
    async with two_stages(tmp_path) as stages:
        warm, cold = Route(stages), Route(stages)
        for cut in (0, 3):  # the whole first turn in common, and all but its last three tokens
            end = await first_turn(warm)
            await warm.step(end, WASTE)  # what the last turn did in vain, or for another end of the text
            frame = await warm.step(end - cut, NEXT, return_logits=True)
            end = await first_turn(cold)
            cold_frame = await cold.step(end - cut, NEXT, return_logits=True)
            found, expected = logits_of(frame), logits_of(cold_frame)
            assert found is not None
            assert expected is not None
            assert float(np.abs(found - expected).max()) == 0.0
            assert frame.message.tokens == cold_frame.message.tokens
            cold.forget()
            cold = Route(stages)
