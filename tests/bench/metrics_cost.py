"""Whether /metrics says what a client saw, by a real Prometheus, and what scraping costs. Real processes over loopback; one JSON line per figure.

    python -m tests.bench.metrics_cost [--seconds 60] [--clients 3] [--rounds 3] [--round-s 15] [--model GGUF]

SmolLM2 (unless another model is named) over two nodes. `seen`: clients ask for the given time while Prometheus scrapes all three daemons every 2 s;
then its HTTP API is asked for what the clients counted themselves. `scrape`: processor time of each daemon for one scrape, over many in a row, idle.
`answer`: tokens a second of one stream, in turns with nobody scraping, every 5 s, every second. `load` is the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm
from tests.support.free_ports import free_ports
from tests.support.two_nodes import Halves, halve

# As Prometheus asks: the scrape of version 2.42.
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}
SCRAPES = 50
DAEMONS = ("coordinator", "node-0", "node-1")


def tell(figure: str, **facts: Any) -> None:
    shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({"figure": figure, **shown, "load": round(os.getloadavg()[0], 1)}), flush=True)


@dataclass
class Seen:
    """What clients saw, seconds."""

    tokens: int = 0
    answers: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)


def ask(client: httpx.Client, prompt: str, count: int, seen: Seen) -> None:
    """Stream one answer, and note when its tokens came."""
    body = {
        "prompt": prompt,
        "max_tokens": count,
        "stream": True,
        "ignore_eos": True,
        "return_token_ids": True,
        "temperature": 0,
    }
    body["stream_options"] = {"include_usage": True}
    began = last = time.perf_counter()
    has_first = False
    with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event, now = json.loads(line.removeprefix("data: ")), time.perf_counter()
            if "error" in event:  # a step was not done in time: on a machine that is very busy
                seen.failed += 1
                return
            tokens = sum(len(choice.get("token_ids") or ()) for choice in event.get("choices", ()))
            if tokens:
                (seen.between if has_first else seen.first).append(now - last)
                has_first, last = True, now
            if event.get("usage"):
                seen.tokens += event["usage"]["completion_tokens"]
                seen.prompt_tokens += event["usage"]["prompt_tokens"]
    seen.answers += 1
    seen.took.append(time.perf_counter() - began)


def load(api: str, clients: int, seconds: float) -> Seen:
    """Have clients ask one answer after the other for that long."""
    every = [Seen() for _ in range(clients)]
    end = time.monotonic() + seconds

    def asking(number: int) -> None:
        turn = 0
        with httpx.Client(base_url=api, timeout=120, trust_env=False) as client:
            while time.monotonic() < end:
                ask(client, f"Tell story {number}.{turn} of a lighthouse and the sea.", 48, every[number])
                turn += 1

    threads = [threading.Thread(target=asking, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = Seen()
    for one in every:
        whole.tokens += one.tokens
        whole.answers += one.answers
        whole.failed += one.failed
        whole.prompt_tokens += one.prompt_tokens
        whole.first += one.first
        whole.between += one.between
        whole.took += one.took
    return whole


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[str]:
    """Run one that scrapes every two seconds. Yields: its address."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is not installed")
    (port,) = free_ports(1)
    config = folder / "prometheus.yml"
    jobs = [{"job_name": "shardnet", "static_configs": [{"targets": targets}]}]
    config.write_text(json.dumps({"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": jobs}))
    where = f"127.0.0.1:{port}"
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={where}",
    ]
    with (folder / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://{where}/-/ready", trust_env=False).status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield f"http://{where}"
    finally:
        process.terminate()
        process.wait(20)


def query(address: str, expression: str, at_s: float | None = None) -> float:
    """Returns: the one number that an expression gives at that Unix time, or now."""
    asked = {"query": expression} | ({} if at_s is None else {"time": str(at_s)})
    told = httpx.get(f"{address}/api/v1/query", params=asked, timeout=20, trust_env=False).json()
    assert told["status"] == "success", told
    result = told["data"]["result"]
    assert len(result) == 1, f"{expression}: {result}"
    return float(result[0]["value"][1])


def seen_and_told(swarm: LocalSwarm, folder: Path, targets: list[str], clients: int, seconds: float) -> None:
    """Compare what clients saw with what Prometheus says."""
    with prometheus(folder, targets) as address:
        while query(address, "count(shardnet_build_info) or vector(0)") < len(targets):
            time.sleep(0.2)
        known = query(address, "min(timestamp(shardnet_build_info))")  # samples of all of them from before the load
        began = time.time()
        seen = load(swarm.api, clients, seconds)
        ended = time.time()
        took = ended - began
        while query(address, "min(timestamp(shardnet_build_info))") < ended + 1:
            time.sleep(0.2)
        now_s = time.time()
        seconds_back = int(now_s - known) + 1
        window = f"[{seconds_back}s]"

        def at(expression: str) -> float:
            return query(address, expression, now_s)

        def grew(name: str) -> float:
            # A window of a raw series gives every sample: the last less the first, nothing extrapolated.
            return at(f"sum(max_over_time({name}{window}) - min_over_time({name}{window}))")

        def quantile(name: str, share: float) -> float:
            return at(f"histogram_quantile({share}, sum by (le) (increase({name}_bucket{window})))")

        tell("seen", what="scrapes", up=at("sum(up)"), samples=at("sum(scrape_samples_scraped)"))
        tell(
            "seen",
            what="scrape_duration_s",
            mean=at(f"avg(avg_over_time(scrape_duration_seconds{window}))"),
        )
        for what, ours, theirs in (
            ("answer tokens", seen.tokens, grew("shardnet_generation_tokens_total")),
            ("prompt tokens", seen.prompt_tokens, grew("shardnet_prompt_tokens_total")),
            ("answers", seen.answers, grew('shardnet_answers_total{outcome="length"}')),
            ("answers that failed", seen.failed, grew('shardnet_answers_total{outcome="error"}')),
            ("first tokens", len(seen.first), grew("shardnet_time_to_first_token_seconds_count")),
            (
                "http",
                seen.answers + seen.failed,
                grew('shardnet_http_requests_total{path="/v1/completions",status="200"}'),
            ),
        ):
            tell("seen", what=what, client=ours, prometheus=theirs)
        rate = at(f"sum(rate(shardnet_generation_tokens_total{window}))") * seconds_back / took
        tell("seen", what="tokens a second", client=seen.tokens / took, prometheus=rate)
        for what, values, name in (
            ("time to first token", seen.first, "shardnet_time_to_first_token_seconds"),
            ("between tokens", seen.between, "shardnet_inter_token_latency_seconds"),
            ("whole answer", seen.took, "shardnet_answer_duration_seconds"),
        ):
            mean = grew(f"{name}_sum") / grew(f"{name}_count")
            ranked = statistics.quantiles(values, n=20)
            tell("seen", what=f"{what}, mean", client=statistics.fmean(values), prometheus=mean)
            tell("seen", what=f"{what}, median", client=ranked[9], prometheus=quantile(name, 0.5))
            tell("seen", what=f"{what}, p95", client=ranked[18], prometheus=quantile(name, 0.95))
        for stage in (0, 1):
            busy = grew(f'shardnet_stage_compute_seconds_sum{{stage="{stage}"}}') / took
            tell("seen", what=f"stage {stage}: compute of all steps over the time", prometheus=busy)
        engines = at(f"avg(rate(shardnet_engine_busy_seconds_total{window}))")
        tell("seen", what="engine busy, mean of two", prometheus=engines)


def cpu_s(swarm: LocalSwarm, name: str, *, with_engine: bool = False) -> float:
    """Returns: processor time of the daemon's own process so far; and of its engine's."""
    daemon = psutil.Process(swarm.processes[name].pid)
    processes = [daemon, *(daemon.children(recursive=True) if with_engine else ())]
    return sum(float(times.user + times.system) for times in (one.cpu_times() for one in processes))


def one_scrape(swarm: LocalSwarm, targets: list[str]) -> None:
    """Tell what one scrape takes of each daemon."""
    with httpx.Client(headers=HEADERS, timeout=60, trust_env=False) as client:
        for name, target in zip(DAEMONS, targets, strict=True):
            client.get(f"http://{target}/metrics")
            began_s, idle = time.perf_counter(), cpu_s(swarm, name)
            time.sleep(5)
            idle_share = (cpu_s(swarm, name) - idle) / (time.perf_counter() - began_s)
            before, began_s, took = cpu_s(swarm, name), time.perf_counter(), []
            for _ in range(SCRAPES):
                asked_s = time.perf_counter()
                told = client.get(f"http://{target}/metrics")
                took.append(time.perf_counter() - asked_s)
            spent = cpu_s(swarm, name) - before - idle_share * (time.perf_counter() - began_s)
            tell(
                "scrape",
                daemon=name,
                cpu_ms=1e3 * spent / SCRAPES,
                median_ms=1e3 * statistics.median(took),
                bytes=len(told.content),
                lines=told.text.count("\n"),
            )


@contextmanager
def scraping(targets: list[str], every_s: float) -> Iterator[None]:
    """Scrape all targets so often inside; 0: never."""
    over = threading.Event()

    def scrape() -> None:
        with httpx.Client(headers=HEADERS, timeout=60, trust_env=False) as client:
            while not over.wait(every_s):
                for target in targets:
                    client.get(f"http://{target}/metrics")

    thread = threading.Thread(target=scrape)
    if every_s:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if every_s:
            thread.join()


def running_answer(swarm: LocalSwarm, targets: list[str], rounds: int, round_s: float) -> None:
    """Tell what scraping costs an answer, in turns: in tokens a second, and in processor time, which other programs disturb less."""
    rates: dict[float, list[float]] = {0: [], 5: [], 1: []}
    spent: dict[float, list[float]] = {0: [], 5: [], 1: []}
    each: dict[float, list[float]] = {0: [], 5: [], 1: []}
    for _ in range(rounds):
        for every_s, found in rates.items():
            with scraping(targets, every_s):
                before, began_s = sum(cpu_s(swarm, name) for name in DAEMONS), time.perf_counter()
                whole = sum(cpu_s(swarm, name, with_engine=True) for name in DAEMONS)
                seen = load(swarm.api, 1, round_s)
                took = time.perf_counter() - began_s
                spent[every_s].append((sum(cpu_s(swarm, name) for name in DAEMONS) - before) / took)
                whole = sum(cpu_s(swarm, name, with_engine=True) for name in DAEMONS) - whole
                each[every_s].append(1e3 * whole / seen.tokens)
            found.append(seen.tokens / took)
    for every_s, found in rates.items():
        tell(
            "answer",
            scraped_every_s=every_s,
            tokens_per_s=statistics.median(found),
            over_unscraped=statistics.median(a / b for a, b in zip(found, rates[0], strict=True)),
            daemons_cpu=statistics.median(spent[every_s]),
            cpu_ms_per_token=statistics.median(each[every_s]),
            cpu_over_unscraped=statistics.median(a / b for a, b in zip(each[every_s], each[0], strict=True)),
            all=[round(one, 1) for one in found],
        )


def serve(halves: Halves, swarm: LocalSwarm) -> list[str]:
    """Start everything. Returns: what is to be scraped."""
    halves.start_coordinator(swarm)
    ports = free_ports(2)
    for index, port in enumerate(ports):
        halves.start_node(swarm, index, "--metrics-listen", f"127.0.0.1:{port}")
    swarm.wait_ready(120)
    return [swarm.api.removeprefix("http://"), *(f"127.0.0.1:{port}" for port in ports)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-s", type=float, default=15)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-metrics-") as scratch:
        root = Path(scratch)
        halves = halve(arguments.model or find_demo_model(), "bench", root / "cache")
        with LocalSwarm(root / "swarm") as swarm:
            targets = serve(halves, swarm)
            load(swarm.api, 1, 5)
            if arguments.seconds:
                seen_and_told(swarm, root, targets, arguments.clients, arguments.seconds)
            one_scrape(swarm, targets)
            running_answer(swarm, targets, arguments.rounds, arguments.round_s)


if __name__ == "__main__":
    main()
