"""What an engine reads of a prompt's rows, held against llama.cpp's own embeddings and logits of the unsplit model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.errors import EngineError
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.interface import answer_of
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.steps import NO_TOKEN, READINGS, StepDone
from shardnet.messages import ShardOptions
from shardnet.wire import Frame
from tests.conftest import SplitSmolLM2
from tests.support.engine_world import NewRoute, SplitModel, Stage, hidden_of, make_step, split
from tests.support.plain_embeddings import plain_embedding, plain_row_logits
from tests.support.quantised_models import quantise
from tests.support.random_models import tiny_llama

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PROMPT = [40 + 7 * index % 200 for index in range(50)]
"""More rows than an engine reads at once."""


async def read(
    stages: list[Stage],
    prompt: list[int],
    kind: str,
    *,
    top: int = 0,
    following: int = NO_TOKEN,
    samples: bool = False,
    sequence_id: str = "",
) -> Frame[StepDone]:
    """Run a prompt as one step through the stages, of which the last one reads it."""
    hidden: NDArray[np.float32] | None = None
    sequence_id = sequence_id or new_id()
    for stage in stages:
        step, payloads = make_step(
            stage.model.model_id, stage.shards, sequence_id, 0, prompt, hidden=hidden, samples=samples
        )
        if stage is stages[-1]:
            step = step._replace(reads=READINGS.index(kind), top=top, next_token=following)
        frame = await answer_of(stage.engine, step, payloads)
        hidden = hidden_of(frame)
    stages[-1].engine.forget(sequence_id)
    return frame


def numbers(frame: Frame[StepDone], name: str) -> NDArray[np.float32]:
    return payload(frame, name, np.float32)


def payload(frame: Frame[StepDone], name: str, dtype: type) -> NDArray[Any]:
    data = frame.payload(name)
    assert data is not None
    shape = next(spec.shape for spec in frame.message.tensors if spec.name == name)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


@pytest.mark.parametrize("count", [1, 2, 33, 50])
async def test_hidden_states_are_those_of_llama_cpps_embeddings(
    engine: EngineProcess, tiny: SplitModel, count: int
) -> None:
    stages = [Stage(engine, tiny, (0, 2)), Stage(engine, tiny, (2, 3))]
    for kind, pooling in (("first", "cls"), ("last", "last")):
        found = numbers(await read(stages, PROMPT[:count], kind), "pooled")[0]
        assert np.array_equal(found, plain_embedding(tiny.whole, PROMPT[:count], pooling))
    mean = numbers(await read(stages, PROMPT[:count], "sum"), "pooled")[0] / count
    assert np.abs(mean - plain_embedding(tiny.whole, PROMPT[:count], "mean")).max() < 1e-6  # sums in another order


async def test_logprobs_are_those_of_the_logits_of_every_row(engine: EngineProcess, tiny: SplitModel) -> None:
    frame = await read([Stage(engine, tiny, (0, 3))], PROMPT, "logprobs", top=3, following=77, samples=True)
    tokens, logprobs = payload(frame, "tokens", np.int32), numbers(frame, "logprobs")
    logits = plain_row_logits(tiny.whole, PROMPT).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert tokens[:, 0].tolist() == [*PROMPT[1:], 77]
    assert np.array_equal(tokens[:, 1:], np.argsort(-logits, axis=1, kind="stable")[:, :3])
    assert np.abs(np.take_along_axis(expected, tokens, axis=1) - logprobs).max() < 2e-6
    assert frame.message.tokens == (int(logits[-1].argmax()),)
    assert frame.message.position == len(PROMPT)


async def test_weights_that_are_laid_out_anew_give_the_numbers_of_one_batch_too(tmp_path: Path) -> None:
    """Their kernels take four rows at once, and the rest one by one."""
    plain = tiny_llama(tmp_path / "plain.gguf", n_layers=2, n_embd=256, n_kv_heads=4, quantisation="F32")
    model = split(quantise(plain, tmp_path / "tiny.gguf", "Q4_K_M"), 2, tmp_path / "cache")
    engine = EngineProcess(InferenceSettings(threads=1))
    await engine.start()
    try:
        stages = [Stage(engine, model, (index, index + 1)) for index in range(2)]
        for stage in stages:
            await stage.load()
        frame = await read(stages, PROMPT, "logprobs")
        last = numbers(await read(stages, PROMPT, "last"), "pooled")[0]
    finally:
        await engine.close()
    logits = plain_row_logits(model.whole, PROMPT).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = numbers(frame, "logprobs")[:, 0]
    right = expected[range(len(found)), PROMPT[1:]]
    assert np.all(np.abs(right - found) < 1.2e-7 * np.abs(right) + 5e-7)  # float32's own rounding
    assert np.array_equal(last, plain_embedding(model.whole, PROMPT, "last"))


async def test_what_follows_a_prompt_that_was_read_is_what_follows_one_that_was_not(
    new_route: NewRoute, engine: EngineProcess, tiny: SplitModel
) -> None:
    """Two sequences beside each other: neither the numbers nor the way of later steps change."""
    plain, other = new_route(), new_route()
    tokens, logits = await plain.generate(PROMPT, 4)
    stage = plain.stages[0]
    step, payloads = make_step(tiny.model_id, stage.shards, other.sequence_id, 0, PROMPT, samples=True)
    with pytest.raises(EngineError, match="samples nothing"):
        await answer_of(engine, step._replace(reads=READINGS.index("sum")), payloads)
    await answer_of(engine, step._replace(reads=READINGS.index("sum"), samples=False), payloads)
    first = await answer_of(engine, step._replace(reads=READINGS.index("logprobs")), payloads)
    assert first.message.tokens == (tokens[0],)
    again, later = await other.generate([tokens[0]], 3, start=len(PROMPT))
    assert again == tokens[1:]
    assert all(np.array_equal(one, two) for one, two in zip(later, logits[1:], strict=True))


async def test_rows_are_read_beside_others_that_decode(
    new_route: NewRoute, engine: EngineProcess, tiny: SplitModel
) -> None:
    alone = numbers(await read([Stage(engine, tiny, (0, 3))], [90], "last"), "pooled")
    decoding = new_route()
    frames = await asyncio.gather(
        decoding.step(0, PROMPT[:4]),
        read([Stage(engine, tiny, (0, 3))], [90], "last"),
        read([Stage(engine, tiny, (0, 3))], PROMPT, "logprobs", top=1),
    )
    assert np.array_equal(numbers(frames[1], "pooled"), alone)
    assert frames[0].message.tokens
    assert frames[2].message.n_read == len(PROMPT) - 1


async def test_a_single_row_that_nothing_follows_has_no_logprobs(engine: EngineProcess, tiny: SplitModel) -> None:
    frame = await read([Stage(engine, tiny, (0, 3))], [90], "logprobs", top=2)
    assert (frame.message.n_read, frame.payloads) == (0, ())


async def test_a_token_outside_the_vocabulary_is_an_error_and_nothing_more(
    engine: EngineProcess, tiny: SplitModel
) -> None:
    stages = [Stage(engine, tiny, (0, 3))]
    with pytest.raises(EngineError, match="outside the vocabulary"):
        await read(stages, PROMPT, "logprobs", following=288)
    assert (await read(stages, PROMPT, "logprobs")).message.n_read == len(PROMPT) - 1


async def test_smollm2_over_three_shards_gives_the_embeddings_of_the_unsplit_model(
    smollm2: Path, split_smollm2: SplitSmolLM2
) -> None:
    _, folder = split_smollm2(3)
    model = SplitModel("0" * 64, smollm2, tuple(folder / f"shard-{index}.gguf" for index in range(3)))
    engine = EngineProcess(InferenceSettings(threads=1))
    await engine.start()
    try:
        stages = [Stage(engine, model, (index, index + 1)) for index in range(3)]
        for stage in stages:
            await stage.load(ShardOptions(n_ctx=64, n_seq=1, n_batch=64))
        found = numbers(await read(stages, PROMPT[:40], "last"), "pooled")[0]
    finally:
        await engine.close()
    assert np.array_equal(found, plain_embedding(smollm2, PROMPT[:40], "last"))
