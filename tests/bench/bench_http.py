"""Many streaming chats at once through HTTP: shardnet over two nodes beside llama.cpp's own server on the same two cores. Prints JSON lines,
and on standard error how far it is.

    python -m tests.bench.bench_http [MODEL.gguf] --llama-server PROGRAM [--rpc-server PROGRAM] [--today FOLDER]
        [--clients 8] [--tokens 64] [--rounds 5] [--parts streams,one,shared] [--system 760] [--balance memory]

Run it from the repository's root. All servers are up at once and take turns within each round; a figure is the median over the rounds, with its
smallest and largest, and a ratio the median of the rounds' ratios. Without `--llama-server` shardnet runs alone. `--today` adds a second shardnet,
run from another checkout (with `shardnet/inference/llama/_capture*.so` in it: engines without it work otherwise). Both programs are built from the
sources that the package of llama-cpp-python holds (docs/benchmarks.md).

`streams`: so many chats at once (`tests/support/http_streams.py` says what is taken of them), and processor time a token of each process.
`one`: one chat, and the same prompt in plain llama.cpp with one thread. `shared`: one chat with a long system prompt that nobody had before, then all
chats at once with it (warm), then all at once with another one (cold).

No parity, no number: in `one` every answer of ours has to have plain llama.cpp's tokens, else the bench ends with exit code 4. Rows of several
sequences are not computed bit for bit as single ones are, in plain llama.cpp neither: nothing is compared there. Speculation is off in every request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from shardnet.bench.plain import PlainLlama
from shardnet.errors import ParityError
from shardnet.inference.splitting.plan import BALANCES, CutRequest
from shardnet.local.model import find_demo_model
from tests.support.bench_cli import exit_code_of, listed, progress
from tests.support.http_servers import CORES, Room, Server, both_cores, llama_server, shardnet_server
from tests.support.http_streams import Streamed, chat, figures
from tests.support.two_nodes import halve

PARTS = ("streams", "one", "shared")
OURS, TODAY, THEIRS, OVER_RPC, PLAIN = "shardnet", "today", "llama-server", "rpc", "plain"
WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
)
"""One token each in every vocabulary that was seen, with the space before it."""
TEMPLATE_TOKENS = 64
"""At most, beside a system prompt and the answer."""

Message = dict[str, str]
Round = dict[str, float]


def story(number: int) -> list[Message]:
    """Returns: a short prompt of its own for each number."""
    return [{"role": "user", "content": f"Write a long story about the number {number}."}]


def shared(system: str, number: int) -> list[Message]:
    """Returns: a chat with that system prompt."""
    return [{"role": "system", "content": system}, *story(number)]


def words(seed: int, count: int) -> str:
    """Returns: a text of about so many tokens, the same for the same seed."""
    generator = random.Random(seed)
    return " ".join(generator.choice(WORDS) for _ in range(count))


class Bench:
    """The rounds' figures, by part and server.

    Args:
        seed: numbers of prompts begin there: no prompt comes twice.
    """

    def __init__(self, servers: Sequence[Server], plain: PlainLlama, arguments: argparse.Namespace) -> None:
        self._servers, self._plain, self._arguments = servers, plain, arguments
        self._next = 1000
        self.rounds: dict[tuple[str, str], list[Round]] = {}
        self.cpu_ms: dict[str, list[dict[str, float]]] = {}

    async def run(self) -> None:
        """Warm everything, then the rounds."""
        for server in self._servers:
            await self._together(server, [story(number) for number in self._numbers()], 8)
        for _ in range(self._arguments.rounds):
            for part in self._arguments.parts:
                await {"streams": self._streams, "one": self._one, "shared": self._shared}[part]()

    def _numbers(self, count: int | None = None) -> range:
        count = self._arguments.clients if count is None else count
        self._next += count
        return range(self._next - count, self._next)

    async def _together(self, server: Server, chats: Sequence[list[Message]], n_tokens: int) -> list[Streamed]:
        more: dict[str, Any] = {"speculation": False} if server.is_ours else {}
        return await asyncio.gather(*(chat(server.address, messages, n_tokens, **more) for messages in chats))

    def _note(self, part: str, server: str, found: Round) -> None:
        progress(f"{part} {server}: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items()))
        self.rounds.setdefault((part, server), []).append(found)

    async def _streams(self) -> None:
        chats = [story(number) for number in self._numbers()]
        for server in self._servers:
            before, own_s, began_s = server.cpu_s(), time.process_time(), time.perf_counter()
            streams = await self._together(server, chats, self._arguments.tokens)
            took_s, after = time.perf_counter() - began_s, server.cpu_s()
            tokens = sum(one.tokens for one in streams)
            own = {"own_cpu": (time.process_time() - own_s) / took_s}
            self._note("streams", server.name, figures(streams) | own)
            spent = {name: 1e3 * (after[name] - before.get(name, 0.0)) / tokens for name in after}
            self.cpu_ms.setdefault(server.name, []).append(spent)

    async def _one(self) -> None:
        (number,) = self._numbers(1)
        known: tuple[list[int], list[int]] | None = None
        for server in self._servers:
            more: dict[str, Any] = {"speculation": False, "return_token_ids": True} if server.is_ours else {}
            one = await chat(server.address, story(number), self._arguments.tokens, **more)
            self._note("one", server.name, {"tokens_per_s": one.decode_tokens_per_s, "first_s": one.first_s})
            if server.is_ours:
                known = self._checked(server, one, known)
        if known is not None:
            run = await asyncio.to_thread(self._plain.generate, known[0], len(known[1]))
            self._note("one", PLAIN, {"tokens_per_s": run.decode_tokens_per_s, "first_s": run.prefill_s})

    def _checked(self, server: Server, one: Streamed, known: tuple[list[int], list[int]] | None) -> Any:
        prompt, ids = known or (one.prompt_ids, self._plain.expected(one.prompt_ids, one.tokens))
        if (one.prompt_ids, one.ids) != (prompt, ids):
            raise ParityError(f"{server.name} gave other tokens than plain llama.cpp: {one.ids} in place of {ids}")
        return prompt, ids

    async def _shared(self) -> None:
        warm, cold = (words(number, self._arguments.system) for number in self._numbers(2))
        alone, *others = self._numbers(1 + 2 * self._arguments.clients)
        half = self._arguments.clients
        for server in self._servers:
            (first,) = await self._together(server, [shared(warm, alone)], 2)
            again = await self._together(server, [shared(warm, number) for number in others[:half]], 8)
            new = await self._together(server, [shared(cold, number) for number in others[half:]], 8)
            found = {
                "prompt_tokens": float(first.prompt_tokens),
                "alone_cold_first_s": first.first_s,
                "warm_first_p50_s": median(one.first_s for one in again),
                "warm_first_all_s": max(one.first_s for one in again),
                "cold_first_p50_s": median(one.first_s for one in new),
                "cold_first_all_s": max(one.first_s for one in new),
            }
            self._note(
                "shared", server.name, found | {"cold_all_over_alone": found["cold_first_all_s"] / first.first_s}
            )


def spread(values: Sequence[float]) -> list[float]:
    """Returns: median, smallest, largest."""
    return [round(value, 4) for value in (median(values), min(values), max(values))]


def tell(**facts: object) -> None:
    print(json.dumps({"bench": "http", **facts}), flush=True)


def told(bench: Bench, **of: object) -> None:
    """Print a line for each part and server, then the ratios of ours to the others', in each round."""
    for (part, server), rounds in bench.rounds.items():
        facts: dict[str, object] = {key: spread([one[key] for one in rounds]) for key in rounds[0]}
        if part == "streams":
            spent = bench.cpu_ms[server]
            facts["cpu_ms_per_token"] = {name: round(median(one[name] for one in spent), 3) for name in spent[0]}
        tell(part=part, server=server, rounds=len(rounds), load=round(os.getloadavg()[0], 1), **of, **facts)
    for (part, server), rounds in bench.rounds.items():
        ours = bench.rounds.get((part, OURS))
        if ours is None or server == OURS:
            continue
        ratios = {
            key: spread([mine[key] / yours[key] for mine, yours in zip(ours, rounds, strict=True)])
            for key in rounds[0]
            if key in ours[0] and key not in ("own_cpu", "prompt_tokens") and all(one[key] for one in rounds)
        }
        tell(part=part, ratio=f"{OURS}/{server}", **of, **ratios)


