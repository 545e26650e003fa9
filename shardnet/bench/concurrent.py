"""Many streams at once over pinned stages beside plain llama.cpp that batches as many, and long prompts beside plain llama.cpp's prefill.

A pipeline of `k` stages with `t` threads each is held against plain llama.cpp with `k * t` threads: all stages work at the same time here.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from shardnet.bench.driver import DrivenRun
from shardnet.bench.plain import BatchedRun, PlainLlama
from shardnet.bench.rows import Row, predicted, spread
from shardnet.bench.terms import Terms
from shardnet.bench.world import Pipeline, World, prompt_of, recut
from shardnet.coordinator.placement.chunks import USUAL, choose
from shardnet.errors import ParityError
from shardnet.messages import ShardOptions
from shardnet.steps import StageTiming

STREAM_PROMPT_TOKENS = 16
"""Short, so that all streams are soon decoding."""
PACE_TOKENS = 40
"""By which stages are balanced."""
MOST_CHUNK = 512
FEW_TOKENS = 9
"""Of a warm-up, so that nodes have decode steps to tell of too."""


async def many_streams(terms: Terms, streams: Sequence[int], n_tokens: int) -> None:
    """Measure the decode speed of all streams together, for each number of them.

    All start at once, each with a prompt of its own; what counts are the tokens that come while every stream is decoding. Batches of several rows
    are not computed bit for bit as single ones are (in plain llama.cpp neither), so equal answers are counted, not demanded.
    """
    options = ShardOptions(n_ctx=max(512, STREAM_PROMPT_TOKENS + n_tokens), n_seq=max(streams))
    prompts = [prompt_of(terms.seed + number, STREAM_PROMPT_TOKENS) for number in range(max(streams))]
    pipelines = terms.cut()
    paced: dict[tuple[int, int], Pipeline] = {}
    async with terms.world("loopback", pipelines, options, name="paces") as world:
        for pipeline in pipelines:
            for count in streams:  # the head takes another share of larger batches
                runs = await _all_at_once(world, pipeline, prompts[:count], PACE_TOKENS, options)
                times = row_us(steps_within(runs, *all_decoding(runs)))
                paced[pipeline.stages, count] = recut(terms.model, terms.cache, pipeline, times)
    cuts = list({one.manifest.model_id: one for one in paced.values()}.values())
    for net in terms.nets:
        async with terms.world(net, cuts, options) as world:
            for (_, count), pipeline in paced.items():
                await _all_at_once(world, pipeline, prompts[:count], n_tokens, options)
            for (_, count), pipeline in paced.items():
                total = terms.threads * pipeline.stages
                plain_speeds, speeds, same = [], [], []
                with PlainLlama(terms.model, threads=total, n_ctx=options.n_ctx, n_seq=count) as plain:
                    plain.generate_batched(prompts[:count], 8)  # warm-up
                    for _ in range(terms.rounds):
                        expected = plain.generate_batched(prompts[:count], n_tokens)
                        runs = await _all_at_once(world, pipeline, prompts[:count], n_tokens, options)
                        plain_speeds.append(expected.tokens_per_s)
                        speeds.append(together_per_s(runs))
                        same.append(_share_equal(expected, runs))
                await world.driver.wait_beats()  # what nodes tell now, of the same weather
                law, measured = world.law(pipeline), statistics.median(speeds)
                ratios = [speed / plain for speed, plain in zip(speeds, plain_speeds, strict=True)]
                figures = {
                    "stages": pipeline.stages,
                    "streams": count,
                    "tokens": n_tokens,
                    **spread("tokens_per_s", speeds),
                    **predicted("tokens_per_s", law.tokens_per_s(count), measured),
                    "plain_threads": total,
                    "plain_tokens_per_s": round(statistics.median(plain_speeds), 2),
                    **spread("ratio", ratios, 3),
                    **batching(runs),
                    "same_answers": round(statistics.fmean(same), 2),
                    "rounds": terms.rounds,
                }
                terms.tell("streams", net, figures)


async def _all_at_once(
    world: World, pipeline: Pipeline, prompts: Sequence[list[int]], n_tokens: int, options: ShardOptions
) -> list[DrivenRun]:
    generate = world.driver.generate
    return await asyncio.gather(
        *(generate(pipeline.manifest, pipeline.route, prompt, n_tokens, options=options) for prompt in prompts)
    )


def all_decoding(runs: Sequence[DrivenRun]) -> tuple[float, float]:
    """Returns: when the last of the runs had its first token, and when the first of them ended; where that is no time at all, from the very first to
    the very last token."""
    first = [run.started_at_s + run.first_token_s for run in runs]
    begin_s, end_s = max(first), min(run.at_s for run in runs)
    return (begin_s, end_s) if begin_s < end_s else (min(first), max(run.at_s for run in runs))


def steps_within(runs: Sequence[DrivenRun], begin_s: float, end_s: float) -> list[tuple[StageTiming, ...]]:
    """Returns: what the stages spent on each decode step whose token came within this time."""
    found = []
    for run in runs:
        ends = accumulate(run.step_s, initial=run.started_at_s + run.first_token_s)
        found += [timing for at_s, timing in zip(ends, run.timings, strict=True) if begin_s < at_s <= end_s]
    return found


def batching(runs: Sequence[DrivenRun]) -> Row:
    """Returns: while all runs were decoding: mean rows of a stage's batches, the share of steps in batches of each size, how busy each stage was."""
    begin_s, end_s = all_decoding(runs)
    steps = steps_within(runs, begin_s, end_s)
    sizes = Counter(timing.batch_tokens for step in steps for timing in step)
    n_batches, n_steps = sum(count / size for size, count in sizes.items()), sum(sizes.values())
    busy_us = [len(steps) * each for each in row_us(steps)]
    return {
        "batch_rows": round(n_steps / n_batches, 2),
        "batch_sizes": {str(size): round(count / n_steps, 2) for size, count in sorted(sizes.items())},
        "stage_busy": [round(each * 1e-6 / (end_s - begin_s), 2) for each in busy_us],
    }


