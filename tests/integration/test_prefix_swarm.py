"""The second turn of a chat over two nodes: it starts from the first one's KV, and the answer is that of a cold start."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shardnet.demo.processes import LocalSwarm
from shardnet.inference.split import CutRequest, plan_split, split_model
from tests.random_models import bpe_vocabulary, tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

FIRST = [40 + index % 30 for index in range(48)]
END = "tokenizer.ggml.eos_token_id"
THIRD = [90 + index % 20 for index in range(40)]
NEXT = [81, 82, 83, 84, 85]


def complete(swarm: LocalSwarm, prompt: list[int], **more: object) -> list[int]:
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    } | more
    request = urllib.request.Request(
        f"{swarm.api}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    tokens: list[int] = found["choices"][0]["token_ids"]
    return tokens


def serve(swarm: LocalSwarm, tmp_path: Path, folder: Path) -> None:
    swarm.start_coordinator("--models-cache", str(tmp_path / "cache"), "--stages", "2")
    for index in range(2):
        own = swarm.folder / f"node-{index}"
        target = own / "shards" / folder.name
        target.mkdir(parents=True)
        for name in (f"shard-{index}.gguf", "tokenizer.gguf", "manifest.json"):
            shutil.copy(folder / name, target / name)
        swarm.start_node(f"node-{index}", own, "--shard", str(index))
    swarm.wait_ready(60)


def test_the_second_turn_runs_only_what_is_new_and_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "tiny.gguf"
    tiny_llama(model)
    folder, _ = split_model(plan_split(model, CutRequest(n_shards=2), "tiny"), tmp_path / "cache")
    with LocalSwarm(tmp_path / "warm") as swarm:
        serve(swarm, tmp_path, folder)
        answer = complete(swarm, FIRST)
        second = [*FIRST, *answer, *NEXT]
        warm = complete(swarm, second)
        totals = swarm.get("/status")["requests"]
        end = {str(bpe_vocabulary()[END]): 100}
        complete(swarm, THIRD, ignore_eos=False, logit_bias=end, max_tokens=60)  # ends while its run goes on
        after_end = complete(swarm, [*THIRD, *NEXT])
        later = swarm.get("/status")["requests"]
    monkeypatch.setenv("SHARDNET_PREFIXES__ENABLED", "false")
    with LocalSwarm(tmp_path / "cold") as swarm:
        serve(swarm, tmp_path, folder)
        cold = complete(swarm, second)
        cold_after_end = complete(swarm, [*THIRD, *NEXT])
        off = swarm.get("/status")["requests"]
    assert warm == cold
    assert after_end == cold_after_end
    assert (later["prefix_hits"], later["failed"]) == (2, 0)
    assert later["prefix_tokens_reused"] - totals["prefix_tokens_reused"] == len(THIRD)
    assert totals["prefix_hits"] == 1
    assert totals["prefix_tokens_reused"] == len(FIRST) + len(answer) - 1
    assert (totals["sequences_kept"], totals["retried"], totals["failed"]) == (1, 0, 0)
    assert (off["prefix_hits"], off["sequences_kept"]) == (0, 0)
