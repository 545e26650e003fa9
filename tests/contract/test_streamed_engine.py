"""Shards larger than the memory that they may have: read from their files for each batch, with the unsplit model's numbers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from shardnet.errors import NoRoomError
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.memory import need_of
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.shard_cost import cost_of
from shardnet.inference.worker.loading import PROCESS_BYTES
from tests.support.engine_world import OPTIONS, PROMPT, Route, SplitModel, Stage, load_request, plain_logits, split
from tests.support.quantised_models import quantise
from tests.support.random_models import tiny_llama

N_LAYERS = 12
N_TOKENS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SplitModel:
    """Two shards of a type that llama.cpp would lay out anew."""
    folder = tmp_path_factory.mktemp("streamed")
    whole = tiny_llama(folder / "f32.gguf", n_layers=N_LAYERS, n_embd=256, quantisation="F32", tied=False)
    return split(quantise(whole, folder / "small.gguf", "Q4_K_M"), 2, folder / "cache")


def half_of(path: Path) -> int:
    """Returns: bytes for a shard with half of its weights."""
    need = need_of(cost_of(path), OPTIONS)
    return PROCESS_BYTES + need.total - need.weights // 2


@asynccontextmanager
async def engine_with(mode: Literal["resident", "streamed", "auto"], limit_bytes: int) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(InferenceSettings(threads=1, memory_mode=mode, memory_limit_bytes=limit_bytes))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def test_streamed_shards_give_the_unsplit_models_numbers_bit_by_bit(model: SplitModel) -> None:
    expected = plain_logits(model.whole, PROMPT, N_TOKENS, repack=False)
    async with (
        engine_with("streamed", half_of(model.shards[0])) as first,
        engine_with("streamed", half_of(model.shards[1])) as last,
    ):
        stages = [Stage(first, model, (0, 1)), Stage(last, model, (1, 2))]
        for stage in stages:
            await stage.load()
        answers = [shard.answer for engine in (first, last) for shard in engine.shards]
        assert [answer.memory_mode for answer in answers] == ["streamed", "streamed"]
        assert all(" are read for each token" in answer.why and " 0 B are read" not in answer.why for answer in answers)
        for _ in range(2):  # the second sequence meets what the first one left in memory
            route = Route(stages)
            tokens, logits = await route.generate(PROMPT, N_TOKENS)
            assert tokens == expected[0]
            assert np.array_equal(logits, expected[1])
            route.forget()
        await first.unload(model.model_id, 0)
        await stages[0].load()
        assert (await Route(stages).generate(PROMPT, N_TOKENS))[0] == expected[0]


async def test_auto_streams_what_resident_refuses_and_says_why(model: SplitModel) -> None:
    whole = SplitModel(model.model_id, model.whole, (model.whole,))
    need = need_of(cost_of(model.whole), OPTIONS)
    enough, less = need.total + PROCESS_BYTES, half_of(model.whole)
    async with engine_with("resident", less) as engine:
        with pytest.raises(NoRoomError):
            await engine.load(load_request(whole, 0))
    async with engine_with("auto", less) as engine:
        streamed = (await engine.load(load_request(whole, 0))).answer
        assert (await engine.load(load_request(whole, 0))).answer.memory_mode == "streamed"
    async with engine_with("auto", enough) as engine:
        resident = (await engine.load(load_request(whole, 0))).answer
    assert streamed.memory_mode == "streamed"
    assert streamed.why.startswith("it does not fit: ")
    assert streamed.memory_bytes <= less - PROCESS_BYTES
    assert resident.memory_mode == "resident"
    assert resident.why.startswith("it fits: ")


async def test_two_streamed_shards_of_one_node_stay_within_one_budget(model: SplitModel) -> None:
    expected = plain_logits(model.whole, PROMPT, N_TOKENS, repack=False)
    needs = [need_of(cost_of(path), OPTIONS) for path in model.shards]
    limit = PROCESS_BYTES + sum(need.total - need.weights // 2 for need in needs)
    async with engine_with("streamed", limit) as engine:
        stage = Stage(engine, model, (0, 2))
        await stage.load()
        told = (await engine.report()).streamed
        assert [one.shard_id for one in told] == [0, 1]
        assert all(one.weights.least_bytes <= one.weights.budget_bytes for one in told)
        assert all(one.weights.read_bytes > 0 for one in told)
        assert sum(one.memory_bytes for one in told) <= limit - PROCESS_BYTES
        tokens, logits = await Route([stage]).generate(PROMPT, N_TOKENS)
        assert (tokens, np.array_equal(logits, expected[1])) == (expected[0], True)
        await engine.unload(model.model_id, 1)
        (left,) = (await engine.report()).streamed
        assert left.weights.budget_bytes > told[0].weights.budget_bytes


async def test_a_resident_shard_goes_with_a_streamed_one_where_it_is_not_repacked(model: SplitModel) -> None:
    expected = plain_logits(model.whole, PROMPT, N_TOKENS, repack=False)
    options = OPTIONS.model_copy(update={"repack": False})
    async with engine_with("resident", 0) as first, engine_with("auto", half_of(model.shards[1])) as last:
        stages = [Stage(first, model, (0, 1)), Stage(last, model, (1, 2))]
        for stage in stages:
            await stage.load(options)
        modes = [(shard.answer.memory_mode, shard.answer.repacked) for one in stages for shard in one.engine.shards]
        assert modes == [("resident", False), ("streamed", False)]
        tokens, logits = await Route(stages).generate(PROMPT, N_TOKENS)
    assert (tokens, np.array_equal(logits, expected[1])) == (expected[0], True)
