"""What a decode step of so many rows takes, of one sequence each, in plain llama.cpp: what no way of passing rows between stages can go beyond.

python -m tests.bench.bench_rows MODEL.gguf [--rows 1,2,4,8,16] [--depth 64] [--steps 9]

Several streams over several stages travel in as many groups as there are stages, so each stage computes few rows at a time, where one machine with as
many cores computes all of them at once. For each number of rows a JSON line: milliseconds on one core with one thread, on one while another process
does the same on the other core (`both`), and on two cores with two threads, without flash attention (`two`) and as llama.cpp comes (`flash`), medians
of steps in turns; and `bound`: two stages of one thread each, both equally long and never idle, that answer twice as many streams, over one machine
with two threads that answers those: 2 x rows / both(rows) over 2 x rows / two(2 x rows). `bound_flash` is the same over `flash`.

Cores are never quite apart: they share the memory, and virtual ones may be two hardware threads of one core, for minutes at a time. So `both_most`
tells the longest step, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np

from shardnet.inference.llama.batch import Rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel

TOKEN = 200
WAYS: dict[str, int] = {"one": 1, "both": 1, "two": 2, "flash": 2}
"""Threads of each."""


class Streams:
    """Sequences in one context, each of so many tokens.

    Args:
        depth: tokens of each.
    """

    def __init__(self, context: LlamaContext, count: int, depth: int) -> None:
        self._context, self._depth = context, depth
        for slot in range(count):
            positions = np.arange(depth, dtype=np.int32)
            tokens = np.arange(TOKEN, TOKEN + depth, dtype=np.int32)
            self._context.decode(
                Rows(positions, np.full(depth, slot, dtype=np.int32), np.zeros(depth, dtype=np.bool_), tokens=tokens)
            )

    def step(self, rows: int) -> float:
        """One row behind each of the first sequences, which is forgotten then. Returns: seconds, until the logits are there."""
        positions = np.full(rows, self._depth, dtype=np.int32)
        tokens = np.full(rows, TOKEN, dtype=np.int32)
        slots, outputs = np.arange(rows, dtype=np.int32), np.ones(rows, dtype=np.bool_)
        began_s = time.perf_counter()
        self._context.decode(Rows(positions, slots, outputs, tokens=tokens))
        self._context.logits(rows - 1)
        took_s = time.perf_counter() - began_s
        for slot in range(rows):
            self._context.truncate(slot, self._depth)
        return took_s


def accompany(model: Path, core: int, most: int, depth: int, n_ctx: int, link: Connection) -> None:
    """Serve a process on another core: for each number of rows that comes, compute steps of so many until anything else comes."""
    os.sched_setaffinity(0, [core])
    with LlamaModel(model) as llama, context_of(llama, 1, most, depth, n_ctx) as context:
        streams = Streams(context, most, depth)
        link.send(None)
        while rows := link.recv():
            link.send(None)
            while not link.poll():
                streams.step(rows)
            link.recv()
            link.send(None)


def context_of(
    llama: LlamaModel, threads: int, most: int, depth: int, n_ctx: int, *, flash: bool = False
) -> LlamaContext:
    """Returns: room for so many sequences."""
    return LlamaContext(llama, n_ctx=n_ctx, n_seq=most, n_batch=max(depth, most), threads=threads, flash=flash)


def measure(model: Path, rows: Sequence[int], depth: int, steps: int) -> dict[tuple[str, int], list[float]]:
    """Returns: (way, rows) -> seconds of each step."""
    cores = sorted(os.sched_getaffinity(0))
    most, n_ctx = max(rows), depth + 1
    found: dict[tuple[str, int], list[float]] = {}
    spawn = multiprocessing.get_context("spawn")
    link, theirs = spawn.Pipe()
    companion = spawn.Process(target=accompany, args=(model, cores[1], most, depth, n_ctx, theirs))
    companion.start()
    try:
        with ExitStack() as resources:
            llama = resources.enter_context(LlamaModel(model))
            streams = {
                way: Streams(
                    resources.enter_context(context_of(llama, threads, most, depth, n_ctx, flash=way == "flash")),
                    most,
                    depth,
                )
                for way, threads in WAYS.items()
            }
            link.recv()
            for _ in range(steps):
                for count in rows:
                    for way, threads in WAYS.items():
                        os.sched_setaffinity(0, cores[:threads])
                        if way == "both":
                            link.send(count)
                            link.recv()
                        found.setdefault((way, count), []).append(streams[way].step(count))
                        if way == "both":
                            link.send(0)
                            link.recv()
    finally:
        companion.kill()
        companion.join()
    return {key: times[1:] for key, times in found.items()}


def main() -> None:
    """Print a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", default="1,2,3,4,6,8,16")
    parser.add_argument("--depth", type=int, default=64, help="tokens of each sequence")
    parser.add_argument("--steps", type=int, default=9, help="of each kind; the first one does not count")
    asked = parser.parse_args()
    rows = [int(word) for word in asked.rows.split(",")]
    found = measure(asked.model, rows, asked.depth, asked.steps)
    for count in rows:
        taken = {way: found[way, count] for way in WAYS}
        facts = {f"ms_{way}": round(1e3 * median(times), 1) for way, times in taken.items()}
        facts["ms_both_most"] = round(1e3 * max(taken["both"]), 1)
        if 2 * count in rows:
            facts["bound"], facts["bound_flash"] = (
                round(median(found[way, 2 * count]) / median(taken["both"]), 3) for way in ("two", "flash")
            )
        print(json.dumps({"bench": "rows", "model": asked.model.stem, "rows": count} | facts), flush=True)


if __name__ == "__main__":
    main()