def serve(resources: ExitStack, model: Path, folder: Path, arguments: argparse.Namespace) -> list[Server]:
    """Start everything."""
    context = TEMPLATE_TOKENS + arguments.tokens
    if "shared" in arguments.parts:
        context += 2 * arguments.system  # a word may be two tokens
    room = Room(arguments.clients, -(-context // 256) * 256)  # llama.cpp rounds so, too
    halves = halve(model, "model", folder / "cache", CutRequest(n_shards=CORES, balance=arguments.balance))
    sources: dict[str, Path | None] = {OURS: None} | ({TODAY: arguments.today} if arguments.today else {})
    servers = [
        resources.enter_context(shardnet_server(name, halves, folder / name, room, source))
        for name, source in sources.items()
    ]
    rpc: dict[str, Path | None] = {THEIRS: None} | ({OVER_RPC: arguments.rpc_server} if arguments.rpc_server else {})
    if arguments.llama_server:
        program: Path = arguments.llama_server
        servers += [resources.enter_context(llama_server(name, program, model, room, via)) for name, via in rpc.items()]
    return servers


def main() -> int:
    """The command line. Returns: the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--rpc-server", type=Path, help="ggml-rpc-server of the same build; needs --llama-server")
    parser.add_argument("--today", type=Path, help="another checkout of shardnet")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument(
        "--balance", choices=BALANCES, default=CutRequest.balance, help="what the model's cut makes even"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", type=listed(PARTS), default=list(PARTS))
    parser.add_argument("--system", type=int, default=760, help="words of the shared system prompt")
    arguments = parser.parse_args()
    if arguments.rpc_server and not arguments.llama_server:
        parser.error("--rpc-server needs --llama-server")
    if len(both_cores()) < CORES:
        parser.error(f"{CORES} cores are needed")
    model = arguments.model or find_demo_model()
    spare = sorted(os.sched_getaffinity(0))[CORES:]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as resources:
            servers = serve(resources, model, Path(folder), arguments)
            progress(f"up: {', '.join(server.name for server in servers)}")
            plain = resources.enter_context(PlainLlama(model, threads=1, n_ctx=1024))
            if spare:
                os.sched_setaffinity(0, spare)
            bench = Bench(servers, plain, arguments)
            asyncio.run(bench.run())
        told(bench, model=model.stem, balance=arguments.balance, clients=arguments.clients, tokens=arguments.tokens)

    return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main())
