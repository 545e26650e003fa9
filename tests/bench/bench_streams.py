"""Many streaming clients at once, through HTTP, beside one: first token, gaps between tokens, and what a token costs the coordinator.

    python -m tests.bench.bench_streams [MODEL.gguf] [--clients 64] [--answers 1] [--tokens 64] [--times 3] [--before FOLDER]

Run it from the repository's root. Two nodes with one thread each and a coordinator as processes (SmolLM2 if no model is named), and the clients in
this one, over raw sockets; one client and all of them take turns. `first_s`, `first_p99_s`: seconds to the first token; `gap_ms`, `gap_p99_ms`:
milliseconds between two events of one client; `coordinator_us`: processor time of the coordinator for each token, all of its work. Prints a line of
JSON for each number of clients. With `--before`, the same for a coordinator and nodes that run the source in another folder (a worktree of an earlier
commit, with `shardnet/inference/llama/_capture*.so` copied from here: engines without it work otherwise), in turns, and the ratios after / before.
With `--answers`, each client asks for so many answers in one stream; then a gap lies between two events of any of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import psutil

from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm
from tests.support.two_nodes import Halves, halve

CONTEXT = 256


@dataclass
class Figures:
    """What was seen of one number of clients, times in seconds."""

    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)

    def told(self) -> dict[str, float]:
        """Returns: the figures."""
        return {
            "tokens_per_s": statistics.median(self.speeds),
            "first_s": statistics.median(self.firsts),
            "first_p99_s": percentile(self.firsts, 0.99),
            "gap_ms": statistics.median(self.gaps) * 1e3,
            "gap_p99_ms": percentile(self.gaps, 0.99) * 1e3,
            "coordinator_us": statistics.median(self.costs) * 1e6,
        }


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def client(address: tuple[str, int], number: int, n_answers: int, n_tokens: int) -> tuple[float, list[float]]:
    """One chat. Returns: when it was sent, and when each event with a token came."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": f"Tell me a long story about the number {number}."}],
        "n": n_answers,
        "max_tokens": n_tokens,
        "temperature": 0.7,
        "seed": number,
        "ignore_eos": True,
        "stream": True,
        "speculation": False,
    }
    written = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(written)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(*address)
    try:
        sent_s = time.perf_counter()
        writer.write(head.encode() + written)
        came: list[float] = []
        while True:
            line = await reader.readline()
            if b'"content":"' in line and b'"role"' not in line:
                came.append(time.perf_counter())
            if b"[DONE]" in line or not line:
                return sent_s, came
    finally:
        writer.close()


async def together(swarm: LocalSwarm, count: int, n_answers: int, n_tokens: int, figures: Figures) -> None:
    """So many clients, all of them at once."""
    split = urlsplit(swarm.api)
    process = psutil.Process(swarm.processes["coordinator"].pid)
    before, began_s = process.cpu_times(), time.perf_counter()
    found = await asyncio.gather(
        *(client((str(split.hostname), int(split.port or 0)), number, n_answers, n_tokens) for number in range(count))
    )
    took_s, after = time.perf_counter() - began_s, process.cpu_times()
    for sent_s, came in found:
        figures.firsts.append(came[0] - sent_s)
        figures.gaps += [second - first for first, second in pairwise(came)]
    used_s = after.user + after.system - before.user - before.system
    figures.costs.append(used_s / (count * n_answers * n_tokens))
    figures.speeds.append(count * n_answers * n_tokens / took_s)


def serve(halves: Halves, swarm: LocalSwarm, n_seq: int, source: Path | None) -> None:
    """Start everything, run from another folder's source if one is named."""
    with patch.dict(os.environ, {} if source is None else {"PYTHONPATH": str(source.resolve())}):
        halves.start_coordinator(swarm, "--n-seq", str(n_seq), "--n-ctx", str(CONTEXT))
        for index in range(2):
            halves.start_node(swarm, index)
        swarm.wait_ready(120)


def tell(facts: dict[str, float], **of: object) -> None:
    print(json.dumps({"bench": "streams", **of, **{key: round(value, 3) for key, value in facts.items()}}), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--answers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--before", type=Path, default=None)
    arguments = parser.parse_args()
    model = arguments.model or find_demo_model()
    sources = {"now": None} | ({"before": arguments.before} if arguments.before else {})
    figures = {(source, count): Figures() for source in sources for count in (1, arguments.clients)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as swarms:
        halves = halve(model, "model", Path(folder) / "cache")
        served = {}
        for source, path in sources.items():
            served[source] = swarms.enter_context(LocalSwarm(Path(folder) / source))
            serve(halves, served[source], arguments.clients * arguments.answers, path)
            asyncio.run(together(served[source], 2, 1, 8, Figures()))  # warm
        for _ in range(arguments.times):
            for (source, count), one in figures.items():
                asyncio.run(together(served[source], count, arguments.answers, arguments.tokens, one))
    told = {key: one.told() for key, one in figures.items()}
    for (source, count), facts in told.items():
        tell(facts, source=source, clients=count, answers=arguments.answers)
    if arguments.before:
        for count in (1, arguments.clients):
            now, before = told["now", count], told["before", count]
            tell(
                {key: now[key] / before[key] for key in now},
                source="now/before",
                clients=count,
                answers=arguments.answers,
            )


if __name__ == "__main__":
    main()
