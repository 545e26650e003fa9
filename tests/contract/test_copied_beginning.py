"""A sequence that begins with a copy of another one's, with a real engine: the numbers of one that ran all of it itself, in the same chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shardnet.errors import SequenceGap
from shardnet.ids import new_id
from shardnet.inference.engine.steps import NO_SEQUENCE
from tests.support.engine_world import Route, logits_of, split, stages_of
from tests.support.random_models import build_random_model

pytestmark = pytest.mark.timeout(60)

SHARED = [40 + index % 30 for index in range(32)]
OWN = [80 + index % 9 for index in range(12)]
OTHER = [100 + index % 11 for index in range(40)]


async def prefill(route: Route, tokens: Sequence[int], chunk: int = 16, start: int = 0) -> None:
    for first in range(start, len(tokens), chunk):
        await route.step(first, tokens[first : first + chunk], samples=False)


async def answer(route: Route, position: int, rows: Sequence[int], copy_from: str = NO_SEQUENCE) -> list[bytes]:
    """Returns: the logits behind the rows, and behind each of three tokens after them, as bytes."""
    found: list[bytes] = []
    for _ in range(4):
        frame = await route.step(position, rows, return_logits=True, copy_from=copy_from)
        logits = logits_of(frame)
        assert logits is not None
        found.append(logits.tobytes())
        position, rows, copy_from = position + len(rows), list(frame.message.tokens), NO_SEQUENCE
    return found


@pytest.mark.parametrize(("family", "n_shards"), [("llama", 3), ("gemma3", 2), ("gpt-oss", 2), ("deepseek2", 2)])
async def test_a_follower_has_the_numbers_of_a_cold_start_while_the_first_owner_goes_on(
    tmp_path: Path, family: str, n_shards: int
) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", family), n_shards, tmp_path / "cache")
    async with stages_of(model) as stages:
        owner, follower, later, cold = (Route(stages) for _ in range(4))
        await prefill(cold, SHARED)
        expected = await answer(cold, len(SHARED), OWN)
        cold.forget()
        await prefill(owner, SHARED)
        assert await answer(follower, len(SHARED), OWN, owner.sequence_id) == expected
        follower.forget()
        await prefill(owner, [*SHARED, *OTHER], start=len(SHARED))  # it has more than is shared, in KV of a window too
        first = await answer(owner, len(SHARED) + len(OTHER), OWN)
        assert await answer(later, len(SHARED), OWN, owner.sequence_id) == expected
        for route in (cold, follower):
            route.sequence_id = new_id()
        await prefill(cold, [*SHARED, *OTHER])
        assert await answer(cold, len(SHARED) + len(OTHER), OWN) == first  # and the owner lost nothing by it
        assert await answer(follower, 28, SHARED[28:] + OWN, later.sequence_id) == await answer(
            cold, 28, SHARED[28:] + OWN
        )  # a copy of a copy, cut within a chunk


@pytest.mark.parametrize("family", ["lfm2", "qwen3next", "mamba2"])
async def test_recurrent_state_is_refused_by_name_and_a_cold_start_is_unharmed(tmp_path: Path, family: str) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", family), 2, tmp_path / "cache")
    async with stages_of(model) as stages:
        owner, follower = Route(stages), Route(stages)
        await prefill(owner, SHARED)
        with pytest.raises(SequenceGap, match="no beginning of it can be copied"):
            await answer(follower, len(SHARED), OWN, owner.sequence_id)
        await prefill(follower, SHARED)
        assert await answer(follower, len(SHARED), OWN) == await answer(owner, len(SHARED), OWN)


async def test_a_source_that_is_gone_or_too_short_is_a_gap_from_the_start_and_takes_no_slot(tmp_path: Path) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", "llama"), 2, tmp_path / "cache")
    async with stages_of(model) as stages:
        owner = Route(stages)
        await prefill(owner, SHARED[:16])
        for source in (owner.sequence_id, new_id()):
            for _ in range(5):  # more than there are slots
                with pytest.raises(SequenceGap) as caught:
                    await answer(Route(stages), len(SHARED), OWN, source)
                assert caught.value.facts["have"] == 0


async def test_a_repeated_step_copies_nothing_and_gives_the_same_numbers(tmp_path: Path) -> None:
    model = split(build_random_model(tmp_path / "model.gguf", "llama"), 2, tmp_path / "cache")
    async with stages_of(model) as stages:
        owner, follower = Route(stages), Route(stages)
        await prefill(owner, SHARED)
        first = await answer(follower, len(SHARED), OWN, owner.sequence_id)
        owner.forget()
        assert await answer(follower, len(SHARED), OWN, owner.sequence_id) == first
        assert np.frombuffer(first[0], dtype=np.float32).std() > 0
