"""What a decode step of so many rows takes, of one sequence each, in plain llama.cpp: what no way of passing rows between stages can go beyond.

python -m tests.bench.bench_rows MODEL.gguf [--rows 1,2,4,8,16] [--depth 64] [--steps 9]

Several streams over several stages travel in as many groups as there are stages, so each stage computes few rows at a time, where one machine with as
many cores computes all of them at once. For each number of rows a JSON line: milliseconds on one core with one thread and on two with two, medians
of steps in turns; and `bound`: two stages of one thread each, both equally long and never idle, that answer twice as many streams, over one machine
with two threads that answers those: 2 x rows / one(rows) over 2 x rows / two(2 x rows).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from shardnet.inference.llama.batch import Rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel

TOKEN = 200
CORES = (1, 2)


class Streams:
    """Sequences in one context, that all grow together.

    Args:
        depth: tokens that each begins with.
    """

    def __init__(self, context: LlamaContext, count: int, depth: int) -> None:
        self._context = context
        self._depth = np.full(count, depth, dtype=np.int32)
        for slot in range(count):
            positions = np.arange(depth, dtype=np.int32)
            tokens = np.arange(TOKEN, TOKEN + depth, dtype=np.int32)
            self._context.decode(
                Rows(positions, np.full(depth, slot, dtype=np.int32), np.zeros(depth, dtype=np.bool_), tokens=tokens)
            )

    def step(self, rows: int) -> float:
        """One row of each of the first sequences. Returns: seconds, until the logits are there."""
        slots = np.arange(rows, dtype=np.int32)
        tokens = np.full(rows, TOKEN, dtype=np.int32)
        began_s = time.perf_counter()
        self._context.decode(Rows(self._depth[:rows].copy(), slots, np.ones(rows, dtype=np.bool_), tokens=tokens))
        self._context.logits(rows - 1)
        took_s = time.perf_counter() - began_s
        self._depth[:rows] += 1
        return took_s


def measure(model: Path, rows: Sequence[int], depth: int, steps: int) -> dict[tuple[int, int], float]:
    """Returns: (threads, rows) -> median seconds of a step."""
    cores = sorted(os.sched_getaffinity(0))
    most = max(rows)
    n_ctx = depth + steps * len(rows)
    found: dict[tuple[int, int], list[float]] = {}
    with ExitStack() as resources:
        llama = resources.enter_context(LlamaModel(model))
        streams = {
            threads: Streams(
                resources.enter_context(
                    LlamaContext(llama, n_ctx=n_ctx, n_seq=most, n_batch=max(depth, most), threads=threads)
                ),
                most,
                depth,
            )
            for threads in CORES
        }
        for _ in range(steps):
            for count in rows:
                for threads, several in streams.items():
                    os.sched_setaffinity(0, cores[:threads])
                    found.setdefault((threads, count), []).append(several.step(count))
    return {key: median(times[1:]) for key, times in found.items()}


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
        facts = {f"ms_{threads}": round(1e3 * found[threads, count], 1) for threads in CORES}
        facts |= {f"ms_a_row_{threads}": round(1e3 * found[threads, count] / count, 1) for threads in CORES}
        if 2 * count in rows:
            facts["bound"] = round(found[2, 2 * count] / found[1, count], 3)
        print(json.dumps({"bench": "rows", "model": asked.model.stem, "rows": count} | facts), flush=True)


if __name__ == "__main__":
    main()
