"""What open web pages cost an answer that is being written: the same greedy answer with and without them, in turns. Prints JSON lines.

    python -m tests.bench.bench_pages [MODEL.gguf] [--pages 20] [--turns 12] [--tokens 300] [--paints 9]

Run it from the repository's root. A coordinator and two nodes with one thread each, as processes (SmolLM2 if no model is named). The pages are
sockets of one process, which takes what came only now and then, so that what reading costs here (browsers do it on other machines) stays small;
`pages_share` is its share of one core, `read_bytes_per_s` what each page is sent. A turn is one answer without pages and one with, in an order that
changes from turn to turn. Processor time comes from the clock that the kernel keeps for each process, threads included, in nanoseconds:
`coordinator_us` and `nodes_us` for each token, `swarm_us` both. Ratios (with / without) are taken within a turn; told are their quartiles. Processor
time suffers little from what else the machine does, tokens a second do.
With `--paints` the page is first opened so many times in Chromium, with nothing kept from before: told are milliseconds to the first paint (best,
median, worst), and bytes and requests over the wire.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil

from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm
from tests.support.asking import ask
from tests.support.two_nodes import halve

SETTLED_S = 1.0
"""Pages are open for so long before an answer begins: the first thing they get is the whole."""
READ_EVERY_S = 0.25


@dataclass(frozen=True)
class Seen:
    """One answer.

    Attributes:
        coordinator_us, nodes_us: processor time for each token.
        pages_share: processor time of who reads for the pages, as a share of one core.
        read_bytes_per_s: what one page was sent meanwhile.
    """

    tokens_per_s: float
    coordinator_us: float
    nodes_us: float
    pages_share: float = 0.0
    read_bytes_per_s: float = 0.0


def cpu_s(pids: list[int]) -> float:
    """Returns: seconds of processor time that processes have used. Source: Linux, include/linux/posix-timers_types.h, MAKE_PROCESS_CPUCLOCK."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def family(pid: int) -> list[int]:
    """Returns: a process and all that it started, which a node's engine is."""
    return [pid, *(one.pid for one in psutil.Process(pid).children(recursive=True))]