def row_us(steps: Sequence[tuple[StageTiming, ...]]) -> list[float]:
    """Returns: microseconds that each stage took for a row of these steps."""
    return [
        statistics.fmean(step[stage].compute_us / step[stage].batch_tokens for step in steps)
        for stage in range(len(steps[0]))
    ]


def together_per_s(runs: Sequence[DrivenRun]) -> float:
    """Returns: tokens per second of all runs together, while all of them were decoding."""
    begin_s, end_s = all_decoding(runs)
    return len(steps_within(runs, begin_s, end_s)) / (end_s - begin_s)


def _share_equal(expected: BatchedRun, runs: Sequence[DrivenRun]) -> float:
    return statistics.fmean(run.tokens == tokens for run, tokens in zip(runs, expected.tokens, strict=True))


async def long_prompt(terms: Terms, prompt_tokens: int, chunk: int | None) -> None:
    """Measure the time to the first token of a long prompt in chunks.

    Plain llama.cpp takes the same prompt in batches of the same size: they are quicker for it, too, than its default of 512.

    Args:
        chunk: tokens that go through the stages at a time; None: chosen for each pipeline as the coordinator would.

    Raises: ParityError if the first token is another than plain llama.cpp's.
    """
    options = ShardOptions(n_ctx=prompt_tokens + 16, n_seq=1, n_batch=min(chunk or MOST_CHUNK, prompt_tokens))
    pipelines = terms.cut()
    prompt = prompt_of(terms.seed, prompt_tokens)
    with PlainLlama(terms.model, threads=0, n_ctx=options.n_ctx, n_batch=options.n_batch) as plain:
        expected = plain.expected(prompt, 1)
    for net in terms.nets:
        async with terms.world(net, pipelines, options) as world:

            async def once(pipeline: Pipeline, size: int, n_tokens: int = 1, world: World = world) -> float:
                run = await world.driver.generate(
                    pipeline.manifest, pipeline.route, prompt, n_tokens, options=options, chunk=size
                )
                if run.tokens[:1] != expected:
                    raise ParityError(f"{pipeline.stages} stages give another first token than plain llama.cpp")
                return run.first_token_s

            for pipeline in pipelines:
                await once(pipeline, chunk or USUAL, FEW_TOKENS)
            await world.driver.wait_beats()
            for pipeline in pipelines:
                size = chunk or choose(world.law(pipeline), prompt_tokens, options.n_batch).alone
                total = terms.threads * pipeline.stages
                times, plain_times = [], []
                with PlainLlama(terms.model, threads=total, n_ctx=options.n_ctx, n_batch=size) as plain:
                    plain.generate(prompt, 1)  # warm-up
                    for _ in range(terms.rounds):
                        plain_times.append(plain.generate(prompt, 1).prefill_s)
                        times.append(await once(pipeline, size))
                await world.driver.wait_beats()  # what nodes tell now, of the same weather
                law, measured = world.law(pipeline), statistics.median(times)
                figures = {
                    "stages": pipeline.stages,
                    "prompt_tokens": prompt_tokens,
                    "chunk": size,
                    **spread("first_token_s", times, 4),
                    "tokens_per_s": round(prompt_tokens / measured, 1),
                    **predicted("first_token_s", law.first_token_s(prompt_tokens, size), measured, 4),
                    "plain_threads": total,
                    "plain_first_token_s": round(statistics.median(plain_times), 4),
                    **spread("ratio", [plain / ours for plain, ours in zip(plain_times, times, strict=True)], 3),
                    "rounds": terms.rounds,
                    "parity": "identical",
                }
                terms.tell("prefill", net, figures)
