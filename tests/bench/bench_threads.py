"""Threads on a busy machine: decoding and prompts with each fixed number of threads, and with the number that the engine learns, in turns.

python -m tests.bench.bench_threads MODEL.gguf [--loops 0,1,2] [--rounds 5] [--tokens 48] [--pool FOLDER]

For each number of busy loops beside it, a JSON line for each way: its medians and its share of the best fixed number's. Each way is a process of its
own, with the environment of an engine; `plain` is llama.cpp as it comes: all threads, OpenMP's own waiting. All tokens have to be the same.

`--pool` adds llama.cpp's own thread pool in place of OpenMP, all threads, by how long it polls: from a folder with libllama.so and libggml*.so that
were built with `cmake -DGGML_OPENMP=OFF -DBUILD_SHARED_LIBS=ON` of the sources in llama-cpp-python's source package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from shardnet.bench.plain import PlainLlama
from shardnet.children import python_module
from shardnet.errors import ParityError
from shardnet.inference.engine.spawning import CHILD_ENVIRONMENT
from shardnet.inference.llama.devices import usable_threads
from shardnet.inference.llama.thread_choice import ThreadChoice
from tests.support.bench_cli import exit_code_of, progress
from tests.support.thread_pool import LIBRARIES, attach

POLLS = (0, 50, 100)
"""Sleep at once; llama.cpp's default; as long as it goes."""
PROMPT = [(17 * place) % 900 + 100 for place in range(192)]


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Processes that never rest."""
    running = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(loops)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def one_way(model: Path, threads: int, poll: int | None, tokens: int, rounds: int) -> None:
    """Serve turns: a line in, a line with what the next generation took out. `threads`: 0: as many as is learnt. `poll`: of a pool of them."""
    with PlainLlama(model, threads=threads or ThreadChoice(usable_threads()), n_ctx=1024, n_batch=64) as llama:
        if poll is not None:
            attach(llama.context.pointer, threads, poll)
        for _ in range(rounds):
            if not sys.stdin.readline():
                return
            began_s = time.perf_counter()
            run = llama.generate(PROMPT, tokens)
            whole_s = time.perf_counter() - began_s
            fact = {"decode": run.decode_tokens_per_s, "prompt": len(PROMPT) / run.prefill_s, "s": whole_s}
            print(json.dumps(fact | {"tokens": run.tokens}), flush=True)


def measure(model: Path, loops: int, rounds: int, tokens: int, pool: Path | None) -> list[dict[str, Any]]:
    """Returns: a row for each way."""
    plain = {name: value for name, value in os.environ.items() if name not in CHILD_ENVIRONMENT}
    ours, every = dict(os.environ) | CHILD_ENVIRONMENT, ("--way", str(usable_threads()))
    ways: dict[str, tuple[tuple[str, ...], dict[str, str]]]
    ways = {f"{count} threads": (("--way", str(count)), ours) for count in range(1, usable_threads() + 1)}
    ways |= {"plain": (every, plain), "learnt": (("--way", "0"), ours)}
    if pool is not None:
        of_pool = plain | {LIBRARIES: str(pool.resolve())}
        ways |= {f"pool, poll {poll}": ((*every, "--poll", str(poll)), of_pool) for poll in POLLS}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    limits = ("--rounds", str(rounds), "--tokens", str(tokens))
    children = {
        name: subprocess.Popen(
            [*python_module("tests.bench.bench_threads"), str(model), *way, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONPATH": str(Path.cwd())},
        )
        for name, (way, environment) in ways.items()
    }
    try:
        with busy(loops):
            for _ in range(rounds):
                for name, child in children.items():
                    assert child.stdin is not None
                    assert child.stdout is not None
                    child.stdin.write("\n")
                    child.stdin.flush()
                    found[name].append(json.loads(child.stdout.readline()))
                    progress(f"{loops} loops, {name}: {found[name][-1]['decode']:.1f} tokens/s")
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    if len({tuple(run["tokens"]) for runs in found.values() for run in runs}) > 1:
        raise ParityError("not all ways gave the same tokens")
    rows: list[dict[str, Any]] = []
    for name, runs in found.items():
        rows.append(
            {"loops": loops, "way": name} | {key: median(run[key] for run in runs) for key in ("decode", "prompt")}
        )
    for key in ("decode", "prompt"):
        best = max(row[key] for row in rows if row["way"].endswith("threads"))
        for row in rows:
            row[f"{key}_of_best"] = round(row[key] / best, 3)
            row[key] = round(row[key], 1)
    return rows


def main() -> int:
    """Print a line for each number of loops and each way. Returns: the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--loops", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--way", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--poll", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.pool is not None and not (asked.pool / "libllama.so").is_file():
        parser.error(f"--pool: there is no libllama.so in {asked.pool}")
    if asked.way is not None:
        one_way(asked.model, asked.way, asked.poll, asked.tokens, asked.rounds)
        return 0

    def run() -> None:
        for loops in (int(word) for word in asked.loops.split(",")):
            for row in measure(asked.model, loops, asked.rounds, asked.tokens, asked.pool):
                print(json.dumps(row), flush=True)

    return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main())
