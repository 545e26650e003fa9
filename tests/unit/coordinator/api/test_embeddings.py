"""`/v1/embeddings`: what may be asked, how it is pooled and worded, and what is refused; over a coordinator with a scripted node."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from shardnet.coordinator.api.embeddings import EmbeddingsRequest, Pooled, normalised, pooling_of, worded
from shardnet.errors import UsageError
from tests.support.coordinator_world import make_manifest


def request(**body: Any) -> EmbeddingsRequest:
    return EmbeddingsRequest.model_validate({"input": "a"} | body)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_an_input_is_a_text_tokens_or_a_list_of_either(given: Any, expected: list[Any]) -> None:
    assert request(input=given).inputs() == expected


@pytest.mark.parametrize("given", ["", [], [""], ["a", ""], [[]], [[1], []], ["a"] * 2049])
def test_inputs_that_are_empty_or_too_many_are_refused_by_name(given: Any) -> None:
    with pytest.raises(UsageError, match=r"^input: ") as caught:
        request(input=given).inputs()
    assert caught.value.facts["param"] == "input"


@pytest.mark.parametrize(
    "body",
    [{"input": None}, {"input": ["a", 1]}, {"input": {}}, {"input": [-1]}, {"dimensions": 0}, {"pooling": "max"}],
)
def test_what_is_no_request_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**body)


def test_the_request_has_the_last_word_on_pooling_then_the_model_then_a_rule_that_is_told() -> None:
    assert pooling_of("cls", "mean") == Pooled("cls", "request")
    assert pooling_of(None, "mean") == Pooled("mean", "model")
    assert pooling_of(None, None) == Pooled("last", "default")
    for asked in (None, "mean"):
        with pytest.raises(UsageError, match="ranks texts"):
            pooling_of(asked, "rank")


def test_an_embedding_is_cut_before_it_is_made_of_length_one() -> None:
    vector = np.array([3.0, 4.0, 12.0])
    assert np.allclose(normalised(vector, 3), vector / 13)
    assert np.allclose(normalised(vector, 2), [0.6, 0.8])
    assert normalised(np.zeros(3), 3).tolist() == [0, 0, 0]
    assert request(dimensions=3).width(3) == 3
    with pytest.raises(UsageError, match=r"dimensions: .* have 3"):
        request(dimensions=4).width(3)


async def test_both_encodings_say_the_same_numbers_to_the_bit() -> None:
    vectors: list[NDArray[np.float32]] = [
        np.array([0.1, -1e-30, 3.4028235e38], dtype=np.float32),
        np.array([1 / 3, 0, 1], dtype=np.float32),
    ]
    answers = {}
    for encoding in ("float", "base64"):
        asked = request(encoding_format=encoding)
        body = await worded(vectors, asked, make_manifest(), Pooled("last", "default"), 7)
        answers[encoding] = json.loads(body)
    for index, vector in enumerate(vectors):
        as_numbers, packed = (answers[encoding]["data"][index]["embedding"] for encoding in ("float", "base64"))
        assert np.array_equal(np.array(as_numbers, dtype=np.float32), vector)
        assert np.array_equal(np.frombuffer(base64.b64decode(packed), dtype="<f4"), vector)
    rest = answers["float"]
    assert [(one["object"], one["index"]) for one in rest["data"]] == [("embedding", 0), ("embedding", 1)]
    assert (rest["object"], rest["model"], rest["usage"]) == ("list", "tiny", {"prompt_tokens": 7, "total_tokens": 7})
    assert rest["shardnet"] == {"pooling": "last", "pooling_said_by": "default"}


# -- over HTTP, with a node that tells what a script says --------------------------------------------------------------------------


def hidden(tokens: list[int]) -> NDArray[np.float32]:
    """Of another direction for each of three prompts."""
    return np.array([{7: [3, 4, 0, 0], 9: [4, 3, 0, 0], 1: [2, 0, 0, 0]}[tokens[-1]]], dtype=np.float32)


async def test_inputs_are_answered_in_order_and_leave_nothing_behind(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        node.pooled = hidden
        await world.ready()
        body = {"model": "tiny", "input": [[7], [8, 9], [1] * 40]}
        answer = (await world.client.post("/v1/embeddings", json=body)).json()
        expected = np.array([[0.6, 0.8, 0, 0], [0.8, 0.6, 0, 0], [1, 0, 0, 0]], dtype=np.float32)
        assert np.array_equal(np.array([one["embedding"] for one in answer["data"]], dtype=np.float32), expected)
        assert answer["usage"] == {"prompt_tokens": 43, "total_tokens": 43}
        assert {task.reading.kind for task in node.tasks if task.reading} == {"last"}
        status = await world.until(lambda _: not node.live_sequences)
        assert status["requests"]["sequences_kept"] == 0


async def test_errors_have_the_one_shape(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        node.pooled = hidden
        await world.ready()
        for body, status, param in (
            ({"input": ""}, 400, "input"),
            ({"input": [288]}, 400, "input"),
            ({"input": [1] * 5000}, 400, "input"),
            ({"input": "a", "dimensions": 65}, 400, "dimensions"),
            ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
            ({}, 400, "input"),
            ({"input": "a", "model": "other"}, 404, None),
        ):
            response = await world.client.post("/v1/embeddings", json={"model": "tiny"} | body)
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (status, param), error
        assert not node.tasks
        suffix = {"model": "tiny", "prompt": "a", "suffix": "b"}
        response = await world.client.post("/v1/completions", json=suffix)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "suffix")


async def test_a_model_that_is_not_ready_is_503(make_world: Callable[..., Any]) -> None:
    async with make_world() as world:
        response = await world.client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
        assert response.status_code == 503
        assert "Retry-After" in response.headers


async def test_a_stage_that_tells_nothing_ends_the_request_with_an_error(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        node.tells = False
        await world.ready()
        response = await world.client.post("/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]})
        assert response.status_code == 500
        assert "did not tell" in response.json()["error"]["message"]
        await world.until(lambda status: not status["requests"]["running"] and not node.live_sequences)
