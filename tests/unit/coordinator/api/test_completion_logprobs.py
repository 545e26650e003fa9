"""Log-probabilities of completions: an entry for each token, names that tell tokens apart, offsets into the text; also of the prompt itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.coordinator.api.completion_logprobs import TextOffsets, logprob_lists, name_of, prompt_offsets
from shardnet.coordinator.requests.generation_spec import Emitted
from shardnet.coordinator.text.vocabulary import Vocabulary
from shardnet.steps import TokenLogprob
from tests.support.scripted_swarm import TEXT, World, events_of

PIECES = {1: b"a", 2: b"\xf0\x9f", 3: b"\x8e\x89", 4: b"a", 5: b"b"}


@pytest.mark.parametrize(
    ("piece", "name"),
    [(b" the", " the"), ("ß".encode(), "ß"), (b" \xf0\x9f", r"bytes:\x20\xf0\x9f"), (b"<s>", "<s>"), (b"", "")],
)
def test_a_token_is_called_by_its_text_or_by_its_bytes(piece: bytes, name: str) -> None:
    assert name_of(piece) == name


def test_every_one_of_the_most_likely_tokens_has_an_entry_although_two_have_the_same_text() -> None:
    tops = tuple(TokenLogprob(token, -float(token)) for token in (5, 1, 2, 3, 4))
    lists = logprob_lists([Emitted(5, tops)], [7], PIECES.__getitem__)
    assert lists == {
        "tokens": ["b"],
        "token_logprobs": [-5.0],
        "top_logprobs": [{"a": -1.0, r"bytes:\xf0\x9f": -2.0, r"bytes:\x8e\x89": -3.0, "token_id:4": -4.0}],
        "text_offset": [7],
    }


def test_of_a_token_of_which_nothing_is_known_both_are_null() -> None:
    lists = logprob_lists([Emitted(1)], [0], PIECES.__getitem__)
    assert (lists["token_logprobs"], lists["top_logprobs"]) == ([None], [None])


@given(st.text(max_size=30), st.data())
def test_however_the_bytes_are_cut_a_token_begins_where_its_first_character_does(
    text: str, data: st.DataObject
) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    pieces = [raw[first:end] for first, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    for offset, begin in zip(prompt_offsets(pieces, text), [0, *cuts], strict=True):
        whole = len(raw[:begin].decode(errors="ignore"))
        assert offset == whole


def test_a_space_that_the_vocabulary_puts_in_front_is_not_counted() -> None:
    assert prompt_offsets([b"", b" the", b" cat"], "the cat") == [0, 0, 3]
    assert prompt_offsets([b"", b" ", b"the"], "the") == [0, 0, 0]
    assert prompt_offsets([b"a", b"b"], "something else") == [0, 1]


def test_offsets_of_an_answer_go_on_behind_the_prompt() -> None:
    offsets = TextOffsets(start=10)
    assert [offsets.of(piece) for piece in (b"ab", b"", b"\xc3", b"\x9f", b"c")] == [10, 12, 12, 12, 13]


@pytest.fixture
def vocabulary(tokenizer: Path) -> Iterator[Vocabulary]:
    opened = Vocabulary(tokenizer)
    yield opened
    opened.close()


# -- over HTTP, with a node that tells what a script says --------------------------------------------------------------------------


async def complete(world: World, **body: Any) -> dict[str, Any]:
    response = await world.client.post("/v1/completions", json={"model": "tiny", "temperature": 0} | body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def check(choice: dict[str, Any], prompt: list[int], words: Sequence[int], top: int) -> None:
    """The scripted node gives a token minus its id by 256, and names 50 and those behind it as the most likely."""
    lists = choice["logprobs"]
    tokens = [*prompt, *words]
    assert lists["token_logprobs"] == [None, *(-token / 256 for token in tokens[1:])]
    assert lists["top_logprobs"][0] is None
    assert [len(one) for one in lists["top_logprobs"][1:]] == [top] * (len(tokens) - 1)
    for name, offset in zip(lists["tokens"], lists["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(name)] == name


async def test_an_echoed_prompt_has_its_own_logprobs_whole_and_streamed(
    make_world: Callable[..., Any], words: Sequence[int]
) -> None:
    asked = {"prompt": "hello there, and the other", "echo": True, "logprobs": 2, "max_tokens": 5}
    async with make_world() as world, world.node("a", 0, 1) as one, world.node("b", 2):
        await world.ready()
        answer = await complete(world, **asked, return_token_ids=True)
        [choice] = answer["choices"]
        prompt = answer["prompt_token_ids"]
        assert choice["text"].startswith(asked["prompt"])
        check(choice, prompt, words[:5], 2)
        assert answer["usage"]["completion_tokens"] == 5
        body = {"model": "tiny", "temperature": 0, "stream": True} | asked
        events = events_of(await world.client.post("/v1/completions", json=body))
        parts = [event["choices"][0] for event in events]
        told = [part["logprobs"] for part in parts if part["logprobs"]]
        together = {key: [one for lists in told for one in lists[key]] for key in told[0]}
        check({"text": "".join(part["text"] for part in parts), "logprobs": together}, prompt, words[:5], 2)
        assert {task.reading.top for task in one.tasks if task.reading} == {2}


async def test_a_prompt_is_scored_alone_with_max_tokens_0(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        prompts = ["one and the other", "a"]
        asked = {"prompt": prompts, "n": 2, "echo": True, "logprobs": 1, "max_tokens": 0}
        answer = await complete(world, **asked, return_token_ids=True)
        assert [one["index"] for one in answer["choices"]] == [0, 1, 2, 3]
        for choice in answer["choices"]:
            assert choice["text"] == prompts[choice["index"] // 2]
            assert (choice["finish_reason"], choice["token_ids"]) == ("length", [])
            check(choice, choice["prompt_token_ids"], [], 1)
        assert answer["usage"]["completion_tokens"] == 0
        assert not any(task.samples for task in node.tasks)
        streamed = await world.client.post("/v1/completions", json={"model": "tiny", "stream": True} | asked)
        assert len([one for one in events_of(streamed) if one["choices"][0]["logprobs"]]) == 4
        without = await complete(world, prompt="one", echo=True, max_tokens=0)
        assert (without["choices"][0]["text"], without["choices"][0]["logprobs"]) == ("one", None)


async def test_a_prompt_of_tokens_shows_its_control_tokens_and_counts_them(
    make_world: Callable[..., Any], vocabulary: Vocabulary
) -> None:
    prompt = vocabulary.tokenize("hi<|im_end|>ho", add_special=False, parse_special=True)
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        answer = await complete(world, prompt=prompt, echo=True, logprobs=0, max_tokens=3)
        [choice] = answer["choices"]
        assert choice["text"] == "hi<|im_end|>ho" + TEXT[: len(choice["text"]) - 14]
        check(choice, prompt, world.words[:3], 0)


async def test_a_prompt_that_is_scored_starts_from_nobodys_kv_and_leaves_its_own(
    make_world: Callable[..., Any],
) -> None:
    prompt = list(range(40, 90))
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        await complete(world, prompt=prompt, max_tokens=2)
        node.tasks.clear()
        await complete(world, prompt=prompt, max_tokens=2, echo=True, logprobs=0)
        assert min(task.position for task in node.tasks) == 0
        node.tasks.clear()
        await complete(world, prompt=[*prompt, 91, 92, 93], max_tokens=2)
        assert min(task.position for task in node.tasks) == 44  # of 53, whole blocks of four before the last eight


async def test_more_numbers_than_an_answer_should_have_are_refused_by_name(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        body = {"model": "tiny", "prompt": [[40] * 1000] * 60, "echo": True, "logprobs": 20, "max_tokens": 0}
        response = await world.client.post("/v1/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")
        assert not node.tasks


async def test_a_stage_that_does_not_tell_ends_the_request(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        node.tells = False
        await world.ready()
        body = {"model": "tiny", "prompt": "hello", "echo": True, "logprobs": 1, "max_tokens": 3}
        response = await world.client.post("/v1/completions", json=body)
        assert response.status_code == 500
        assert "did not tell" in response.json()["error"]["message"]
