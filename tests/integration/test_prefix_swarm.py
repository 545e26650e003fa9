"""The second turn of a chat over two nodes: it starts from the first one's KV, and the answer is that of a cold start."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.random_models import bpe_vocabulary
from tests.support.two_nodes import complete, tiny_halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

FIRST = [40 + index % 30 for index in range(48)]
END = "tokenizer.ggml.eos_token_id"
THIRD = [90 + index % 20 for index in range(40)]
NEXT = [81, 82, 83, 84, 85, 86, 87, 88, 89]


def answer_to(swarm: LocalSwarm, prompt: list[int], **more: object) -> list[int]:
    tokens: list[int] = complete(swarm, prompt, **{"max_tokens": 12, **more})["choices"][0]["token_ids"]
    return tokens


def test_the_second_turn_runs_only_what_is_new_and_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = tiny_halves(tmp_path)
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.serve(swarm)
        answer = answer_to(swarm, FIRST)
        second = [*FIRST, *answer, *NEXT]
        warm = answer_to(swarm, second)
        totals = swarm.get("/status")["requests"]
        end = {str(bpe_vocabulary()[END]): 100}
        answer_to(swarm, THIRD, ignore_eos=False, logit_bias=end, max_tokens=60)  # ends while its run goes on
        after_end = answer_to(swarm, [*THIRD, *NEXT])
        later = swarm.get("/status")["requests"]
        port = swarm.listen_port
        swarm.processes.pop("coordinator").kill()
        monkeypatch.setenv("SHARDNET_PREFIXES__ENABLED", "false")
        halves.start_coordinator(swarm, "--listen", f"127.0.0.1:{port}")
        swarm.wait_ready(60)
        cold = answer_to(swarm, second)
        cold_after_end = answer_to(swarm, [*THIRD, *NEXT])
        off = swarm.get("/status")["requests"]
    assert warm == cold
    assert after_end == cold_after_end
    assert (later["prefix_hits"], later["failed"]) == (2, 0)
    assert later["prefix_tokens_reused"] - totals["prefix_tokens_reused"] == len(THIRD)
    assert totals["prefix_hits"] == 1
    assert totals["prefix_tokens_reused"] == len(FIRST) + len(answer) - 1
    assert (totals["sequences_kept"], totals["retried"], totals["failed"]) == (1, 0, 0)
    assert (off["prefix_hits"], off["sequences_kept"]) == (0, 0)
