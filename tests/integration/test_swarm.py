"""A whole swarm as a user runs it: coordinator and nodes as processes, asked through the HTTP API."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet import ShardRunner
from shardnet.bench.plain import PlainLlama
from shardnet.errors import ShardnetError
from shardnet.library.answers import Answer
from shardnet.local.processes import LocalSwarm
from tests.support.asking import ask
from tests.support.random_models import tiny_llama
from tests.support.two_nodes import Halves, tiny_halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture
def halves(tmp_path: Path) -> Halves:
    return tiny_halves(tmp_path)


@pytest.fixture
def swarm(tmp_path: Path, halves: Halves) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.serve(swarm)
        yield swarm


def complete(swarm: LocalSwarm) -> Answer:
    body = {"model": "tiny", "prompt": "hello there", "max_tokens": 12, "temperature": 0}
    return ask(swarm.api, "/v1/completions", body)


def test_the_answer_over_two_nodes_is_that_of_the_unsplit_model_each_time(swarm: LocalSwarm, halves: Halves) -> None:
    answer = complete(swarm)
    with PlainLlama(halves.whole, n_ctx=256, threads=1) as plain:
        expected = plain.generate(answer.prompt_token_ids, len(answer.token_ids))
    assert len(answer.token_ids) >= 1
    assert answer.token_ids == expected.tokens
    assert complete(swarm).token_ids == answer.token_ids


def test_a_runner_without_a_swarm_gives_the_tokens_of_shardnet_generate(swarm: LocalSwarm, halves: Halves) -> None:
    """Greedy and sampled, as a chat."""
    for temperature in ("0", "1.5"):
        command = [sys.executable, "-m", "shardnet", "generate", "hello there", "--api", swarm.api, "--json"]
        command += ["--temperature", temperature, "--seed", "5", "--max-tokens", "12"]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        with ShardRunner(halves.folder, mode="memory-efficient", threads=1) as runner:
            messages = [{"role": "user", "content": "hello there"}]
            answer = runner.chat(messages, temperature=float(temperature), seed=5, max_tokens=12)
        assert answer.token_ids == found["token_ids"]
        assert (answer.text, answer.finish_reason) == (found["text"], found["finish_reason"])


def test_a_node_killed_between_requests_is_named_by_its_layers_and_works_again_when_it_is_back(
    swarm: LocalSwarm, halves: Halves
) -> None:
    before = complete(swarm)
    swarm.processes.pop("node-1").kill()
    swarm.wait_for(lambda: not _is_served(swarm), 20, "the coordinator to notice the loss")
    with pytest.raises(ShardnetError, match=r"layers \[\d+, \d+\)"):
        complete(swarm)
    halves.start_node(swarm, 1)
    swarm.wait_ready(60)
    assert complete(swarm).token_ids == before.token_ids


def _is_served(swarm: LocalSwarm) -> bool:
    status = swarm.get("/healthz")
    return bool(status and status.get("status") == "ok")


def test_the_demo_runs_and_leaves_no_process(tmp_path: Path, home: Path) -> None:
    model = tiny_llama(tmp_path / "tiny.gguf")
    command = [sys.executable, "-m", "shardnet", "demo", "--model", str(model), "--nodes", "2", "--max-tokens", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical" in done.stdout
    assert "✓✓✓ SHARD 0 LOADED BEFORE JOINING NETWORK ✓✓✓" in done.stdout
