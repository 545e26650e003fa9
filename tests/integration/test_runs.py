"""Runs over real nodes, disturbed in the middle: whoever is killed or walks away, the answer is the same or nobody computes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardnet.bench.plain import PlainLlama
from shardnet.local.processes import LocalSwarm
from tests.conftest import SplitSmolLM2
from tests.support.asking import ask, stream_events
from tests.support.two_nodes import Halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

TOKENS = 120
STOPPED_S = 3.0
BODY = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def halves(split_smollm2: SplitSmolLM2, smollm2: Path) -> Halves:
    return Halves("smollm2", smollm2, *split_smollm2(2))


@pytest.fixture
def swarm(tmp_path: Path, halves: Halves) -> Iterator[LocalSwarm]:
    """To be disturbed."""
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.serve(swarm)
        yield swarm


@pytest.fixture(scope="module")
def calm_swarm(tmp_path_factory: pytest.TempPathFactory, halves: Halves) -> Iterator[LocalSwarm]:
    """All of whose processes live on."""
    with LocalSwarm(tmp_path_factory.mktemp("calm")) as swarm:
        halves.serve(swarm)
        yield swarm


def begin(swarm: LocalSwarm, tokens: int) -> tuple[Generator[dict[str, Any], None, None], list[int]]:
    """Returns: an answer's events, and its first tokens, so many or a few more."""
    events, found = stream_events(swarm.api, "/v1/completions", BODY | {"return_token_ids": True}), []
    for event in events:
        found += tokens_of(event)
        if len(found) >= tokens:
            return events, found
    raise AssertionError(f"the answer ended after {len(found)} tokens")


def tokens_of(event: dict[str, Any]) -> list[int]:
    return [token for choice in event.get("choices", []) for token in choice.get("token_ids") or []]


def sequences(swarm: LocalSwarm) -> list[int]:
    status = swarm.get("/status")
    return [] if not status else [node["sequences"] for node in status["nodes"]]


def test_a_stage_killed_in_the_middle_of_a_run_costs_no_token(swarm: LocalSwarm, halves: Halves) -> None:
    events, found = begin(swarm, 15)
    swarm.processes.pop("node-1").kill()
    halves.start_node(swarm, 1)
    for event in events:
        found += tokens_of(event)
    undisturbed = ask(swarm.api, "/v1/completions", BODY)
    assert found == undisturbed.token_ids
    with PlainLlama(halves.whole, n_ctx=1024, threads=1) as plain:
        assert found == plain.generate(undisturbed.prompt_token_ids, TOKENS).tokens


def test_a_client_that_walks_away_stops_the_run_on_every_stage(calm_swarm: LocalSwarm) -> None:
    swarm = calm_swarm
    events, _ = begin(swarm, 5)
    assert sequences(swarm) != []
    events.close()
    swarm.wait_for(lambda: sequences(swarm) == [0, 0], 20, "both stages to be free")


def test_a_coordinator_killed_in_the_middle_of_a_run_leaves_nodes_that_serve_the_next_one(
    swarm: LocalSwarm, halves: Halves
) -> None:
    _, found = begin(swarm, 5)
    port = swarm.listen_port
    swarm.processes.pop("coordinator").kill()
    halves.start_coordinator(swarm, "--listen", f"127.0.0.1:{port}")
    swarm.wait_ready(60)
    swarm.wait_for(lambda: sequences(swarm) == [0, 0], 20, "what the old coordinator began to be freed")
    answer = ask(swarm.api, "/v1/completions", BODY)
    assert answer.token_ids[: len(found)] == found


def test_log_probabilities_come_with_every_token_of_a_run(calm_swarm: LocalSwarm) -> None:
    swarm = calm_swarm
    plain = ask(swarm.api, "/v1/completions", BODY | {"max_tokens": 12})
    body = BODY | {"max_tokens": 12, "logprobs": 2, "return_token_ids": True}
    tokens, listed = [], 0
    for event in stream_events(swarm.api, "/v1/completions", body):
        tokens += tokens_of(event)
        listed += sum(len((choice.get("logprobs") or {}).get("tokens", [])) for choice in event.get("choices", []))
    assert tokens == plain.token_ids
    assert listed == len(tokens)


def engine_of(swarm: LocalSwarm, name: str) -> int:
    """Returns: the process id of a node's engine."""
    (engine,) = psutil.Process(swarm.processes[name].pid).children()
    return engine.pid


def test_a_stages_engine_that_stands_still_for_a_while_costs_no_token(swarm: LocalSwarm) -> None:
    began_s = time.monotonic()
    events, found = begin(swarm, 15)
    pid = engine_of(swarm, "node-1")
    os.kill(pid, signal.SIGSTOP)
    goes_on = threading.Timer(STOPPED_S, os.kill, (pid, signal.SIGCONT))
    goes_on.start()
    for event in events:
        found += tokens_of(event)
    goes_on.join()
    assert time.monotonic() - began_s > STOPPED_S, "it was stopped in the middle"
    assert engine_of(swarm, "node-1") == pid
    assert found == ask(swarm.api, "/v1/completions", BODY).token_ids


@pytest.mark.parametrize("name", ["node-0", "node-1"])
def test_a_stage_that_is_asked_to_stop_finishes_its_runs_first(swarm: LocalSwarm, name: str) -> None:
    undisturbed = ask(swarm.api, "/v1/completions", BODY)
    events, found = begin(swarm, 5)
    leaving = swarm.processes.pop(name)
    leaving.terminate()
    for event in events:
        found += tokens_of(event)
    assert leaving.wait(20) == 0
    assert any("Draining: 1 task" in line for line in leaving.tail), "it was asked in the middle"
    assert found == undisturbed.token_ids
