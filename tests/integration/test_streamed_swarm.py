"""A swarm with a node that has less memory than its shard: real processes, asked through the HTTP API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shardnet.inference.engine.memory import need_of
from shardnet.inference.engine.shard_cost import cost_of
from shardnet.inference.worker.loading import PROCESS_BYTES
from shardnet.local.processes import LocalSwarm
from shardnet.messages import ShardOptions
from tests.support.engine_world import plain_logits
from tests.support.quantised_models import quantise
from tests.support.random_models import tiny_llama
from tests.support.two_nodes import complete, halve

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

OPTIONS = ShardOptions(n_ctx=256, n_seq=2, n_batch=64)
N_TOKENS = 12
PROMPT = list(range(40, 57))
SAME_OPTIONS = {
    f"SHARDNET_{section}{name.upper()}": str(value)
    for section in ("SEQUENCES__", "NODE__PRELOAD_")
    for name, value in OPTIONS.model_dump().items()
    if value is not None
}


def test_a_resident_and_a_streamed_node_answer_as_the_unsplit_model_does_without_repacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resident node has its shard repacked at first; the coordinator has it loaded anew, so that the pipeline is of one kind."""
    whole = tiny_llama(tmp_path / "f32.gguf", n_layers=12, n_embd=256, quantisation="F32", tied=False)
    halves = halve(quantise(whole, tmp_path / "small.gguf", "Q4_K_M"), "tiny", tmp_path / "cache")
    need = need_of(cost_of(halves.folder / "shard-1.gguf"), OPTIONS)
    limit = PROCESS_BYTES + need.total - need.weights // 2
    small = {"SHARDNET_INFERENCE__MEMORY_MODE": "auto", "SHARDNET_INFERENCE__MEMORY_LIMIT_BYTES": str(limit)}
    for name, value in SAME_OPTIONS.items():
        monkeypatch.setenv(name, value)
    with LocalSwarm(tmp_path / "swarm") as swarm:
        swarm.start_coordinator("--models-cache", str(halves.cache))
        halves.start_node(swarm, 0)
        halves.start_node(swarm, 1, env=small)
        swarm.wait_ready(60)
        answer = complete(swarm, PROMPT, max_tokens=N_TOKENS)
        swarm.wait_for(lambda: bool(_streamed(swarm)), 20, "what the engine tells of its streamed shard")
        told, status = _streamed(swarm), swarm.get("/status")
        command = [sys.executable, "-m", "shardnet", "status", "--api", swarm.api]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    expected, _ = plain_logits(halves.whole, PROMPT, N_TOKENS, OPTIONS, repack=False)
    assert answer["choices"][0]["token_ids"] == expected
    assert told["budget_bytes"] < told["weights_bytes"]
    assert status is not None
    held = {one["shard_id"]: one for node in status["nodes"] for one in node["held"] if one["loaded"]}
    assert {shard: (one["memory_mode"], one["repacked"]) for shard, one in held.items()} == {
        0: ("resident", False),
        1: ("streamed", False),
    }
    assert [[stage["repacked"] for stage in one] for one in status["models"][0]["pipelines"]] == [[False, False]]
    assert "shard 1 of tiny: streamed, " in shown
    assert " of 6 layers stay, " in shown


def _streamed(swarm: LocalSwarm) -> dict[str, int]:
    """Returns: what the coordinator knows of the streamed shard; nothing yet at first."""
    status = swarm.get("/status") or {"nodes": []}
    return next((one["streamed"] for node in status["nodes"] for one in node["held"] if one["streamed"]), {})