def read_pages(api: str, count: int) -> None:
    """Be so many pages, until there is nobody on the standard input. Says how many bytes came each time that it is given a line."""
    where = urlsplit(api)
    pages = []
    for _ in range(count):
        page = socket.create_connection((str(where.hostname), int(where.port or 0)))
        page.sendall(b"GET /page/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        page.setblocking(False)
        pages.append(page)
    buffer = bytearray(1 << 20)
    os.set_blocking(sys.stdin.fileno(), False)
    came = 0
    while True:
        for page in pages:
            try:
                while taken := page.recv_into(buffer):
                    came += taken
            except BlockingIOError:
                continue
            sys.exit("the coordinator ended a page's stream")
        line = sys.stdin.readline()
        if line == "stop\n":
            return
        if line:
            print(came, flush=True)
        time.sleep(READ_EVERY_S)


class Pages:
    """So many open pages, in a process of their own. Use as a context manager."""

    def __init__(self, api: str, count: int) -> None:
        self.count = count
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bench_pages", "--read", api, "--pages", str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self.bytes_read()
        time.sleep(SETTLED_S)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.communicate("stop\n")

    def bytes_read(self) -> int:
        """Returns: what came to all of them until now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("how much?\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def answer(swarm: LocalSwarm, n_tokens: int, pages: Pages | None) -> Seen:
    """Have an answer written, and look what it took."""
    coordinator = [swarm.processes["coordinator"].pid]
    nodes = [pid for name, one in swarm.processes.items() if name != "coordinator" for pid in family(one.pid)]
    parts = (coordinator, nodes, [pages.process.pid] if pages else [])
    body = {
        "model": "model",
        "prompt": "Once upon a time",
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    came = pages.bytes_read() if pages else 0
    before, began_s = [cpu_s(one) for one in parts], time.perf_counter()
    ask(swarm.api, "/v1/completions", body | {"speculation": False})
    took_s = time.perf_counter() - began_s
    used_s = [cpu_s(one) - first for one, first in zip(parts, before, strict=True)]
    return Seen(
        tokens_per_s=n_tokens / took_s,
        coordinator_us=used_s[0] / n_tokens * 1e6,
        nodes_us=used_s[1] / n_tokens * 1e6,
        pages_share=used_s[2] / took_s,
        read_bytes_per_s=(pages.bytes_read() - came) / took_s / pages.count if pages else 0.0,
    )


async def paint(api: str, times: int) -> None:
    """Open the page again and again, each time in a window that never saw it."""
    from tests.support.chromium import chromium, window

    measure = """() => {
      const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
      const files = all.filter((one) => !one.name.endsWith('/events'));
      const bytes = files.reduce((sum, one) => sum + one.transferSize, 0);
      return [performance.getEntriesByName('first-contentful-paint')[0].startTime, bytes, files.length];
    }"""
    found = []
    async with chromium() as browser:
        for _ in range(times + 1):
            async with window(browser) as (page, _seen):
                await page.goto(f"{api}/", timeout=60_000)
                await page.locator('#summary[data-state="ready"]').wait_for(timeout=60_000)
                found.append(await page.evaluate(measure))
    paints = sorted(one[0] for one in found[1:])  # the first is the browser's own, too
    told = {"first_paint_ms": [round(paints[0]), round(statistics.median(paints)), round(paints[-1])]}
    told |= {"wire_bytes": found[-1][1], "requests": found[-1][2]}
    print(json.dumps({"bench": "pages", "load": round(os.getloadavg()[0], 1), "paints": times} | told), flush=True)


def quartiles(values: list[float]) -> list[float]:
    return [round(one, 4) for one in statistics.quantiles(values, n=4)]


def tell(swarm: LocalSwarm, pages: int, turns: int, n_tokens: int) -> None:
    """All turns, a line for each, and what they come to."""
    found: list[tuple[Seen, Seen]] = []
    answer(swarm, n_tokens, None)  # warm
    for turn in range(turns):
        seen = {}
        for with_pages in (False, True) if turn % 2 else (True, False):
            if not with_pages:
                seen[False] = answer(swarm, n_tokens, None)
                continue
            with Pages(swarm.api, pages) as them:
                seen[True] = answer(swarm, n_tokens, them)
        found.append((seen[False], seen[True]))
        told = {name: [round(getattr(one, name), 3) for one in found[-1]] for name in Seen.__annotations__}
        print(json.dumps({"bench": "pages", "turn": turn, "load": round(os.getloadavg()[0], 1)} | told), flush=True)
    without, beside = zip(*found, strict=True)
    ratios = {
        "tokens_per_s": [b.tokens_per_s / a.tokens_per_s for a, b in found],
        "coordinator_us": [b.coordinator_us / a.coordinator_us for a, b in found],
        "nodes_us": [b.nodes_us / a.nodes_us for a, b in found],
        "swarm_us": [(b.coordinator_us + b.nodes_us) / (a.coordinator_us + a.nodes_us) for a, b in found],
    }
    medians = {
        name: [round(statistics.median(getattr(one, name) for one in side), 3) for side in (without, beside)]
        for name in Seen.__annotations__
    }
    print(
        json.dumps(
            {"bench": "pages", "pages": pages, "turns": turns, "tokens": n_tokens}
            | {"without_and_with": medians, "ratio_quartiles": {name: quartiles(ratios[name]) for name in ratios}}
        )
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--paints", type=int, default=0)
    parser.add_argument("--read", metavar="API", help=argparse.SUPPRESS)
    parser.add_argument("--pages", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.read:
        read_pages(arguments.read, arguments.pages)
        return
    with tempfile.TemporaryDirectory() as folder, LocalSwarm(Path(folder) / "swarm") as swarm:
        halve(arguments.model or find_demo_model(), "model", Path(folder) / "cache").serve(swarm)
        if arguments.paints:
            asyncio.run(paint(swarm.api, arguments.paints))
        tell(swarm, arguments.pages, arguments.turns, arguments.tokens)


if __name__ == "__main__":
    main()
