"""What is read of prompts over two nodes: embeddings and log-probabilities of the unsplit model, beside other requests, and when a node is lost."""

from __future__ import annotations

import base64
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.local.processes import LocalSwarm
from tests.support.plain_embeddings import plain_embedding
from tests.support.two_nodes import Halves, complete, tiny_halves

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

TEXTS = [[40 + (7 * index + 11 * number) % 200 for index in range(3 + 9 * number)] for number in range(8)]


def post(swarm: LocalSwarm, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{swarm.api}{path}", json={"model": "tiny"} | body, timeout=90, trust_env=False)
    assert answer.status_code == httpx.codes.OK, answer.text
    found: dict[str, Any] = answer.json()
    return found


def vectors(answer: dict[str, Any]) -> list[NDArray[np.float32]]:
    return [np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in answer["data"]]


def expected(halves: Halves, text: list[int], pooling: str) -> NDArray[np.float32]:
    plain = plain_embedding(halves.whole, text, pooling).astype(np.float64)
    normal: NDArray[np.float32] = (plain / np.sqrt(np.square(plain).sum())).astype(np.float32)
    return normal


def check_embeddings(swarm: LocalSwarm, halves: Halves) -> None:
    for pooling, delta in (("last", 0.0), ("cls", 0.0), ("mean", 1e-6)):
        answer = post(swarm, "/v1/embeddings", input=TEXTS, encoding_format="base64", pooling=pooling)
        for text, vector in zip(TEXTS, vectors(answer), strict=True):
            assert float(np.abs(vector - expected(halves, text, pooling)).max()) <= delta


def check_embeddings_when_a_node_is_lost(swarm: LocalSwarm, halves: Halves) -> None:
    begun = swarm.get("/status")["requests"]
    before = complete(swarm, TEXTS[3], max_tokens=6)["choices"][0]["token_ids"]
    with ThreadPoolExecutor(1) as pool:
        many: Future[dict[str, Any]] = pool.submit(
            post, swarm, "/v1/embeddings", input=TEXTS * 40, encoding_format="base64"
        )
        swarm.wait_for(
            lambda: (swarm.get("/status") or begun)["requests"]["finished"] > begun["finished"] + 4,
            30,
            "some embeddings",
        )
        beside = complete(swarm, TEXTS[3], max_tokens=6)["choices"][0]["token_ids"]
        assert not many.done()
        swarm.processes.pop("node-1").kill()
        halves.start_node(swarm, 1)
        found = vectors(many.result())
    assert beside == before
    right = [expected(halves, text, "last") for text in TEXTS] * 40
    assert all(np.array_equal(vector, one) for vector, one in zip(found, right, strict=True))
    assert swarm.get("/status")["requests"]["retried"] > begun["retried"]


def test_what_is_read_of_prompts_is_the_unsplit_models_also_when_a_node_is_lost_in_the_middle(tmp_path: Path) -> None:
    halves = tiny_halves(tmp_path)
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.serve(swarm)
        check_embeddings(swarm, halves)
        check_embeddings_when_a_node_is_lost(swarm, halves)
