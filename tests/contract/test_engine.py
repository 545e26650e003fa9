"""What the engine promises, held against a real engine process and stock llama.cpp."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from shardnet.errors import (
    Busy,
    ContextExceeded,
    EngineError,
    GgufError,
    NoRoomError,
    SequenceGap,
    ShardnetError,
    ShardNotFound,
    UsageError,
)
from shardnet.ids import new_id
from shardnet.inference.engine.host import EngineProcess
from shardnet.inference.engine.interface import answer_of
from shardnet.inference.engine.protocol import Load
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.steps import Step, StepDone
from shardnet.inference.gguf.header import read_gguf_header
from shardnet.inference.llama.sampling import pick
from shardnet.messages import Sampling, ShardOptions
from shardnet.wire import Frame
from tests.conftest import SplitSmolLM2
from tests.support.engine_world import (
    OPTIONS,
    PROMPT,
    NewRoute,
    Route,
    SplitModel,
    Stage,
    hidden_of,
    load_request,
    logits_of,
    make_step,
    plain_logits,
    split,
)
from tests.support.held_up import held_up
from tests.support.random_models import build_random_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE_THREAD = InferenceSettings(threads=1)
SAMPLED = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repeat_penalty=1.1, seed=7)


@pytest_asyncio.fixture(loop_scope="module")
async def route(new_route: NewRoute) -> Route:
    return new_route()


# -- the same numbers ------------------------------------------------------------------------------------------------


async def test_a_chain_of_three_shards_gives_the_logits_of_the_whole_model(route: Route, tiny: SplitModel) -> None:
    tokens, logits = await route.generate(PROMPT, 60)
    expected_tokens, expected = plain_logits(tiny.whole, PROMPT, 60)
    assert tokens == expected_tokens
    assert max(np.abs(a - b).max() for a, b in zip(logits, expected, strict=True)) == 0


async def test_three_engines_give_the_logits_of_the_whole_model(tiny: SplitModel) -> None:
    stages = [Stage(EngineProcess(ONE_THREAD), tiny, (i, i + 1)) for i in range(3)]
    try:
        await asyncio.gather(*(stage.engine.start() for stage in stages))
        await asyncio.gather(*(stage.load() for stage in stages))
        tokens, logits = await Route(stages).generate(PROMPT, 60)
        sampled, _ = await Route(stages).generate(PROMPT, 60, SAMPLED)
        whole = Route([Stage(stages[0].engine, SplitModel("e" * 64, tiny.whole, (tiny.whole,)), (0, 1))])
        await whole.stages[0].load()
        sampled_whole, _ = await whole.generate(PROMPT, 60, SAMPLED)
    finally:
        await asyncio.gather(*(stage.engine.close() for stage in stages))
    expected_tokens, expected = plain_logits(tiny.whole, PROMPT, 60)
    assert tokens == expected_tokens
    assert max(np.abs(a - b).max() for a, b in zip(logits, expected, strict=True)) == 0
    assert sampled == sampled_whole
    assert len(set(sampled)) > 10


@pytest.mark.model
async def test_smollm2_in_three_shards_is_smollm2(smollm2: Path, split_smollm2: SplitSmolLM2) -> None:
    _, folder = split_smollm2(3)
    model = SplitModel("5" * 64, smollm2, tuple(folder / f"shard-{index}.gguf" for index in range(3)))
    engine = EngineProcess(ONE_THREAD)
    await engine.start()
    try:
        route = Route([Stage(engine, model, (0, 3))])
        await route.stages[0].load()
        tokens, logits = await route.generate(PROMPT, 60)
    finally:
        await engine.close()
    expected_tokens, expected = plain_logits(smollm2, PROMPT, 60)
    assert tokens == expected_tokens
    assert max(np.abs(a - b).max() for a, b in zip(logits, expected, strict=True)) == 0


async def test_a_prompt_in_chunks_gives_the_same_tokens(new_route: NewRoute, route: Route) -> None:
    whole, _ = await new_route().generate(PROMPT, 20)
    await route.step(0, PROMPT[:8], samples=False)
    chunked, _ = await route.generate(PROMPT[8:], 20, start=8)
    assert chunked == whole


# -- the position rule ------------------------------------------------------------------------------------------------


async def test_a_repeated_step_gives_the_same_answer(route: Route) -> None:
    first = await route.step(0, PROMPT, sampling=SAMPLED, return_logits=True)
    again = await route.step(0, PROMPT, sampling=SAMPLED, return_logits=True)
    assert first.message.tokens == again.message.tokens
    assert np.array_equal(logits_of(first), logits_of(again))  # type: ignore[arg-type]


async def test_a_rewound_sequence_goes_on_as_before(route: Route) -> None:
    tokens, logits = await route.generate(PROMPT, 20)
    position = len(PROMPT) + 4  # where the sixth token is picked, from the row of the fifth
    again, logits_again = await route.generate([tokens[4]], 15, start=position)
    assert again == tokens[5:]
    assert all(np.array_equal(a, b) for a, b in zip(logits[5:], logits_again, strict=True))


async def test_a_step_beyond_what_is_there_says_from_where_to_replay(route: Route) -> None:
    with pytest.raises(SequenceGap) as none:
        await route.step(5, [1])
    assert none.value.facts["have"] == 0
    await route.step(0, PROMPT)
    with pytest.raises(SequenceGap) as some:
        await route.step(len(PROMPT) + 1, [1])
    assert some.value.facts["have"] == len(PROMPT)


async def test_a_forgotten_sequence_starts_anew(route: Route) -> None:
    await route.step(0, PROMPT)
    route.forget()
    with pytest.raises(SequenceGap):
        await route.step(len(PROMPT), [1])


async def test_interleaved_sequences_each_get_their_own_answer(new_route: NewRoute, route: Route) -> None:
    alone = [await new_route().generate(prompt, 12) for prompt in (PROMPT, PROMPT[::-1])]
    routes = [new_route(), new_route()]
    steps: list[list[int]] = [[], []]
    rows = [list(PROMPT), list(PROMPT[::-1])]
    positions = [0, 0]
    for _ in range(12):
        for i in (0, 1):
            frame = await routes[i].step(positions[i], rows[i])
            positions[i] += len(rows[i])
            rows[i] = [frame.message.tokens[0]]
            steps[i] += rows[i]
    for done in routes:
        done.forget()
    assert steps == [alone[0][0], alone[1][0]]


# -- batching -------------------------------------------------------------------------------------------------------------


async def test_waiting_sequences_share_one_batch(engine: EngineProcess, tiny: SplitModel, new_route: NewRoute) -> None:
    routes = [new_route() for _ in range(OPTIONS.n_seq)]
    await asyncio.gather(*(route.step(0, PROMPT) for route in routes))
    with held_up(engine):  # so that all of them wait when it looks, however busy the machine is
        steps = [asyncio.ensure_future(route.step(len(PROMPT), [50 + i])) for i, route in enumerate(routes)]
        await asyncio.sleep(0)  # each runs until it waits for its answer: all are sent
    frames = await asyncio.gather(*steps)
    for route in routes:
        route.forget()
    assert [frame.message.batch_tokens for frame in frames] == [len(routes)] * len(routes)


async def test_sequences_in_one_batch_write_what_they_write_alone(
    engine: EngineProcess, tiny: SplitModel, new_route: NewRoute
) -> None:
    prompts = [PROMPT, PROMPT[::-1], PROMPT[3:], PROMPT[:5]]
    alone = []
    for prompt in prompts:
        route = new_route()
        alone.append((await route.generate(prompt, 16))[0])
        route.forget()
    routes = [new_route() for _ in prompts]
    together = await asyncio.gather(
        *(route.generate(prompt, 16) for route, prompt in zip(routes, prompts, strict=True))
    )
    for route in routes:
        route.forget()
    assert [tokens for tokens, _ in together] == alone


async def test_one_bad_step_does_not_spoil_the_others(new_route: NewRoute, route: Route) -> None:
    good, bad = new_route(), new_route()
    await good.step(0, PROMPT)
    results = await asyncio.gather(good.step(len(PROMPT), [1]), bad.step(3, [1]), return_exceptions=True)
    good.forget()
    assert not isinstance(results[0], BaseException)
    assert isinstance(results[1], SequenceGap)


# -- runs --------------------------------------------------------------------------------------------------------------


async def answers_of_run(engine: EngineProcess, step: Step, payloads: Sequence[memoryview]) -> list[Frame[StepDone]]:
    """Returns: all answers of a run, up to its last. Raises: the error that ended it."""
    answers: list[Frame[StepDone]] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(answer: Frame[StepDone] | ShardnetError) -> None:
        if isinstance(answer, ShardnetError):
            done.set_exception(answer)
            return
        answers.append(answer)
        if not answer.message.ahead:
            done.set_result(None)

    engine.step(step, payloads, take)
    await done
    return answers


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.9, seed=7, top_p=0.9, repeat_penalty=1.2)])
async def test_a_run_writes_what_the_same_steps_write_one_by_one(
    engine: EngineProcess, tiny: SplitModel, route: Route, sampling: Sampling | None
) -> None:
    expected, logits = await route.generate(PROMPT, 12, sampling)
    step, payloads = make_step(
        tiny.model_id,
        (0, tiny.n),
        new_id(),
        0,
        PROMPT,
        samples=True,
        sampling=sampling,
        return_logits=True,
        ahead=11,
    )
    answers = await answers_of_run(engine, step, payloads)
    engine.forget(step.sequence_id)
    assert [answer.message.tokens for answer in answers] == [(token,) for token in expected]
    assert [answer.message.ahead for answer in answers] == list(range(11, -1, -1))
    assert [answer.message.position for answer in answers] == list(range(len(PROMPT), len(PROMPT) + 12))
    for answer, row in zip(answers, logits, strict=True):
        found = logits_of(answer)
        assert found is not None
        assert np.array_equal(found[0], row)


async def test_a_run_ends_where_its_context_does(engine: EngineProcess, tiny: SplitModel) -> None:
    prompt = [40 + i % 100 for i in range(OPTIONS.n_batch)]
    sequence = new_id()
    for start in range(0, OPTIONS.n_ctx - OPTIONS.n_batch, OPTIONS.n_batch):
        await answer_of(engine, *make_step(tiny.model_id, (0, tiny.n), sequence, start, prompt))
    last = OPTIONS.n_ctx - OPTIONS.n_batch
    step, payloads = make_step(tiny.model_id, (0, tiny.n), sequence, last, prompt[:-3], samples=True, ahead=50)
    answers = await answers_of_run(engine, step, payloads)
    engine.forget(sequence)
    assert [answer.message.ahead for answer in answers] == [3, 2, 1, 0]
    assert answers[-1].message.position == OPTIONS.n_ctx


async def test_a_run_ends_soon_when_it_is_halted_and_at_once_when_its_sequence_is_forgotten(
    engine: EngineProcess, tiny: SplitModel
) -> None:
    for how in ("halt", "forget"):
        step, payloads = make_step(tiny.model_id, (0, tiny.n), new_id(), 0, PROMPT, samples=True, ahead=200)
        run = asyncio.ensure_future(answers_of_run(engine, step, payloads))
        await asyncio.sleep(0)
        if how == "halt":
            engine.halt(step.command_id)
            assert len(await run) < 200
            engine.forget(step.sequence_id)
        else:
            engine.forget(step.sequence_id)
            with pytest.raises(EngineError, match="dropped"):
                await run


async def test_a_stage_without_the_head_does_not_run_ahead(engine: EngineProcess, tiny: SplitModel) -> None:
    step, payloads = make_step(tiny.model_id, (0, 1), new_id(), 0, PROMPT, ahead=5)
    (answer,) = await answers_of_run(engine, step, payloads)
    engine.forget(step.sequence_id)
    assert hidden_of(answer) is not None


# -- other families ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3next", "gemma3", "gpt-oss", "qwen2vl", "deepseek2"])
async def test_other_families_are_exact_and_keep_their_sequences_apart(
    engine: EngineProcess, tmp_path: Path, family: str
) -> None:
    whole = build_random_model(tmp_path / "whole.gguf", family)
    model = split(whole, 2, tmp_path)
    stage = Stage(engine, model, (0, 2))
    await stage.load()
    try:
        routes = [Route([stage]) for _ in range(2)]
        other = asyncio.create_task(routes[1].generate(PROMPT[::-1], 12))
        for _ in range(3):
            await asyncio.sleep(0)
        tokens, _ = await routes[0].generate(PROMPT, 12)
        await other
        for route in routes:
            route.forget()
        alone = Route([stage])
        tokens, logits = await alone.generate(PROMPT, 12)
        expected_tokens, expected = plain_logits(whole, PROMPT, 12)
        assert tokens == expected_tokens
        assert max(np.abs(a - b).max() for a, b in zip(logits, expected, strict=True)) == 0
        try:
            again, _ = await alone.generate([tokens[3]], 4, start=len(PROMPT) + 3)
        except SequenceGap:  # a recurrent state cannot be taken back: then from the start
            again = (await alone.generate(PROMPT, 8))[0][4:]
        assert again == tokens[4:8]
        alone.forget()
    finally:
        for index in range(2):
            await engine.unload(model.model_id, index)


# -- proposed tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("agreeing", [0, 1, 3, 4])
async def test_rows_behind_a_wrong_one_leave_no_trace(
    new_route: NewRoute, route: Route, agreeing: int, sampling: Sampling | None
) -> None:
    plain = new_route()
    tokens, logits = await plain.generate(PROMPT, 12, sampling)
    plain.forget()
    await route.step(0, PROMPT, sampling=sampling)
    proposed = tokens[1:5]
    if agreeing < 4:
        proposed[agreeing] = (proposed[agreeing] + 1) % 256
    rows = enumerate([tokens[0], *proposed], len(PROMPT))
    frames = await asyncio.gather(*(route.step(position, [token], sampling=sampling) for position, token in rows))
    assert [frame.message.tokens for frame in frames[: agreeing + 1]] == [(t,) for t in tokens[1 : agreeing + 2]]
    position = len(PROMPT) + 1 + agreeing
    rest, rest_logits = await route.generate([tokens[agreeing + 1]], 5, sampling, start=position)
    assert rest == tokens[agreeing + 2 : agreeing + 7]
    assert all(np.array_equal(a, b) for a, b in zip(rest_logits, logits[agreeing + 2 : agreeing + 7], strict=True))


# -- sampling ---------------------------------------------------------------------------------------------------------------


async def test_the_seed_decides(new_route: NewRoute, route: Route) -> None:
    runs = []
    for seed in (1, 1, 2):
        once = new_route()
        runs.append((await once.generate(PROMPT, 24, Sampling(temperature=1.5, seed=seed)))[0])
        once.forget()
    assert runs[0] == runs[1] != runs[2]


async def test_beside_others_a_token_is_what_its_own_logits_its_seed_and_its_position_draw(
    engine: EngineProcess, tiny: SplitModel, new_route: NewRoute
) -> None:
    sampling = Sampling(temperature=1.5, seed=7)
    routes = [new_route() for _ in range(4)]
    alone = await routes[0].generate(PROMPT, 16, sampling)
    routes[0].forget()
    together = await asyncio.gather(*(route.generate(PROMPT, 16, sampling) for route in routes))
    for route in routes:
        route.forget()
    for tokens, logits in [alone, *together]:
        for at, (token, scores) in enumerate(zip(tokens, logits, strict=True)):
            assert token == pick(scores, sampling, position=len(PROMPT) + at, recent=np.zeros(0, np.int32))
    for tokens, logits in together:
        first = next((at for at in range(16) if tokens[at] != alone[0][at]), None)
        if first is not None:
            assert (logits[first] != alone[1][first]).any()


async def test_log_probabilities_come_with_the_token(route: Route) -> None:
    frame = await route.step(0, PROMPT, sampling=Sampling(top_logprobs=3), return_logits=True)
    logits = logits_of(frame)
    assert logits is not None
    expected = logits[0] - np.log(np.exp(logits[0].astype(np.float64)).sum())
    (listed,) = frame.message.logprobs
    assert [entry.token for entry in listed[1:]] == np.argsort(-logits[0], kind="stable")[:3].tolist()
    assert listed[0].token == frame.message.tokens[0]
    assert all(abs(entry.logprob - expected[entry.token]) < 1e-4 for entry in listed)


async def test_a_grammar_is_kept_greedy_sampled_and_behind_a_row_that_broke_it(new_route: NewRoute) -> None:
    for temperature in (0.0, 1.0):
        once = new_route()
        sampling = Sampling(
            temperature=temperature, grammar='root ::= ("ab" | "xyz")+', prompt_tokens=len(PROMPT), seed=3
        )
        tokens, _ = await once.generate(PROMPT, 9, sampling)
        text = bytes(
            token for token in tokens if token < 256
        ).decode()  # these are bytes; behind them stands end-of-text
        assert re.fullmatch("(ab|xyz)*(a|x|xy)?", text)
        with pytest.raises(EngineError, match="grammar"):
            await once.step(len(PROMPT), [ord("q")], sampling=sampling)
        rest, _ = await once.generate([tokens[0]], 4, sampling, start=len(PROMPT))
        assert rest == tokens[1:5]
        once.forget()


@pytest.mark.parametrize(
    "grammar", ["root ::= (", "rood ::= [a]", "root ::= root [a]", "", "root ::= " + "(" * 5000 + "[a]" + ")" * 5000]
)
async def test_a_bad_grammar_is_refused_and_the_engine_goes_on(route: Route, grammar: str) -> None:
    with pytest.raises(UsageError, match="grammar"):
        await route.step(0, PROMPT, sampling=Sampling(grammar=grammar))
    await route.step(0, PROMPT)


async def test_tokens_that_break_their_grammar_are_an_error_and_the_engine_goes_on(route: Route) -> None:
    sampling = Sampling(grammar="root ::= [a]+", prompt_tokens=2)
    with pytest.raises(EngineError, match="grammar"):
        await route.step(0, [40, 41, 42, 43], sampling=sampling)
    await route.step(0, PROMPT)


# -- what is refused ----------------------------------------------------------------------------------------------------------


async def test_more_sequences_than_places_are_told_to_come_back(
    engine: EngineProcess, tiny: SplitModel, new_route: NewRoute
) -> None:
    routes = [new_route() for _ in range(OPTIONS.n_seq)]
    for route in routes:
        await route.step(0, PROMPT)
    late = new_route()
    with pytest.raises(Busy, match="4 sequences") as busy:
        await late.step(0, PROMPT)
    assert busy.value.facts["n_seq"] == 4
    routes[1].forget()
    await late.step(0, PROMPT)
    for route in (*routes, late):
        route.forget()


async def test_a_sequence_that_outgrows_its_context_is_told_so(route: Route) -> None:
    for start in range(0, 256, 64):
        await route.step(start, [40] * 64, samples=False)
    with pytest.raises(ContextExceeded) as error:
        await route.step(256, [40])
    assert error.value.facts["n_ctx"] == 256


async def test_steps_that_make_no_sense_are_refused(engine: EngineProcess, tiny: SplitModel, route: Route) -> None:
    with pytest.raises(EngineError, match="64"):
        await route.step(0, [40] * 65)
    with pytest.raises(EngineError, match="vocabulary"):
        await route.step(0, [100_000])
    with pytest.raises(EngineError, match="vocabulary"):
        await route.step(0, [-1])
    with pytest.raises(ShardNotFound, match="shard 3"):
        await answer_of(engine, *make_step(tiny.model_id, (0, 4), new_id(), 0, [1]))
    with pytest.raises(ShardNotFound):
        await answer_of(engine, *make_step("f" * 64, (0, 1), new_id(), 0, [1]))
    with pytest.raises(EngineError, match="none"):
        await answer_of(engine, *make_step(tiny.model_id, (2, 2), new_id(), 0, [1]))
    with pytest.raises(EngineError, match="hidden"):
        await answer_of(engine, *make_step(tiny.model_id, (1, 2), new_id(), 0, [1]))
    wrong = np.zeros((1, 63), dtype=np.float32)
    with pytest.raises(EngineError, match="hidden"):
        await answer_of(engine, *make_step(tiny.model_id, (1, 2), new_id(), 0, [1], hidden=wrong))


async def test_logits_that_are_not_numbers_are_an_error(engine: EngineProcess, tiny: SplitModel) -> None:
    broken = np.full((1, 64), np.nan, dtype=np.float32)
    step, payloads = make_step(tiny.model_id, (1, 3), new_id(), 0, [1], hidden=broken, samples=True)
    with pytest.raises(EngineError, match="not numbers"):
        await answer_of(engine, step, payloads)
    engine.forget(step.sequence_id)


# -- loading ---------------------------------------------------------------------------------------------------------------


async def test_a_second_load_of_a_loaded_shard_is_answered_at_once(engine: EngineProcess, tiny: SplitModel) -> None:
    first, second = [await engine.load(load_request(tiny, 1)) for _ in range(2)]
    assert first is second


async def test_concurrent_loads_of_one_shard_are_one_load(engine: EngineProcess, tiny: SplitModel) -> None:
    await engine.unload(tiny.model_id, 1)
    loaded = await asyncio.gather(*(engine.load(load_request(tiny, 1)) for _ in range(3)))
    assert loaded[0] is loaded[1] is loaded[2]


async def test_an_unloaded_shard_is_gone_and_can_come_back(
    engine: EngineProcess, tiny: SplitModel, new_route: NewRoute
) -> None:
    route = new_route()
    before, _ = await route.generate(PROMPT, 5)
    await engine.unload(tiny.model_id, 1)
    with pytest.raises(ShardNotFound, match="shard 1"):
        await route.step(len(PROMPT), [1])
    await engine.unload(tiny.model_id, 1)
    await engine.load(load_request(tiny, 1))
    with pytest.raises(SequenceGap):
        await route.step(len(PROMPT), [1])
    assert (await route.generate(PROMPT, 5))[0] == before
    route.forget()


async def test_a_shard_that_is_unloaded_for_a_while_can_keep_its_sequences(tiny: SplitModel) -> None:
    """One shard in memory at a time, as a machine would run a model that is larger than its memory."""
    engine = EngineProcess(ONE_THREAD)
    await engine.start()
    sequence_id, tokens, logits, position, rows = new_id(), [], [], 0, list(PROMPT)
    try:
        for _ in range(20):
            hidden, frame = None, None
            for index in range(3):
                await engine.load(load_request(tiny, index))
                step, payloads = make_step(
                    tiny.model_id,
                    (index, index + 1),
                    sequence_id,
                    position,
                    rows,
                    hidden=hidden,
                    samples=True,
                    return_logits=True,
                )
                frame = await answer_of(engine, step, payloads)
                hidden = hidden_of(frame)
                await engine.unload(tiny.model_id, index, keep_sequences=True)
            assert frame is not None
            tokens.append(frame.message.tokens[0])
            found = logits_of(frame)
            assert found is not None
            logits.append(found[0].copy())
            position, rows = position + len(rows), [tokens[-1]]
        await engine.unload(tiny.model_id, 1)
        await engine.load(load_request(tiny, 1))
        step, payloads = make_step(
            tiny.model_id, (1, 2), sequence_id, position, rows, hidden=np.zeros((1, 64), np.float32)
        )
        with pytest.raises(SequenceGap):
            await answer_of(engine, step, payloads)
    finally:
        await engine.close()
    expected_tokens, expected = plain_logits(tiny.whole, PROMPT, 20)
    assert tokens == expected_tokens
    assert max(np.abs(a - b).max() for a, b in zip(logits, expected, strict=True)) == 0


async def test_other_options_replace_a_shard(engine: EngineProcess, tiny: SplitModel, new_route: NewRoute) -> None:
    small = ShardOptions(n_ctx=64, n_seq=4, n_batch=64)
    await engine.load(load_request(tiny, 2, small))
    route = new_route()
    try:
        with pytest.raises(ContextExceeded, match="64"):
            await route.step(64, [1])
    finally:
        await engine.load(load_request(tiny, 2))


async def test_the_memory_that_is_told_is_llama_cpps_own_account(engine: EngineProcess, tiny: SplitModel) -> None:
    for index, path in enumerate(tiny.shards):
        weights = sum(tensor.nbytes for tensor in read_gguf_header(path).tensors)
        told = (await engine.load(load_request(tiny, index))).answer.memory_bytes
        kv = 2 * 2 * 16 * 2 * 2 * 256 * 4  # f16, k and v, 16 wide, 2 heads, 2 layers, 256 cells, 4 sequences
        assert told > 0.9 * (weights + kv)


async def test_no_room_is_said_before_anything_is_loaded(tiny: SplitModel) -> None:
    engine = EngineProcess(InferenceSettings(threads=1, memory_limit_bytes=1_000_000))
    await engine.start()
    try:
        with pytest.raises(NoRoomError, match="limit") as error:
            await engine.load(load_request(tiny, 0, ShardOptions(n_ctx=4096, n_seq=64)))
        needed, free = error.value.facts["needed_bytes"], error.value.facts["free_bytes"]
        assert isinstance(needed, int)
        assert needed > 50_000_000
        assert free == 1_000_000
    finally:
        await engine.close()


async def test_more_memory_than_the_machine_has_is_no_room(engine: EngineProcess, tiny: SplitModel) -> None:
    other = SplitModel("d" * 64, tiny.whole, tiny.shards)
    with pytest.raises(NoRoomError, match="free"):
        await engine.load(load_request(other, 0, ShardOptions(n_ctx=1 << 20, n_seq=256)))


async def test_files_that_are_no_shard_are_refused_by_name(engine: EngineProcess, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.gguf"
    rubbish.write_bytes(b"not a model" * 100)
    for path, kind in ((rubbish, GgufError), (tmp_path / "missing.gguf", UsageError)):
        request = Load(command_id=new_id(), model_id="c" * 64, shard_id=0, path=str(path), options=OPTIONS)
        with pytest.raises(kind, match=path.name):
            await engine.load(request)


async def test_a_truncated_shard_is_refused(engine: EngineProcess, tiny: SplitModel, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.shards[0].read_bytes()[:-5000])
    request = Load(command_id=new_id(), model_id="c" * 64, shard_id=0, path=str(cut), options=OPTIONS)
    with pytest.raises(GgufError, match="truncated"):
        await engine.load(request)


# -- life -------------------------------------------------------------------------------------------------------------------


async def test_the_report_counts_sequences_and_busy_time(engine: EngineProcess, route: Route) -> None:
    before = await engine.report()
    await route.step(0, PROMPT)
    after = await engine.report()
    assert after.sequences == before.sequences + 1
    assert after.busy_s > before.busy_s
    assert after.devices[0].name == "CPU"
    assert 0 < after.devices[0].free_bytes <= after.devices[0].total_bytes


async def test_close_ends_the_process() -> None:
    engine = EngineProcess(ONE_THREAD)
    pid = (await engine.start()).pid
    assert psutil.pid_exists(pid)
    await engine.close()
    assert not psutil.pid_exists(pid)
    await engine.close()
