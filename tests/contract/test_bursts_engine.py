"""Last chunks of prompts that wait together, with a real engine: one batch, of which each row has the numbers that it has alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shardnet.inference.engine.steps import NO_SEQUENCE, StepDone
from shardnet.wire import Frame
from tests.support.engine_world import Route, Stage, hidden_of, logits_of, split, stages_of
from tests.support.held_up import held_up
from tests.support.random_models import build_random_model

pytestmark = pytest.mark.timeout(120)

SHARED = [40 + index % 30 for index in range(16)]
OWN = [[80 + (7 * number + index) % 40 for index in range(10)] for number in range(3)]
WHOLE = 8
"""Rows of whole blocks."""


async def steps(
    stages: Sequence[Stage], owner: Route | None, *, together: bool
) -> tuple[list[Frame[StepDone]], list[list[int]]]:
    """Returns: what the chunks of three prompts came to, which begin as the owner's does, and the tokens that each goes on with."""
    routes = [Route(list(stages)) for _ in OWN]
    start, copy_from = (0, NO_SEQUENCE) if owner is None else (len(SHARED), owner.sequence_id)
    pending = []
    if together:
        with held_up(stages[0].engine):
            for route, rows in zip(routes, OWN, strict=True):
                step = route.step(start, rows, return_logits=True, copy_from=copy_from)
                pending.append(asyncio.ensure_future(step))
            await asyncio.sleep(0)  # each runs until it waits for its answer: all are sent
        frames = await asyncio.gather(*pending)
    else:
        frames = [
            await route.step(start, rows, return_logits=True, copy_from=copy_from)
            for route, rows in zip(routes, OWN, strict=True)
        ]
    following: list[list[int]] = [[] for _ in routes]
    for route, frame, tokens in zip(routes, frames, following, strict=True):
        if frame.message.tokens:
            tokens += frame.message.tokens
            tokens += (await route.generate(frame.message.tokens, 5, start=start + len(OWN[0])))[0]
        route.forget()
    return frames, following


@pytest.mark.parametrize(
    ("family", "copies"), [("llama", True), ("gemma3", True), ("qwen3moe", False), ("jamba", False)]
)
async def test_three_chunks_are_one_batch_with_the_numbers_of_each_alone(
    tmp_path: Path, family: str, copies: bool
) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", family), 2, tmp_path / "cache")
    async with stages_of(model) as stages:
        owner = Route(stages) if copies else None
        if owner is not None:
            await owner.step(0, SHARED, samples=False)
        alone, _ = await steps(stages[:1], owner, together=False)
        found, _ = await steps(stages[:1], owner, together=True)
        assert [frame.message.batch_tokens for frame in found] == [30] * 3
        for one, other in zip(alone, found, strict=True):
            expected, hidden = hidden_of(one), hidden_of(other)
            assert expected is not None
            assert hidden is not None
            assert hidden[:WHOLE].tobytes() == expected[:WHOLE].tobytes()
            assert np.allclose(hidden, expected, atol=1e-4)

        alone, tokens = await steps(stages, owner, together=False)
        found, same = await steps(stages, owner, together=True)
        assert same == tokens
        for one, other in zip(alone, found, strict=True):
            assert np.allclose(logits_of(one), logits_of(other), atol=1e-3)  # type: ignore[arg-type]


async def test_a_chunk_that_cannot_run_does_not_spoil_those_beside_it(tmp_path: Path) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", "llama"), 1, tmp_path / "cache")
    async with stages_of(model) as stages:
        owner, good, bad = (Route(stages) for _ in range(3))
        await owner.step(0, SHARED, samples=False)
        with held_up(stages[0].engine):
            tasks = [
                asyncio.ensure_future(good.step(len(SHARED), OWN[0], copy_from=owner.sequence_id)),
                asyncio.ensure_future(bad.step(len(SHARED), OWN[1], copy_from=NO_SEQUENCE)),
            ]
            await asyncio.sleep(0)
        fine, refused = await asyncio.gather(*tasks, return_exceptions=True)
        assert not isinstance(fine, BaseException)
        assert fine.message.tokens
        assert isinstance(refused, BaseException)
        assert "replay from there" in str(refused)
