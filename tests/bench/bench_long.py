"""A long prompt and decoding behind it: two nodes of one core and one thread each beside plain llama.cpp on both. Prints JSON lines, and on standard
error how far it is.

    python -m tests.bench.bench_long [MODEL.gguf] [--prompt 16000] [--tokens 64] [--rounds 5] [--cut layers] [--sides plain,flash] [--chunk N]

Run it from the repository's root. Within each round all sides take the same prompt, one after the other; figures are medians over the rounds, ratios
are taken within a round. `plain` is llama.cpp without flash attention, which has our bits, in batches of our chunk's size, with two threads for the
prompt and one for the decoding (one stream keeps one of two stages busy). `flash` is llama.cpp as it comes: flash attention, batches of 512.

`--cut layers` gives both nodes equally many layers, which is best for prompts, since the head is computed for their last row only; `speed` makes even
what a decode step reads, `memory` what is stored, as `shardnet split` does.

No parity, no number: an answer of ours that differs from `plain`'s in any token ends the bench with exit code 4. Without `plain` nothing is compared,
and the line says so. Memory is the peak of each node's engine (VmHWM, pages of the mapped file included) less what it had before its shard was
loaded, beside what the planner reckons with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import psutil

from shardnet.bench.driver import DrivenRun
from shardnet.bench.netem import NETS
from shardnet.bench.plain import PlainLlama, PlainRun
from shardnet.bench.rows import Row, spread
from shardnet.bench.world import Pipeline, World, cut, prompt_of
from shardnet.coordinator.placement.assign import memory_needed
from shardnet.coordinator.placement.chunks import choose
from shardnet.errors import ParityError
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.llama.thread_choice import ThreadChoice
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from shardnet.inference.splitting.plan import BALANCES, Balance
from shardnet.local.model import find_demo_model
from shardnet.messages import ShardOptions
from shardnet.scratch import scratch_folder
from tests.support.bench_cli import exit_code_of, listed, progress

CORES = 2
SIDES = ("plain", "flash")
WARM_UP_TOKENS = 600
"""Enough for several chunks, so that nodes have batches of that size to tell of."""
USUAL_BATCH = 512


class BothForPrompts(ThreadChoice):
    """Two threads for prompts, one for single rows."""

    def __init__(self) -> None:
        super().__init__(CORES, learns=False)

    def threads(self, what: object, rows: int, position: int = 0) -> int:
        """Returns: threads for a batch of so many rows."""
        return 1 if rows == 1 else CORES


def halves(model: Path, cache: Path, by: Balance | Literal["layers"]) -> Pipeline:
    """Returns: a model in two shards."""
    if by != "layers":
        return cut(model, cache, [CORES], by)[0]
    request = CutRequest(cuts=(read_model(model).n_layers // CORES,))
    return Pipeline(CORES, split_model(plan_split(model, request, "bench-layers"), cache)[1])


def resident(world: World) -> dict[str, dict[str, int]]:
    """Returns: node -> of its engine, bytes: the most it ever had, and what of it is no file."""
    found = {}
    for name, pid in world.pids.items():
        engines = psutil.Process(pid).children(recursive=True)
        lines = [Path(f"/proc/{one.pid}/status").read_text().splitlines() for one in engines]
        facts = [dict(line.split(":", 1) for line in each) for each in lines]
        found[name] = {
            key: 1024 * max(int(each[key].split()[0]) for each in facts if key in each) for key in ("VmHWM", "RssAnon")
        }
    return found


def ours(run: DrivenRun) -> dict[str, float]:
    """Returns: seconds to the first token, and tokens per second behind it."""
    return {"first_token_s": run.first_token_s, "decode_tokens_per_s": len(run.step_s) / sum(run.step_s)}


def theirs(run: PlainRun) -> dict[str, float]:
    """As `ours`."""
    return {"first_token_s": run.prefill_s, "decode_tokens_per_s": run.decode_tokens_per_s}


async def measure(model: Path, work: Path, arguments: argparse.Namespace) -> Row:
    """Run the rounds. Returns: the result. Raises: ParityError."""
    n_tokens, prompt = arguments.tokens, prompt_of(arguments.seed, arguments.prompt)
    options = ShardOptions(n_ctx=len(prompt) + n_tokens + 8, n_seq=1)
    pipeline = halves(model, work / "cache", arguments.cut)
    rounds: dict[str, list[dict[str, float]]] = {"shardnet": [], **{side: [] for side in arguments.sides}}
    same_as_flash = []
    async with World(work, work / "cache", CORES, threads=1, shape=NETS["loopback"], pin=True) as world:
        before = resident(world)
        await world.load([pipeline], options)

        async def once(tokens: list[int], count: int, chunk: int) -> DrivenRun:
            return await world.driver.generate(
                pipeline.manifest, pipeline.route, tokens, count, options=options, chunk=chunk
            )

        for size in (128, 64):
            await once(prompt[:WARM_UP_TOKENS], min(24, n_tokens + 1), size)  # what a short context has room for
        await world.driver.wait_beats()
        law = world.law(pipeline)
        chunk = arguments.chunk or choose(law, len(prompt), options.n_batch).alone
        predicted_s = law.first_token_s(len(prompt), chunk)
        progress(f"up; chunks of {chunk}; the first token is expected after {predicted_s:.1f} s")
        for _ in range(arguments.rounds):
            answers: dict[str, list[int]] = {}
            for side in arguments.sides:
                with PlainLlama(
                    model,
                    threads=BothForPrompts(),
                    n_ctx=options.n_ctx,
                    n_batch=USUAL_BATCH if side == "flash" else chunk,
                    flash=side == "flash",
                ) as plain:
                    plain.generate(prompt[:WARM_UP_TOKENS], 2)
                    told = await asyncio.to_thread(plain.generate, prompt, n_tokens + 1)
                answers[side] = told.tokens
                rounds[side].append(theirs(told))
                progress(f"{side} {rounds[side][-1]}")
            run = await once(prompt, n_tokens + 1, chunk)
            rounds["shardnet"].append(ours(run))
            progress(f"shardnet {rounds['shardnet'][-1]}")
            if "plain" in answers and run.tokens != answers["plain"]:
                raise ParityError("the nodes gave other tokens than plain llama.cpp")
            if "flash" in answers:
                pairs = zip(run.tokens, answers["flash"], strict=True)
                same_as_flash.append(next((at for at, (a, b) in enumerate(pairs) if a != b), len(run.tokens)))
        after = resident(world)
        await world.driver.wait_beats()
        held = {beat: {one.shard_id: one for one in told.held} for beat, told in world.driver.beats.items()}
    figures: Row = {
        "bench": "long",
        "model": model.stem,
        "prompt_tokens": len(prompt),
        "tokens": n_tokens,
        "cut": arguments.cut,
        "layers": [len(shard.layers) for shard in pipeline.manifest.content.shards],
        "chunk": chunk,
        "rounds": arguments.rounds,
        "parity": "identical" if "plain" in arguments.sides else "not compared",
        "load": round(os.getloadavg()[0], 1),
        "predicted_first_token_s": round(predicted_s, 2),
    }
    for side, each in rounds.items():
        figures[side] = {
            key: value for name in each[0] for key, value in spread(name, [one[name] for one in each]).items()
        }
        if side != "shardnet":
            figures[f"over_{side}"] = {
                "prompt": spread("ratio", ratios(rounds, side, "first_token_s", faster_is_less=True), 3),
                "decode": spread("ratio", ratios(rounds, side, "decode_tokens_per_s", faster_is_less=False), 3),
            }
    if same_as_flash:
        figures["first_token_unlike_flash"] = same_as_flash
    figures["memory_mb"] = {
        node: {
            "peak": megabytes(after[node]["VmHWM"] - before[node]["RssAnon"]),
            "no_file": megabytes(after[node]["RssAnon"] - before[node]["RssAnon"]),
            "planned": megabytes(memory_needed(pipeline.manifest, shard, options)),
            "reserved_by_node": megabytes(held[node][shard].memory_bytes),
        }
        for node, shard, _ in pipeline.route
    }
    return figures


def ratios(rounds: dict[str, list[dict[str, float]]], side: str, name: str, *, faster_is_less: bool) -> list[float]:
    """Returns: how many times as quick as a side we were, in each round."""
    pairs = [(mine[name], yours[name]) for mine, yours in zip(rounds["shardnet"], rounds[side], strict=True)]
    return [yours / mine if faster_is_less else mine / yours for mine, yours in pairs]


def megabytes(nbytes: int) -> float:
    """Returns: so many MB."""
    return round(nbytes / 1e6, 1)


def main() -> int:
    """The command line. Returns: the exit code."""
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--prompt", type=int, default=16_000, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="that are decoded behind the first one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cut", choices=("layers", *BALANCES), default="layers")
    parser.add_argument("--sides", type=listed(SIDES), default=list(SIDES), help="beside shardnet, in this order")
    parser.add_argument("--chunk", type=int, default=0, help="tokens at a time; else as the coordinator would choose")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < CORES:
        parser.error(f"{CORES} cores are needed")

    def run() -> None:
        with scratch_folder("bench") as work:
            print(json.dumps(asyncio.run(measure(arguments.model or find_demo_model(), work, arguments))), flush=True)

    return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main())
