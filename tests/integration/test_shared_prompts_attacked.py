"""Chats that share a beginning, over two nodes, while clients go away and a node is killed: whoever stays gets the numbers of a cold start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.random_models import tiny_llama
from tests.support.two_nodes import Halves, halve

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SYSTEM = [40 + 7 * index % 90 for index in range(1600)]
TOOLS = [45 + 11 * index % 80 for index in range(90)]
JSON = {"response_format": {"type": "json_object"}}


def own(number: int) -> list[int]:
    return [150 + 10 * number + index % 7 for index in range(11 + number)]


async def ask(client: httpx.AsyncClient, prompt: Sequence[int], more: dict[str, Any] | None = None) -> Any:
    """Returns: the token that follows, and the log-probabilities of the most likely ones."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    answer = await client.post("/completions", json=body | {"return_token_ids": True} | (more or {}))
    assert answer.status_code == httpx.codes.OK, answer.text
    [choice] = answer.json()["choices"]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]


async def waiting(swarm: LocalSwarm, counts: range, requests: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until so many requests wait for a beginning, or one of these is through already: a quick machine leaves no time."""
    while not any(one.done() and not one.cancelled() for one in requests):
        if (await asyncio.to_thread(swarm.get, "/status"))["requests"]["waiting"] in counts:
            return
        await asyncio.sleep(0.005)


async def storm(swarm: LocalSwarm, halves: Halves, everything: Sequence[tuple[list[int], dict[str, Any]]]) -> list[Any]:
    """Returns: the answers of those who stayed."""
    found = []
    async with httpx.AsyncClient(base_url=f"{swarm.api}/v1", timeout=120, trust_env=False) as client:
        # The one who computes goes away, and one who waits for it.
        first = [asyncio.create_task(ask(client, SYSTEM + own(number))) for number in range(4)]
        await waiting(swarm, range(3, 4), first)
        first[0].cancel()
        await waiting(swarm, range(3), first)
        first[2].cancel()
        found += [await first[1], await first[3]]
        # A node is killed while three wait.
        second = [asyncio.create_task(ask(client, [7, *SYSTEM, *own(number)])) for number in range(4)]
        await waiting(swarm, range(3, 4), second)
        swarm.processes.pop("node-1").kill()
        halves.start_node(swarm, 1)
        found += await asyncio.gather(*second)
        # More than there are places, all that there is, at once.
        embedding = client.post("/embeddings", json={"model": "tiny", "input": [SYSTEM[:200]]})
        *answers, embedded = await asyncio.gather(*(ask(client, *one) for one in everything), embedding)
        assert embedded.status_code == httpx.codes.OK, embedded.text
    return found + answers


async def alone(swarm: LocalSwarm, prompts: Sequence[tuple[list[int], dict[str, Any]]]) -> list[Any]:
    async with httpx.AsyncClient(base_url=f"{swarm.api}/v1", timeout=120, trust_env=False) as client:
        return [await ask(client, *one) for one in prompts]


async def test_whoever_stays_has_the_numbers_of_a_cold_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDNET_SEQUENCES__N_SEQ", "4")
    monkeypatch.setenv("SHARDNET_SEQUENCES__PROMPT_CHUNK", "16")
    halves = halve(tiny_llama(tmp_path / "tiny.gguf", n_ctx=4096), "tiny", tmp_path / "cache")
    warm: dict[str, Any] = {"temperature": 1.0}
    everything: list[tuple[list[int], dict[str, Any]]] = [
        ([9, *SYSTEM[:800], *own(0)], warm | {"seed": 1}),
        ([9, *SYSTEM[:800], *own(0)], warm | {"seed": 2}),  # the same prompt, another draw
        ([9, *SYSTEM[:800], *TOOLS, *own(1)], {}),  # beginnings within beginnings
        ([9, *SYSTEM[:800], *TOOLS, *SYSTEM[:120], *own(2)], JSON),
        ([9, *SYSTEM[:800], *TOOLS, *SYSTEM[:120], *own(3)], {"speculate": False}),
        (SYSTEM[:12], {}),  # too short to be shared
        ([9, *SYSTEM[:800]], warm | {"seed": 3}),
    ]
    stayed: list[tuple[list[int], dict[str, Any]]] = [
        *((SYSTEM + own(number), {}) for number in (1, 3)),
        *(([7, *SYSTEM, *own(number)], {}) for number in range(4)),
        *everything,
    ]
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.serve(swarm)
        shared = await storm(swarm, halves, everything)
        counts = swarm.get("/status")["requests"]
        port = swarm.listen_port
        swarm.processes.pop("coordinator").kill()
        monkeypatch.setenv("SHARDNET_PREFIXES__ENABLED", "false")
        monkeypatch.setenv("SHARDNET_SEQUENCES__PROMPT_CHUNK", "64")
        halves.start_coordinator(swarm, "--listen", f"127.0.0.1:{port}")
        await asyncio.to_thread(swarm.wait_ready, 60)
        cold = await alone(swarm, stayed)
    assert shared == cold
    assert (counts["failed"], counts["running"], counts["waiting"]) == (0, 0, 0)
    assert counts["cancelled"] <= 2  # either may be through before it is seen to go
    assert counts["prefix_copies"] >= 6
