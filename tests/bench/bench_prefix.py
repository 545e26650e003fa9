"""Chats that begin with one system prompt, at once, over two nodes: seconds to each first token, and rows that a stage ran. Prints JSON lines.

python -m tests.bench.bench_prefix MODEL.gguf [--system 760] [--own 24] [--chats 8] [--rounds 5] [--server PATH/llama-server]

In turns, with prompts of its own each: one chat alone, cold; all at once, cold; and all at once after one that had the same system prompt (warm).
With `prefixes.share` on, and off, as it was before; with --server by llama-server of the same llama.cpp, too. Each node has a core of its own and one
thread, llama-server both cores and two threads. `rows` are those of prompts that a stage has run, over those of one whole prompt: they do not depend
on what else the machine does. Speculation is off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from shardnet.bench.world import prompt_of
from shardnet.local.processes import LocalSwarm
from tests.support.two_nodes import free_port, halve

N_CTX = 1024
READY_S = 120.0
FIRST_TOKEN_S = 600.0
"""A busy machine takes long."""


@dataclass(frozen=True)
class Asked:
    """What is measured."""

    system: int
    own: int
    chats: int
    rounds: int


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--system", type=int, default=760, help="tokens that all prompts begin with")
    parser.add_argument("--own", type=int, default=24, help="tokens that each goes on with")
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", type=Path, default=None, help="llama-server, to be measured in turns")
    options = parser.parse_args()
    asked = Asked(options.system, options.own, options.chats, options.rounds)
    os.environ |= {
        "SHARDNET_SPECULATION__ENABLED": "false",
        "SHARDNET_SEQUENCES__N_SEQ": str(asked.chats),
        "SHARDNET_SEQUENCES__N_CTX": str(N_CTX),
    }
    with tempfile.TemporaryDirectory() as folder:
        halves = halve(options.model, "model", Path(folder) / "cache")
        for number in range(asked.rounds):
            for share in (True, False):
                os.environ["SHARDNET_PREFIXES__SHARE"] = str(share).lower()
                with LocalSwarm(Path(folder) / f"swarm-{number}-{share}") as swarm:
                    halves.start_coordinator(swarm)
                    for index in range(2):
                        halves.start_node(swarm, index, prefix=("taskset", "-c", str(index)))
                    swarm.wait_ready(READY_S)
                    tell(asked, options.model, number, f"share={share}", Swarm(swarm))
            if options.server is not None:
                with llama_server(options.server, options.model, asked) as peer:
                    tell(asked, options.model, number, "llama-server", peer)


class Swarm:
    """shardnet's API, and what its stages say they have run."""

    def __init__(self, swarm: LocalSwarm) -> None:
        self._swarm = swarm
        self.url = f"{swarm.api}/v1/completions"

    def body(self, prompt: list[int]) -> dict[str, Any]:
        return {
            "model": "model",
            "prompt": prompt,
            "max_tokens": 16,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }

    def has_token(self, event: dict[str, Any]) -> bool:
        return any(choice.get("token_ids") for choice in event.get("choices", ()))

    def rows(self) -> int | None:
        count: int = self._swarm.get("/status")["requests"]["prompt_rows"]
        return count


class Peer:
    """llama-server's own API; it does not say what it ran."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/completion"

    def body(self, prompt: list[int]) -> dict[str, Any]:
        return {"prompt": prompt, "n_predict": 16, "temperature": 0, "ignore_eos": True, "cache_prompt": True}

    def has_token(self, event: dict[str, Any]) -> bool:
        return "content" in event

    def rows(self) -> int | None:
        return None


def tell(asked: Asked, model: Path, number: int, name: str, served: Swarm | Peer) -> None:
    """Measure one server once, and print it."""
    seed = 1000 * (number + 1)
    alone_s, _ = at_once(served, [prompt(asked, seed, 0)])
    cold_s, cold_rows = at_once(served, [prompt(asked, seed + 1, index) for index in range(asked.chats)])
    at_once(served, [prompt(asked, seed + 2, asked.chats)])
    warm_s, warm_rows = at_once(served, [prompt(asked, seed + 2, index) for index in range(asked.chats)])
    one = asked.system + asked.own
    print(
        json.dumps(
            {
                "bench": "prefix",
                "model": model.stem,
                "round": number,
                "what": name,
                "load": round(os.getloadavg()[0], 1),
                "alone_s": round(alone_s[0], 2),
                "cold_median_s": round(statistics.median(cold_s), 2),
                "cold_all_s": round(max(cold_s), 2),
                "cold_all_over_alone": round(max(cold_s) / alone_s[0], 2),
                "cold_rows": None if cold_rows is None else round(cold_rows / one, 2),
                "warm_median_s": round(statistics.median(warm_s), 2),
                "warm_all_s": round(max(warm_s), 2),
                "warm_rows": None if warm_rows is None else round(warm_rows / one, 2),
            }
        ),
        flush=True,
    )


def prompt(asked: Asked, seed: int, index: int) -> list[int]:
    """Returns: a system prompt of this seed, and what one chat goes on with."""
    return prompt_of(seed, asked.system) + prompt_of(100_000 * seed + index, asked.own)


def at_once(served: Swarm | Peer, prompts: list[list[int]]) -> tuple[list[float], int | None]:
    """Returns: seconds to each first token; rows of prompts that a stage ran for all of them, where that is told."""
    before = served.rows()
    with ThreadPoolExecutor(len(prompts)) as pool:
        seconds = list(pool.map(lambda one: first_token_s(served, one), prompts))
    after = served.rows()
    return seconds, None if before is None or after is None else after - before


def first_token_s(served: Swarm | Peer, tokens: list[int]) -> float:
    """Returns: seconds to the first event that has a token; the whole answer is waited for."""
    began_s, first_s = time.perf_counter(), 0.0
    body = served.body(tokens) | {"stream": True}
    with httpx.stream("POST", served.url, json=body, timeout=FIRST_TOKEN_S, trust_env=False) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not first_s and line.startswith("data: {") and served.has_token(json.loads(line.removeprefix("data: "))):
                first_s = time.perf_counter() - began_s
    return first_s


@contextmanager
def llama_server(binary: Path, model: Path, asked: Asked) -> Iterator[Peer]:
    """llama-server, ready; it ends with this."""
    port = free_port()
    arguments = ["-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-t", "2", "-np", str(asked.chats)]
    arguments += ["-c", str(N_CTX * asked.chats), "--no-warmup"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(["taskset", "-c", "0,1", str(binary), *arguments], stdout=quiet, stderr=quiet) as process:
        try:
            url, end_s = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
            while time.monotonic() < end_s:
                try:
                    if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield Peer(url)
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
