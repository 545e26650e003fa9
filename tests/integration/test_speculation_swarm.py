"""Speculation over two nodes: the same answer, fewer steps, counted in the answer and in `/status`."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shardnet.demo.processes import LocalSwarm
from shardnet.inference.split import CutRequest, plan_split, split_model
from tests.random_models import tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def complete(swarm: LocalSwarm, *, speculation: bool) -> dict[str, Any]:
    body = {
        "model": "tiny",
        "prompt": "one two one two one two one",
        "max_tokens": 60,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "speculation": speculation,
    }
    request = urllib.request.Request(
        f"{swarm.api}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def test_over_two_nodes_the_answer_is_the_same_and_proposals_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "tiny.gguf"
    tiny_llama(model)
    folder, _ = split_model(plan_split(model, CutRequest(n_shards=2), "tiny"), tmp_path / "cache")
    monkeypatch.setenv("SHARDNET_SPECULATION__ENABLED", "true")
    with LocalSwarm(tmp_path / "swarm") as swarm:
        swarm.start_coordinator("--models-cache", str(tmp_path / "cache"), "--stages", "2")
        for index in range(2):
            own = tmp_path / f"node-{index}"
            target = own / "shards" / folder.name
            target.mkdir(parents=True)
            for name in (f"shard-{index}.gguf", "tokenizer.gguf", "manifest.json"):
                shutil.copy(folder / name, target / name)
            swarm.start_node(f"node-{index}", own, "--shard", str(index))
        swarm.wait_ready(60)
        plain = complete(swarm, speculation=False)
        found = complete(swarm, speculation=True)
        totals = swarm.get("/status")["requests"]
    assert found["choices"][0]["token_ids"] == plain["choices"][0]["token_ids"]
    assert "speculation" not in plain["shardnet"]
    counted = found["shardnet"]["speculation"]
    assert 0 < counted["accepted"] <= counted["proposed"]
    assert (totals["tokens_proposed"], totals["tokens_accepted"]) == (counted["proposed"], counted["accepted"])
