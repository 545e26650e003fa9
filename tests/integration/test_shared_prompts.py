"""Chats at once that begin with one system prompt, over two nodes: computed once, with the numbers of cold starts; also after a node was lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.two_nodes import complete, tiny_halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SYSTEM = [40 + 7 * index % 90 for index in range(200)]
OWN = [[150 + 10 * chat + index % 7 for index in range(11 + chat)] for chat in range(4)]
ONE = len(SYSTEM)


def first_tokens(swarm: LocalSwarm, prompts: list[list[int]], at_once: int) -> list[Any]:
    """Returns: of each prompt the token that follows it, and the log-probabilities of the most likely ones."""

    def ask(prompt: list[int]) -> Any:
        [choice] = complete(swarm, prompt, max_tokens=1, logprobs=5)["choices"]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, prompts))


def test_four_chats_at_once_compute_their_system_prompt_once_and_have_the_numbers_of_cold_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDNET_SEQUENCES__N_SEQ", "4")
    monkeypatch.setenv("SHARDNET_SEQUENCES__PROMPT_CHUNK", "16")
    halves = tiny_halves(tmp_path)
    prompts = [SYSTEM + own for own in OWN]
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.serve(swarm)
        shared = first_tokens(swarm, prompts, 4)
        counts = swarm.get("/status")["requests"]
        warm = first_tokens(swarm, prompts, 4)
        swarm.processes.pop("node-1").kill()
        swarm.wait_for(lambda: swarm.get("/healthz")["nodes"] == 1, 20, "the loss to be seen")
        halves.start_node(swarm, 1)
        swarm.wait_ready(60)
        after_loss = first_tokens(swarm, prompts, 4)
        totals = swarm.get("/status")["requests"]
        port = swarm.listen_port
        swarm.processes.pop("coordinator").kill()
        monkeypatch.setenv("SHARDNET_PREFIXES__ENABLED", "false")
        monkeypatch.setenv("SHARDNET_SEQUENCES__PROMPT_CHUNK", "64")
        halves.start_coordinator(swarm, "--listen", f"127.0.0.1:{port}")
        swarm.wait_ready(60)
        cold = first_tokens(swarm, prompts, 1)
    assert shared == warm == after_loss == cold
    assert totals["failed"] == 0
    assert counts["prefix_hits"] == 3
    assert counts["prompt_rows"] + counts["prefix_tokens_reused"] == sum(map(len, prompts))
    assert counts["prefix_tokens_reused"] == 3 * ONE
