"""Speculation over two nodes: the same answer, fewer steps, counted in the answer and in `/status`."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.two_nodes import complete, tiny_halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

PROMPT = "one two one two one two one"


def test_over_two_nodes_the_answer_is_the_same_and_proposals_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDNET_SPECULATION__ENABLED", "true")
    with LocalSwarm(tmp_path / "swarm") as swarm:
        tiny_halves(tmp_path).serve(swarm)
        plain = complete(swarm, PROMPT, max_tokens=60, speculation=False)
        found = complete(swarm, PROMPT, max_tokens=60, speculation=True)
        totals = swarm.get("/status")["requests"]
    assert found["choices"][0]["token_ids"] == plain["choices"][0]["token_ids"]
    assert "speculation" not in plain["shardnet"]
    counted = found["shardnet"]["speculation"]
    assert 0 < counted["accepted"] <= counted["proposed"]
    assert (totals["tokens_proposed"], totals["tokens_accepted"]) == (counted["proposed"], counted["accepted"])
