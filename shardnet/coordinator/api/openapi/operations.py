"""Each endpoint in words: what it is for, what it asks and answers, and which errors it may give. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from shardnet.coordinator.api.anthropic.request import CountRequest, MessagesRequest
from shardnet.coordinator.api.embeddings import EmbeddingsRequest
from shardnet.coordinator.api.openapi import answers
from shardnet.coordinator.api.openapi.answers import Error
from shardnet.coordinator.api.responses.request import ResponsesRequest
from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

READING = (401, 403, 500)
"""Errors of what only tells."""
ASKING = (400, 401, 403, 404, 408, 413, 500, 503)
"""Errors of what takes a body and means a model."""
ANSWERING = (*ASKING, 504)
"""Errors of what a model answers."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        asks: the body.
        answers: the body of a 200; None where it is of no fixed shape.
        events: of a stream, where `"stream": true` asks for one.
        example: a body that works with any model.
        named: the parameters in the path, each with what it means.
        also: status -> the same answer with another status, and when.
        refuses: the body of an error.
        is_open: no key is asked for.
    """

    name: str
    summary: str
    tag: str
    asks: type[BaseModel] | None = None
    answers: type[BaseModel] | None = None
    events: type[BaseModel] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[int, str] = field(default_factory=dict)
    errors: tuple[int, ...] = READING
    refuses: type[BaseModel] = Error
    is_open: bool = False
    text: str = ""


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        name="chat",
        summary="Answer a conversation",
        text="The model's own chat template words the conversation. Tools and structured output: see the fields.",
        tag="Answers",
        asks=ChatRequest,
        answers=answers.Chat,
        events=answers.ChatEvent,
        example={"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 60},
        errors=ANSWERING,
    ),
    ("POST", "/v1/completions"): Operation(
        name="complete",
        summary="Continue a text",
        text="The text is taken as it is; a text that spells a control token stays a text. Token ids are taken too.",
        tag="Answers",
        asks=CompletionRequest,
        answers=answers.Completion,
        events=answers.CompletionEvent,
        example={"prompt": "Once upon a time", "max_tokens": 40},
        errors=ANSWERING,
    ),
    ("POST", "/v1/responses"): Operation(
        name="respond",
        summary="Answer a conversation, as OpenAI's Responses API has it",
        text="Nothing is kept: the whole conversation comes as `input`. A stream has named events, of which the last is "
        "`response.completed`, `response.incomplete` or `response.failed`. See docs/responses.md.",
        tag="Answers",
        asks=ResponsesRequest,
        example={"input": "Why is the sky blue?", "max_output_tokens": 60},
        errors=ANSWERING,
    ),
    ("POST", "/v1/responses/input_tokens"): Operation(
        name="count_response",
        summary="Count the prompt's tokens of a response",
        tag="Tokens",
        asks=ResponsesRequest,
        answers=answers.ResponseTokens,
        example={"input": "Why is the sky blue?"},
        errors=(*ASKING, 504),
    ),
    ("POST", "/v1/messages"): Operation(
        name="message",
        summary="Answer a conversation, as Anthropic's Messages API has it",
        text="A stream has named events, of which the last is `message_stop` or `error`. A key may come as `x-api-key`. See docs/messages.md.",
        tag="Answers",
        asks=MessagesRequest,
        example={"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 60},
        errors=ANSWERING,
        refuses=answers.MessageError,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        name="count_message",
        summary="Count the prompt's tokens of a message",
        tag="Tokens",
        asks=CountRequest,
        answers=answers.MessageTokens,
        example={"messages": [{"role": "user", "content": "Why is the sky blue?"}]},
        errors=(*ASKING, 504),
        refuses=answers.MessageError,
    ),
    ("POST", "/v1/embeddings"): Operation(
        name="embed",
        summary="Turn texts into vectors of length one",
        text="By the model's final hidden states, pooled as the model says; `shardnet.pooling` tells how.",
        tag="Answers",
        asks=EmbeddingsRequest,
        answers=answers.Embeddings,
        example={"input": ["Once upon a time", "Why is the sky blue?"], "dimensions": 8},
        errors=ANSWERING,
    ),
    ("GET", "/v1/models"): Operation(
        name="models",
        summary="List the models that are known",
        text="`shardnet.ready` says which can be asked now.",
        tag="Models",
        answers=answers.Models,
    ),
    ("GET", "/v1/models/{model}"): Operation(
        name="model",
        summary="Tell of one model",
        tag="Models",
        answers=answers.Model,
        named={"model": "its name, its id, or the first 12 digits or more of that"},
        errors=(*READING, 404),
    ),
    ("POST", "/tokenize"): Operation(
        name="tokenize",
        summary="Turn a text or a conversation into tokens",
        text="A conversation becomes exactly the prompt that `/v1/chat/completions` would compute. No node is needed for it.",
        tag="Tokens",
        asks=TokenizeRequest,
        answers=answers.Tokens,
        example={"prompt": "Once upon a time", "return_token_strs": True},
        errors=(*ASKING, 504),
    ),
    ("POST", "/detokenize"): Operation(
        name="detokenize",
        summary="Turn tokens into their text",
        tag="Tokens",
        asks=DetokenizeRequest,
        answers=answers.Text,
        example={"tokens": [1, 2, 3]},
        errors=ASKING,
    ),
    ("GET", "/healthz"): Operation(
        name="health",
        summary="Say whether some model can be asked",
        text="For load balancers: no key, any Host.",
        tag="State",
        answers=answers.Health,
        also={503: "No model can be asked now."},
        errors=(500,),
        is_open=True,
    ),
    ("GET", "/status"): Operation(
        name="status",
        summary="Tell everything about nodes, layers, loads and requests",
        text="What `shardnet status` shows.",
        tag="State",
        answers=answers.Status,
    ),
    ("GET", "/openapi.json"): Operation(
        name="document",
        summary="This document",
        tag="State",
        errors=(403, 500),
        is_open=True,
    ),
}
"""(method, path) -> the endpoint. A route that is not here stands in the document by its bare name, and fails a test."""

ERRORS: dict[int, str] = {
    400: "A field is wrong, or cannot be honoured: `param` names it. Or the prompt does not fit into the context (`context_length_exceeded`).",
    401: "No key, or a wrong one.",
    403: "A Host name that is not answered.",
    404: "A model that is not known, or not served (`model_not_found`): the known ones are listed, or the reason is given.",
    408: "The body did not arrive in time.",
    413: "The body is larger than `requests.max_body_bytes`.",
    500: "The engine refused the step, or something unexpected happened.",
    503: "Layers, memory or disk are missing, or the queue is full. Try again after `Retry-After` seconds.",
    504: "A step did not finish in time, or the chat template took too much processor time.",
}
"""Status -> when it comes."""
