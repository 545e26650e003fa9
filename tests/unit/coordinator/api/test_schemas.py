"""What clients send becomes our own sampling, or a sentence that names the field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from shardnet.coordinator.api.errors import error_response, status_of
from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest, TokenizeRequest, usage_error
from shardnet.coordinator.placement.catalogue import resolve
from shardnet.errors import (
    Busy,
    ContextExceeded,
    DeadlineExceeded,
    EngineError,
    NoRoomError,
    PlacementError,
    ShardnetError,
    UsageError,
)
from tests.support.coordinator_world import make_manifest

OURS = re.compile(r": (must (be|have) |must not be empty|is missing|has characters)")
MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES} | more)


def test_nothing_said_is_temperature_one_and_no_truncation() -> None:
    sampling = chat(seed=7).sampling()
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (1.0, 0, 1.0, 0.0)
    assert (sampling.seed, sampling.repeat_penalty, sampling.grammar, sampling.top_logprobs) == (7, 1.0, None, None)


def test_every_field_arrives() -> None:
    sampling = chat(
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.05,
        seed=1,
        presence_penalty=0.5,
        frequency_penalty=-1,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        logit_bias={"50": -100, "7": 1.5},
        logprobs=True,
        top_logprobs=3,
        grammar="root ::= [a-z]+",
    ).sampling()
    assert sampling.model_dump(exclude={"prompt_tokens", "tensors"}) == {
        "temperature": 0.0,
        "top_k": 40,
        "top_p": 0.5,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -1.0,
        "penalty_last_n": -1,
        "logit_bias": {50: -100.0, 7: 1.5},
        "seed": 1,
        "grammar": "root ::= [a-z]+",
        "top_logprobs": 3,
    }


def test_no_seed_is_another_one_each_time_and_a_negative_one_is_taken() -> None:
    assert chat().sampling().seed != chat().sampling().seed
    assert 0 <= chat(seed=-5).sampling().seed < 1 << 63


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"top_p": 0}, {"top_k": 1, "top_p": 1.0}),
        ({"top_p": None, "top_k": None}, {"top_k": 0, "top_p": 1.0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"min_p": 0}, {"min_p": 0.0}),
        ({"temperature": None}, {"temperature": 1.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"repeat_last_n": 0}, {"penalty_last_n": 0}),
        ({"repeat_last_n": -1}, {"penalty_last_n": -1}),
        ({"logit_bias": {}}, {"logit_bias": {}}),
        ({"grammar": ""}, {"grammar": None}),
        ({"response_format": {}}, {"grammar": None}),
        ({"response_format": {"type": None}}, {"grammar": None}),
        ({"tools": [], "functions": [], "modalities": [], "audio": None, "stream_options": {}}, {}),
    ],
)
def test_null_nothing_and_minus_one_have_a_meaning(given: dict[str, Any], found: dict[str, Any]) -> None:
    request = chat(seed=1, **given)
    request.check_supported()
    assert found.items() <= request.sampling().model_dump().items()


@pytest.mark.parametrize(
    ("most", "words"),
    [
        ("many", "must be a whole number"),
        (0, "must be at least 1"),
        (-2, "must be at least -1"),
        (1 << 30, "must be at"),
    ],
)
def test_what_is_no_number_of_tokens_is_said_so(most: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        chat(max_tokens=most)
    assert str(usage_error(caught.value)).startswith(f"max_tokens: {words}")


@pytest.mark.parametrize(
    ("given", "most"), [({}, None), ({"max_tokens": -1}, None), ({"max_tokens": None}, None), ({"max_tokens": 7}, 7)]
)
def test_minus_one_token_is_as_many_as_there_is_room_for(given: dict[str, Any], most: int | None) -> None:
    assert chat(**given).most_tokens() == CompletionRequest(**given).most_tokens() == most
    assert chat(max_tokens=3, max_completion_tokens=5).most_tokens() == 5
    assert chat(max_tokens=3, max_completion_tokens=-1).most_tokens() is None


@pytest.mark.parametrize(("given", "stops"), [(None, ()), ("", ()), ([], ()), ([""], ()), (["", "a"], ("a",))])
def test_an_empty_stop_stops_nothing(given: Any, stops: tuple[str, ...]) -> None:
    assert chat(stop=given).stops() == stops


def test_logprobs_of_a_completion_are_a_number_or_none() -> None:
    assert CompletionRequest(logprobs=False).top_logprobs_wanted() is None
    assert CompletionRequest(logprobs=0).top_logprobs_wanted() == 0
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"logprobs": True})
    assert str(usage_error(caught.value)) == "logprobs: must be a whole number"


def test_logprobs_mean_what_each_endpoint_says() -> None:
    assert chat(logprobs=True).top_logprobs_wanted() == 0
    assert chat(logprobs=False).top_logprobs_wanted() is None
    assert CompletionRequest(logprobs=2).top_logprobs_wanted() == 2
    assert CompletionRequest().top_logprobs_wanted() is None


def test_fields_of_other_servers_are_ignored() -> None:
    chat(user="me", store=True, metadata={"a": "b"}, parallel_tool_calls=True).check_supported()


def test_templates_get_keys_that_are_null_left_to_them_and_contents_as_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "user", "content": parts, "name": "me"}, {"role": "assistant", "content": None}])
    assert [message.for_template() for message in request.messages] == [
        {"role": "user", "content": "ab", "name": "me"},
        {"role": "assistant"},
    ]


def test_the_reasoning_effort_goes_to_the_template() -> None:
    assert chat(reasoning_effort="high", chat_template_kwargs={"a": 1}).template_variables() == {
        "reasoning_effort": "high",
        "a": 1,
    }
    assert chat(reasoning_effort=None).template_variables() == {}


def test_an_answer_cannot_both_go_on_and_begin_anew() -> None:
    with pytest.raises(UsageError, match="continue_final_message"):
        chat(continue_final_message=True, add_generation_prompt=True).check_supported()
    chat(continue_final_message=True).check_supported()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "function", "function": {"name": "a b"}}]),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}] * 2),
        ("tool_choice", "required"),
        ("tool_choice", "any"),
        ("tool_choice", {"type": "allowed_tools"}),
        ("functions", [{}]),
        ("function_call", "auto"),
        ("guided_regex", "a"),
        ("modalities", ["text", "audio"]),
        ("modalities", ["audio"]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("top_logprobs", 3),
        ("chat_template_kwargs", {"messages": []}),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        chat(**{field: value}).check_supported()


def test_a_choice_among_more_answers_than_are_given_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="best_of"):
        CompletionRequest.model_validate({"best_of": 3}).check_supported()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e9),
        ("temperature", float("nan")),
        ("top_p", -1),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2),
        ("max_tokens", 0),
        ("max_tokens", -2),
        ("max_tokens", 1 << 40),
        ("presence_penalty", 99),
        ("repeat_penalty", 0),
        ("stop", ["x"] * 17),
        ("logit_bias", {"1": 101}),
        ("top_logprobs", 21),
        ("grammar", "x" * 65_537),
        ("messages", [{"role": "../etc", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"text": "x"}]}]),
        ("messages", []),
        ("stop", 5),
        ("modalities", "text"),
    ],
)
def test_every_number_has_a_range(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"messages": MESSAGES} | {field: value})
    error = usage_error(caught.value)
    assert str(error.facts["param"]).startswith(field)
    assert status_of(error) == 400
    assert OURS.search(str(error)), str(error)


def test_the_prompts_own_logprobs_are_refused_and_as_many_of_the_best_as_all_are_not() -> None:
    with pytest.raises(UsageError, match="echo"):
        CompletionRequest(echo=True, logprobs=1).check_supported()
    CompletionRequest(n=2, best_of=2).check_supported()
    CompletionRequest(echo=True).check_supported()


def test_a_logit_bias_key_must_be_a_token() -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        chat(logit_bias={"hello": 1}).sampling()


def test_content_in_parts_becomes_one_text_and_other_keys_reach_the_template() -> None:
    request = chat(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"}
        ]
    )
    assert request.messages[0].for_template() == {"role": "user", "content": "ab", "name": "me"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 400),
        (ContextExceeded("x"), 400),
        (UsageError("x", unknown_model="m"), 404),
        (PlacementError("x"), 503),
        (NoRoomError("x"), 503),
        (Busy("x", retry_after_s=1.2), 503),
        (DeadlineExceeded("x"), 504),
        (EngineError("x"), 500),
    ],
)
def test_each_error_has_its_status(error: ShardnetError, status: int) -> None:
    response = error_response(error)
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status == 503)
    if isinstance(error, Busy):
        assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize(("wait", "told"), [(0, "1"), (7.2, "8"), (3600, "60")])
def test_a_client_is_never_told_to_wait_so_long_that_it_gives_up(wait: float, told: str) -> None:
    assert error_response(Busy("x", retry_after_s=wait)).headers["retry-after"] == told


def test_a_model_is_meant_by_name_id_or_the_beginning_of_its_id() -> None:
    one, two = make_manifest(name="one"), make_manifest((0, 3, 6), name="two")
    assert resolve([one], None) is one
    for wanted in ("two", two.model_id, two.model_id[:12]):
        assert resolve([one, two], wanted) is two
    for unclear in (None, "three", two.model_id[:4]):
        with pytest.raises(UsageError, match="one"):
            resolve([one, two], unclear)


def test_of_two_models_with_one_name_the_name_means_the_newest_and_each_id_its_own() -> None:
    older = make_manifest((0, 3, 6), name="two").model_copy(update={"made_s": 1})
    newer = make_manifest((0, 6), name="two").model_copy(update={"made_s": 2})
    for wanted in ("two", None, newer.model_id):
        assert resolve([older, newer], wanted) is newer
    assert resolve([older, newer], older.model_id[:12]) is older


def test_more_prompts_than_are_answered_are_refused_before_they_are_tokenized() -> None:
    with pytest.raises(UsageError, match=r"n: 65 prompts with 2 answers each are more than 128"):
        CompletionRequest.model_validate({"prompt": ["a"] * 65, "n": 2}).check_supported()
    CompletionRequest.model_validate({"prompt": ["a"] * 64, "n": 2}).check_supported()


@pytest.mark.parametrize("prompt", [["a", None], ["a", [1]], [1, "a"], [1, True], [[1], 2]])
def test_prompts_of_several_kinds_are_told_as_such(prompt: list[Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        CompletionRequest.model_validate({"prompt": prompt})
    assert str(usage_error(refusal.value)).startswith("prompt: must be a text, token ids, or a list of either")


def test_no_prompt_and_null_are_an_empty_text() -> None:
    assert CompletionRequest().prompts() == CompletionRequest(prompt=None).prompts() == [""]


def test_a_number_that_is_none_is_told_as_such() -> None:
    with pytest.raises(ValidationError) as refusal:
        ChatRequest.model_validate_json('{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}')
    assert str(usage_error(refusal.value)) == "temperature: must be a number"


def test_a_token_id_of_thousands_of_digits_is_none() -> None:
    with pytest.raises(UsageError, match=r"logit_bias: '1{40}' is not a token id"):
        chat(logit_bias={"1" * 5000: 1}).sampling()


@pytest.mark.parametrize("more", [{}, {"content": "a", "prompt": "a"}, {"content": "a", "messages": MESSAGES}])
def test_one_thing_is_tokenized(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"give one of prompt, content and messages"):
        TokenizeRequest.model_validate(more).check_supported()
    picture = {"role": "user", "content": [{"type": "image_url"}]}
    with pytest.raises(UsageError, match=r"messages.0.content.0: a part of type 'image_url' cannot be taken"):
        TokenizeRequest.model_validate({"messages": [picture]}).chat()
    with pytest.raises(UsageError, match=r"tools: belongs to messages, and there are none"):
        TokenizeRequest.model_validate({"prompt": "a", "tools": [{}]}).check_supported()
