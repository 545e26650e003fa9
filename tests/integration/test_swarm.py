"""A whole swarm as a user runs it: coordinator and nodes as processes, asked through the HTTP API."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.bench.plain import PlainLlama
from shardnet.demo.client import Answer, ask
from shardnet.demo.processes import LocalSwarm
from shardnet.errors import ShardnetError
from shardnet.inference.split import CutRequest, plan_split, split_model
from tests.random_models import tiny_llama

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MODEL = "tiny"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    tiny_llama(path)
    return path


@pytest.fixture
def swarm(tmp_path: Path, model: Path) -> Iterator[LocalSwarm]:
    """A coordinator and two nodes, one shard each."""
    folder, _ = split_model(plan_split(model, CutRequest(n_shards=2), MODEL), tmp_path / "cache")
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
        yield swarm


def complete(swarm: LocalSwarm, prompt: str = "hello there", max_tokens: int = 12) -> Answer:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    return ask(swarm.api, "/v1/completions", body)


def test_the_answer_over_two_nodes_is_that_of_the_unsplit_model(swarm: LocalSwarm, model: Path) -> None:
    answer = complete(swarm)
    with PlainLlama(model, n_ctx=256) as plain:
        expected = plain.generate(answer.prompt_token_ids, len(answer.token_ids))
    assert len(answer.token_ids) >= 1
    assert answer.token_ids == expected.tokens


def test_the_same_request_twice_gives_the_same_answer(swarm: LocalSwarm) -> None:
    assert complete(swarm).token_ids == complete(swarm).token_ids


def test_a_node_killed_between_requests_is_named_by_its_layers_and_works_again_when_it_is_back(
    swarm: LocalSwarm, tmp_path: Path
) -> None:
    before = complete(swarm)
    swarm.processes.pop("node-1").kill()
    swarm.wait_for(lambda: not _is_served(swarm), 20, "the coordinator to notice the loss")
    with pytest.raises(ShardnetError, match=r"layers \[\d+, \d+\)"):
        complete(swarm)
    swarm.start_node("node-1", tmp_path / "node-1", "--shard", "1")
    swarm.wait_ready(60)
    assert complete(swarm).token_ids == before.token_ids


def test_nodes_survive_their_coordinators_restart(swarm: LocalSwarm, tmp_path: Path) -> None:
    before = complete(swarm)
    port = swarm.listen_port
    swarm.processes.pop("coordinator").kill()
    swarm.start_coordinator("--models-cache", str(tmp_path / "cache"), "--stages", "2", "--listen", f"127.0.0.1:{port}")
    swarm.wait_ready(60)
    assert complete(swarm).token_ids == before.token_ids


def _is_served(swarm: LocalSwarm) -> bool:
    status = swarm.get("/healthz")
    return bool(status and status.get("status") == "ok")


def test_the_demo_runs_and_leaves_no_process(tmp_path: Path, model: Path, home: Path) -> None:
    command = [sys.executable, "-m", "shardnet", "demo", "--model", str(model), "--nodes", "2", "--max-tokens", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical" in done.stdout
    assert "✓✓✓ SHARD 0 LOADED BEFORE JOINING NETWORK ✓✓✓" in done.stdout
