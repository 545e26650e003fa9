"""What a long prompt does to an answer that is being written over the same two nodes, by the size of its chunks. Prints JSON lines.

python -m tests.bench.bench_interference [MODEL.gguf] [--prompt 1000] [--chunks 512,0]

A size of 0 is the coordinator's own choice. Speculation and the prefix cache are off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from shardnet.bench.world import prompt_of
from shardnet.errors import ShardnetError
from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm
from tests.support.asking import stream_events
from tests.support.two_nodes import halve

WRITER_TOKENS = 900
SETTLED = 24
"""Tokens of the answer that come before the prompt."""
SHORT_TOKENS, SHORT_BEHIND_S = 12, 0.2
"""A short prompt that comes so long behind a long one."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--chunks", default="512,0")
    arguments = parser.parse_args()
    model = arguments.model or find_demo_model()
    os.environ |= {"SHARDNET_SPECULATION__ENABLED": "false", "SHARDNET_PREFIXES__ENABLED": "false"}
    for chunk in map(int, arguments.chunks.split(",")):
        os.environ["SHARDNET_SEQUENCES__PROMPT_CHUNK"] = str(chunk)
        with tempfile.TemporaryDirectory() as folder, LocalSwarm(Path(folder) / "swarm") as swarm:
            halve(model, "model", Path(folder) / "cache").serve(swarm)
            print(
                json.dumps(
                    {"bench": "interference", "model": model.stem, "chunk": chunk} | disturb(swarm, arguments.prompt)
                )
            )


def disturb(swarm: LocalSwarm, prompt_tokens: int) -> dict[str, float]:
    """Returns: milliseconds between tokens of an answer before and during a long prompt; seconds to its first token, alone and beside it, and to
    that of a short prompt behind another long one."""
    alone_s = first_token_s(swarm, prompt_tokens, seed=1)
    at: list[float] = []
    writer = threading.Thread(target=write, args=(swarm, at), daemon=True)
    writer.start()
    while len(at) < SETTLED:
        time.sleep(0.01)
    began_s = time.perf_counter()
    beside_s = first_token_s(swarm, prompt_tokens, seed=2)
    ended_s = time.perf_counter()
    long_one = threading.Thread(target=first_token_s, args=(swarm, prompt_tokens, 4), daemon=True)
    long_one.start()
    time.sleep(SHORT_BEHIND_S)
    short_s = first_token_s(swarm, SHORT_TOKENS, seed=5)
    long_one.join()
    writer.join(0.5)
    before = [b - a for a, b in pairwise(at) if b < began_s][4:]
    during = [b - a for a, b in pairwise(at) if began_s < a and b < ended_s]
    return {
        "before_ms": round(statistics.median(before) * 1e3, 1),
        "during_ms": round((ended_s - began_s) / (len(during) + 1) * 1e3, 1),
        "longest_ms": round(max([*during, 0.0]) * 1e3, 1),
        "first_token_alone_s": round(alone_s, 2),
        "first_token_beside_s": round(beside_s, 2),
        "short_behind_long_s": round(short_s, 2),
    }


def write(swarm: LocalSwarm, at: list[float]) -> None:
    """Note when each token of a long answer comes."""
    body = {
        "model": "model",
        "prompt": prompt_of(3, 8),
        "max_tokens": WRITER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    with suppress(ShardnetError):  # the swarm is stopped before it ends
        for event in stream_events(swarm.api, "/v1/completions", body | {"return_token_ids": True}):
            at.extend(time.perf_counter() for choice in event.get("choices", []) for _ in choice.get("token_ids") or [])


def first_token_s(swarm: LocalSwarm, prompt_tokens: int, seed: int) -> float:
    """Returns: seconds until the first token."""
    body = {"model": "model", "prompt": prompt_of(seed, prompt_tokens), "max_tokens": 1, "temperature": 0}
    began_s = time.perf_counter()
    for _ in stream_events(swarm.api, "/v1/completions", body):
        pass
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
