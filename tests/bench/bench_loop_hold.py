"""How long the coordinator's event loop is held while bodies of 4 MB, full of what looks like control tokens, are read, rendered and tokenized.

    python -m tests.bench.bench_loop_hold [MODEL.gguf] [--times 3] [--megabytes 3.9] [--only CASE,CASE]

Run it from the repository's root. A coordinator and two nodes as processes (SmolLM2 if no model is named); the bodies are sent one after the
other. Two clocks watch: a timer of one millisecond in the coordinator's own loop (`tests/support/probed_loop.py`; `hold_ms` is how late it came at
most, `own_hold_ms` the same where no more counts than the process's own processor time: on a busy machine the former is others' doing), and
`/healthz` asked every 5 ms from another process (`healthz_ms`, at most). Prints a line of JSON for the idle coordinator, and one for each body: the
middle and the worst of its times.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from shardnet.local import processes
from shardnet.local.model import find_demo_model
from shardnet.local.processes import LocalSwarm, Process
from tests.support.two_nodes import halve

LOOKS_LIKE = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>assistant\n")
POLL_S = 0.005
IDLE_S = 3.0


class ProbedSwarm(LocalSwarm):
    """Its coordinator's loop is watched."""

    @property
    def told(self) -> Path:
        """Where the probe writes."""
        return self.folder / "held"

    def start(
        self, name: str, *arguments: str, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> Process:
        """As of any swarm."""
        probe = (sys.executable, "-m", "tests.support.probed_loop", str(self.told))
        with patch.object(processes, "python_module", lambda _: probe) if name == "coordinator" else nullcontext():
            return super().start(name, *arguments, env=env, prefix=prefix)


def looks_alike(size: int) -> str:
    """Returns: a text of so many characters, a look-alike every 60."""
    words = "The quick brown fox jumps over the lazy dog, twice. "
    pieces = [f"{words}{LOOKS_LIKE[number % len(LOOKS_LIKE)]}" for number in range(16)]
    return ("".join(pieces) * (size // len("".join(pieces)) + 1))[:size]


def many(count: int, size: int, one: Callable[[int, str], Any]) -> list[Any]:
    """Returns: so many parts that share a text."""
    text = looks_alike(size // count)
    return [one(number, text) for number in range(count)]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def function(number: int, text: str) -> dict[str, Any]:
    city = {"type": "string", "description": text[: len(text) // 2]}
    schema = {"type": "object", "properties": {"city": city, text[:30]: {"enum": [text[:20]]}}}
    named = {"name": f"f{number}", "description": text[len(text) // 2 :], "parameters": schema}
    return {"type": "function", "function": named}


def turn(number: int, text: str) -> dict[str, str]:
    return {"role": ("user", "assistant")[number % 2], "content": text}


def called(number: int, text: str) -> dict[str, Any]:
    if number % 3 == 0:
        return {"role": "user", "content": text}
    if number % 3 == 2:
        return {"role": "tool", "tool_call_id": "abcdefghi", "content": text}
    call = {"name": "f", "arguments": json.dumps({"city": text, text[:20]: [1, 2, text[:20]]})}
    return {"role": "assistant", "tool_calls": [{"id": "abcdefghi", "type": "function", "function": call}]}


LENGTHS = {"/v1/responses": "max_output_tokens"}
CHAT, COMPLETION, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
BODIES: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "chat one message": lambda size: (CHAT, {"messages": asked(looks_alike(size))}),
    "chat look-alikes alone": lambda size: (CHAT, {"messages": asked(LOOKS_LIKE[0] * (size // len(LOOKS_LIKE[0])))}),
    "chat 2000 messages": lambda size: (CHAT, {"messages": many(2000, size, turn)}),
    "chat 10000 messages": lambda size: (CHAT, {"messages": many(10_000, size - 400_000, turn)}),
    "chat calls": lambda size: (CHAT, {"messages": many(3000, size - 600_000, called)}),
    "chat 1000 tools": lambda size: (CHAT, {"messages": asked("Hi"), "tools": many(1000, size - 300_000, function)}),
    "chat 1000 tools required": lambda size: (
        CHAT,
        {"messages": asked("Hi"), "tools": many(1000, size - 300_000, function), "tool_choice": "required"},
    ),
    "chat 1000 documents": lambda size: (
        CHAT,
        {"messages": asked("Hi"), "documents": many(1000, size - 100_000, lambda _, text: {"text": text})},
    ),
    "chat variables": lambda size: (
        CHAT,
        {"messages": asked("Hi"), "chat_template_kwargs": {"x": many(2000, size - 100_000, lambda _, text: [text])}},
    ),
    "messages": lambda size: ("/v1/messages", {"messages": many(10_000, size - 400_000, turn)}),
    "responses": lambda size: ("/v1/responses", {"input": many(10_000, size - 400_000, turn)}),
    "embeddings": lambda size: ("/v1/embeddings", {"input": [looks_alike(size)]}),
    "completion text": lambda size: (COMPLETION, {"prompt": looks_alike(size)}),
    "completion 128 texts": lambda size: (COMPLETION, {"prompt": many(128, size, lambda _, text: text)}),
    "completion token ids": lambda size: (COMPLETION, {"prompt": [number % 1000 for number in range(size // 5)]}),
    "completion a schema": lambda size: (
        COMPLETION,
        {"prompt": "Hi", "json_schema": {"properties": {f"{number}": {"enum": [looks_alike(100)]} for number in range(size // 160)}}},
    ),
    "completion unknown fields": lambda size: (
        COMPLETION,
        {"prompt": "Hi", "max_tokens": 1, "what": {f"key{number}": [number, None] for number in range(size // 30)}},
    ),
    "completion wrong everywhere": lambda size: (COMPLETION, {"prompt": [[-1]] * (size // 7)}),
    "chat wrong everywhere": lambda size: (CHAT, {"messages": [{"role": "", "content": 7}] * (size // 30)}),
    "tokenize text": lambda size: (TOKENIZE, {"content": looks_alike(size), "with_pieces": True}),
    "tokenize a chat": lambda size: (TOKENIZE, {"messages": many(1000, size - 100_000, turn)}),
    "detokenize": lambda size: ("/detokenize", {"tokens": [number % 1000 for number in range(size // 5)]}),
}  # fmt: skip


def ask(api: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Returns: the status, and the beginning of the answer."""
    connection = http.client.HTTPConnection(urlsplit(api).netloc, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()[:200]
    finally:
        connection.close()


def poll(address: str, told: Connection) -> None:
    """Ask `/healthz` until told to end. Sends: when each request was sent, and the seconds that it took."""
    connection = http.client.HTTPConnection(address, timeout=60)
    times: list[tuple[float, float]] = []
    told.send("there")
    while not told.poll():
        began_s = time.monotonic()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        took_s = time.monotonic() - began_s
        times.append((began_s, took_s))
        time.sleep(max(0.0, POLL_S - took_s))
    told.send(times)


@contextmanager
def polled(api: str) -> Iterator[list[tuple[float, float]]]:
    """Yields: a list that has at the end what `poll` found."""
    own, theirs = multiprocessing.Pipe()
    found: list[tuple[float, float]] = []
    poller = multiprocessing.get_context("spawn").Process(target=poll, args=(urlsplit(api).netloc, theirs))
    poller.start()
    own.recv()
    try:
        yield found
        own.send(None)
        found += own.recv()
    finally:
        poller.join()


def longest(found: list[tuple[float, float]], begun_s: float, ended_s: float) -> float:
    """Returns: milliseconds; of what was under way between two times."""
    return max((took_s * 1e3 for at_s, took_s in found if at_s + took_s > begun_s and at_s < ended_s), default=0.0)


def holds(swarm: ProbedSwarm, begun_s: float, ended_s: float) -> tuple[float, float]:
    """Returns: milliseconds of the loop's longest hold between two times, as it saw itself, and of the longest one less what other processes took."""
    wall, own = [0.0], [0.0]
    for line in swarm.told.read_text().splitlines():
        end_s, held_ms, cpu_ms = map(float, line.split())
        if begun_s < end_s and end_s - held_ms / 1e3 < ended_s:
            wall.append(held_ms)
            own.append(min(held_ms, cpu_ms))
    return max(wall), max(own)


def tell(case: str, **facts: Any) -> None:
    shown = {key: round(value, 1) if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({"bench": "loop_hold", "case": case, **shown}), flush=True)


def measure(swarm: ProbedSwarm, cases: list[str], size: int, times: int) -> None:
    with polled(swarm.api) as found:
        begun_s = time.monotonic()
        time.sleep(IDLE_S)
        spans: dict[str, list[tuple[float, float]]] = {"idle": [(begun_s, time.monotonic())]}
        told: dict[str, dict[str, Any]] = {"idle": {"load": os.getloadavg()[0]}}
        for case in cases:
            path, asked_for = BODIES[case](size)
            body = json.dumps({"model": "model", LENGTHS.get(path, "max_tokens"): 1} | asked_for).encode()
            for _ in range(times):
                begun_s = time.monotonic()
                status, answer = ask(swarm.api, path, body)
                spans.setdefault(case, []).append((begun_s, time.monotonic()))
                time.sleep(0.05)
            message = answer[:160].decode(errors="replace") if status != http.HTTPStatus.OK else ""
            told[case] = {"megabytes": len(body) / 1e6, "status": status, "answer": message}
    for case, some in spans.items():
        held = [holds(swarm, *one) for one in some]
        seen = [longest(found, *one) for one in some]
        tell(
            case,
            seconds=statistics.median(end - begin for begin, end in some),
            hold_ms=statistics.median(wall for wall, _ in held),
            worst_hold_ms=max(wall for wall, _ in held),
            own_hold_ms=statistics.median(own for _, own in held),
            worst_own_hold_ms=max(own for _, own in held),
            healthz_ms=statistics.median(seen),
            worst_healthz_ms=max(seen),
            **told[case],
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=None)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=3.9)
    parser.add_argument("--only", default="", help="parts of the names of bodies, with commas between")
    arguments = parser.parse_args()
    cases = [case for case in BODIES if any(one in case for one in arguments.only.split(","))]
    model = arguments.model or find_demo_model()
    with tempfile.TemporaryDirectory() as folder, ProbedSwarm(Path(folder) / "swarm") as swarm:
        halve(model, "model", Path(folder) / "cache").serve(swarm)
        measure(swarm, cases, int(arguments.megabytes * 1e6), arguments.times)


if __name__ == "__main__":
    main()
