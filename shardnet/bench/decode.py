"""One stream: decode speed over nodes beside plain llama.cpp and beside the planner's prediction, on each network; and one step taken apart.

Every round measures plain llama.cpp and then each pipeline, so that both see the same weather; the figures are medians over rounds.
No parity, no number: a pipeline whose tokens differ from plain llama.cpp's is reported as an error, without a speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from shardnet.bench.driver import DrivenRun
from shardnet.bench.plain import PlainLlama, PlainRun
from shardnet.bench.rows import Row, predicted, spread
from shardnet.bench.terms import Terms
from shardnet.bench.world import Pipeline, World, prompt_of
from shardnet.errors import ParityError
from shardnet.messages import ShardOptions
from shardnet.steps import StageTiming

PROMPT_TOKENS = 64
LONGEST_RUN_S = 4.0
"""On slow networks a run has fewer tokens."""
FEWEST_TOKENS = 12


@dataclass(frozen=True)
class HopCost:
    """Median microseconds of one decode step, by part."""

    total_us: float
    compute_us: float
    engine_us: float
    queue_us: float
    network_us: float
    hops: int

    @classmethod
    def of(cls, runs: Sequence[DrivenRun], stages: int) -> HopCost:
        """`network_us` is what neither llama.cpp nor the way to the engine explains: links, TLS, event loops, framing."""
        steps = [(wall * 1e6, timing) for run in runs for wall, timing in zip(run.step_s, run.timings[1:], strict=True)]

        def median(of: Callable[[StageTiming], float]) -> float:
            return statistics.median(sum(of(stage) for stage in timing) for _, timing in steps)

        total = statistics.median(wall for wall, _ in steps)
        compute, engine, queue = (
            median(lambda t: t.compute_us),
            median(lambda t: t.engine_us),
            median(lambda t: t.queue_us),
        )
        hops = stages if stages > 1 else 0
        return cls(total, compute, engine, queue, max(0.0, total - compute - engine - queue), hops)


async def decode_speed(terms: Terms, n_tokens: int) -> None:
    """Measure each number of stages on each network against plain llama.cpp with the threads of one stage: one stream keeps one busy at a time.

    Raises: ParityError if any answer differs from plain llama.cpp's.
    """
    prompt, options = prompt_of(terms.seed, PROMPT_TOKENS), ShardOptions(n_ctx=1024, n_seq=1)
    pipelines = terms.cut()
    with PlainLlama(terms.model, threads=terms.threads, n_ctx=options.n_ctx) as plain:
        for net in terms.nets:
            async with terms.world(net, pipelines, options) as world:
                measure = _Measure(world, plain, prompt, options)
                for pipeline in pipelines:  # warm-up
                    await measure.run(pipeline, min(n_tokens, 2 * FEWEST_TOKENS))
                await world.driver.wait_beats()
                counts = {
                    one.stages: min(n_tokens, max(FEWEST_TOKENS, round(LONGEST_RUN_S / world.law(one).token_s())))
                    for one in pipelines
                }
                plain_runs: list[PlainRun] = []
                runs: dict[int, list[DrivenRun]] = {count: [] for count in terms.stages}
                for _ in range(terms.rounds):
                    plain_runs.append(plain.generate(prompt, n_tokens))
                    for pipeline in pipelines:
                        runs[pipeline.stages].append(await measure.run(pipeline, counts[pipeline.stages]))
                await world.driver.wait_beats()  # what nodes tell now, of the same weather
                laws = {one.stages: world.law(one).token_s() for one in pipelines}
                unseen = _unseen(world, pipelines)
                for row in _rows(plain_runs, runs, laws):
                    row |= {"predicted_unseen_ms_per_token": unseen.get(row["stages"])}
                    terms.tell("decode", net, row | {"links": world.links_json()})


def _unseen(world: World, pipelines: Sequence[Pipeline]) -> dict[int, float]:
    """Returns: stages -> milliseconds per token of splits, predicted as if none had been run: from how quick the whole model is on one node."""
    whole = [one for one in pipelines if one.stages == 1]
    if not whole:
        return {}
    pace = replace(world.pace("node-0", whole[0].manifest), handover_s=None)
    return {one.stages: round(world.law(one, pace).token_s() * 1e3, 3) for one in pipelines if one.stages > 1}


@dataclass(frozen=True)
class _Measure:
    world: World
    plain: PlainLlama
    prompt: list[int]
    options: ShardOptions

    async def run(self, pipeline: Pipeline, n_tokens: int) -> DrivenRun:
        """Returns: one run, as long as its tokens are plain llama.cpp's. Raises: ParityError."""
        run = await self.world.driver.generate(
            pipeline.manifest, pipeline.route, self.prompt, n_tokens, options=self.options
        )
        if run.tokens != self.plain.expected(self.prompt, n_tokens):
            raise ParityError(f"{pipeline.stages} stages give other tokens than plain llama.cpp: no speed is reported")
        return run


def _rows(plain_runs: Sequence[PlainRun], runs: dict[int, list[DrivenRun]], laws: dict[int, float]) -> Iterator[Row]:
    plain_speeds = [run.decode_tokens_per_s for run in plain_runs]
    for stages, driven in runs.items():
        speeds = [len(run.step_s) / sum(run.step_s) for run in driven]
        ratios = [speed / plain for speed, plain in zip(speeds, plain_speeds, strict=True)]
        measured_ms = 1e3 / statistics.median(speeds)
        yield {
            "stages": stages,
            "tokens": len(driven[0].tokens),
            **spread("tokens_per_s", speeds),
            **spread("ms_per_token", [1e3 / speed for speed in speeds], 3),
            **predicted("ms_per_token", laws[stages] * 1e3, measured_ms),
            "plain_tokens_per_s": round(statistics.median(plain_speeds), 2),
            **spread("ratio", ratios, 3),
            "rounds": len(driven),
            "parity": "identical",
            "step": {key: round(value, 1) for key, value in asdict(HopCost.of(driven, stages)).items()},
        }
