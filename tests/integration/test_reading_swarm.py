"""What is read of prompts over two nodes: embeddings and log-probabilities of the unsplit model, beside other requests, and when a node is lost."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.local.processes import LocalSwarm
from tests.support.plain_embeddings import plain_embedding, plain_row_logits
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


def check_logprobs(swarm: LocalSwarm, halves: Halves) -> None:
    """Of a prompt of more rows than a stage reads at once; the answer that follows it is the one without."""
    prompt = TEXTS[-1] * 3
    plain = complete(swarm, prompt, max_tokens=8)["choices"][0]
    scored = complete(swarm, prompt, max_tokens=8, echo=True, logprobs=2)["choices"][0]
    assert scored["token_ids"] == plain["token_ids"]
    logits = plain_row_logits(halves.whole, prompt).astype(np.float64)
    right = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = scored["logprobs"]
    assert found["token_logprobs"][0] is None
    assert len(found["token_logprobs"]) == len(prompt) + 8
    for row, (following, number, tops) in enumerate(
        zip(prompt[1:], found["token_logprobs"][1:], found["top_logprobs"][1:], strict=False)
    ):
        assert abs(right[row, following] - number) < 1e-5
        assert np.abs(np.sort(right[row])[::-1][:2] - list(tops.values())).max() < 1e-5
    alone = post(swarm, "/v1/completions", prompt=[prompt, TEXTS[1]], max_tokens=0, echo=True, logprobs=2)["choices"]
    assert alone[0]["logprobs"]["token_logprobs"] == found["token_logprobs"][: len(prompt)]


def check_when_a_node_is_lost(swarm: LocalSwarm, halves: Halves) -> None:
    """Two requests of many parts beside each other, with all places in use."""
    score = {"prompt": TEXTS * 15, "max_tokens": 0, "echo": True, "logprobs": 1}
    scored = post(swarm, "/v1/completions", **score)["choices"]
    begun = swarm.get("/status")["requests"]

    def until(happened: Callable[[dict[str, int]], bool]) -> None:
        swarm.wait_for(lambda: happened((swarm.get("/status") or {"requests": begun})["requests"]), 30, "parts of them")

    with ThreadPoolExecutor(2) as pool:
        many = pool.submit(post, swarm, "/v1/embeddings", input=TEXTS * 40, encoding_format="base64")
        until(lambda now: now["finished"] > begun["finished"] + 4)
        scores = pool.submit(post, swarm, "/v1/completions", **score)
        until(lambda now: now["queued"] > 1)  # both stand in line for more places
        queued = swarm.get("/status")["requests"]["finished"]
        until(lambda now: now["finished"] > queued + 4)  # and places go in turns: each has had one
        assert not many.done()
        assert not scores.done()
        swarm.processes.pop("node-1").kill()
        halves.start_node(swarm, 1)
        found = vectors(many.result())
        assert scores.result()["choices"] == scored
    right = [expected(halves, text, "last") for text in TEXTS] * 40
    assert all(np.array_equal(vector, one) for vector, one in zip(found, right, strict=True))
    assert swarm.get("/status")["requests"]["retried"] > begun["retried"]


def test_what_is_read_of_prompts_is_the_unsplit_models_also_when_a_node_is_lost_in_the_middle(tmp_path: Path) -> None:
    halves = tiny_halves(tmp_path)
    with LocalSwarm(tmp_path / "swarm") as swarm:
        halves.serve(swarm)
        check_embeddings(swarm, halves)
        check_logprobs(swarm, halves)
        check_when_a_node_is_lost(swarm, halves)
