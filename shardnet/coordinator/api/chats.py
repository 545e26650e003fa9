"""How a request becomes prompts, and what its answer may be: the tools that were asked for meet the format that the model writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest
from shardnet.coordinator.api.tools import ToolsAsked
from shardnet.coordinator.structure.grammars import HEAD, checked_length, json_rule
from shardnet.coordinator.text.answering import AnswerStream, ChatStream, PlainStream
from shardnet.coordinator.text.calls.answer import AnswerParser
from shardnet.coordinator.text.calls.grammars import behind_reasoning, calls_grammar
from shardnet.coordinator.text.calls.json_calls import JsonCalls
from shardnet.coordinator.text.words import ChatPrompt, Words
from shardnet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request in the model's words.

    Attributes:
        prompts: tokens of each.
        grammar: that the answer follows in the place of the request's own; None where that one holds.
        stream: makes what takes one answer apart.
        ends: the tokens that end the answer.
    """

    prompts: list[list[int]]
    grammar: str | None
    stream: Callable[[], AnswerStream]
    ends: frozenset[int]


async def prepare(
    request: CompletionRequest | ChatRequest,
    words: Words,
    structure: str | None,
    template_timeout_s: float,
    *,
    loose: Container[str] = (),
) -> Prepared:
    """Returns: what a request is to a model.

    Args:
        structure: `request.structure()`.
        loose: functions whose arguments are held to their types and nothing more.

    Raises: UsageError, DeadlineExceeded.
    """
    if isinstance(request, CompletionRequest):
        return await _prepare_completion(request, words)
    chat = await chat_prompt_of(request, words, template_timeout_s)
    grammar = await asyncio.to_thread(answer_grammar, request, words, chat, structure, loose)
    ends = words.vocabulary.ends
    return Prepared([chat.tokens], grammar, lambda: chat_stream(request, words, chat, structure), ends)


async def _prepare_completion(request: CompletionRequest, words: Words) -> Prepared:
    vocabulary, stops = words.vocabulary, request.stops()
    if not request.suffix:
        prompts = [await words.prompt_tokens(prompt) for prompt in request.prompts()]
        return Prepared(prompts, None, lambda: PlainStream(vocabulary.piece, stops), vocabulary.ends)
    ends = vocabulary.ends | words.infill_tokens().all
    prompts = [await words.infill_prompt(prompt, request.suffix) for prompt in request.prompts()]

    def piece(token: int) -> bytes:
        return b"" if token in ends else vocabulary.piece(token)

    return Prepared(prompts, None, lambda: PlainStream(piece, stops), ends)


async def chat_prompt_of(request: ChatRequest, words: Words, template_timeout_s: float) -> ChatPrompt:
    """Returns: a chat as its template words it. Raises: UsageError, DeadlineExceeded."""
    asked = request.tools_asked()
    # Without a choice to call them tools are not shown, except where the conversation has calls: some templates know these only beside tools.
    shown = asked is not None and (asked.choice != "none" or any(message.is_of_tools for message in request.messages))
    messages = await asyncio.to_thread(lambda: [message.for_template() for message in request.messages])
    return await words.chat_prompt(
        messages,
        request.template_variables(),
        template_timeout_s,
        tools=asked.offered if asked is not None and shown else None,
        documents=request.documents,
        continues=bool(request.continue_final_message),
        begins_answer=request.add_generation_prompt is not False,
    )


def chat_stream(request: ChatRequest, words: Words, chat: ChatPrompt, structure: str | None) -> ChatStream:
    """Returns: what takes one answer apart. Args: structure: the grammar that the request asks for."""
    asked, format = request.tools_asked(), chat.answers
    tools = asked.schemas if asked is not None and asked.choice != "none" else None
    if structure is not None and tools is not None and _may_call_beside(structure, asked):
        if isinstance(format.calls, JsonCalls) and not format.calls.is_bare:
            format = replace(format, calls=replace(format.calls, bare={}))  # JSON without a mark is the structure
    elif structure is not None and not _reasons_first(structure, chat):
        format, tools = replace(format, thinking=replace(format.thinking, pairs=()), opened=""), None
    parser = AnswerParser(format, tools, thinks=chat.thinks and bool(format.harmony or format.thinking.pairs))
    vocabulary, one_call = words.vocabulary, asked is not None and not asked.parallel
    return ChatStream(vocabulary.piece, vocabulary.control_text, parser, request.stops(), one_call=one_call)


def answer_grammar(
    request: ChatRequest, words: Words, chat: ChatPrompt, structure: str | None, loose: Container[str] = ()
) -> str | None:
    """Returns: the grammar of the answer, where tools or reasoning ask for another than the request's own. Raises: UsageError."""
    asked = request.tools_asked()
    beside = structure if structure is not None and _may_call_beside(structure, asked) else None
    if asked is not None and (asked.is_enforced or beside is not None):
        return checked_length(HEAD + _calls_grammar(asked, words, chat, beside, loose), "tools")
    if structure is not None and _reasons_first(structure, chat):
        grammar = behind_reasoning(structure, chat.answers, words.vocabulary.control_ids, thinks=chat.thinks)
        return checked_length(grammar, request.structure_field)
    return None


def _may_call_beside(structure: str, asked: ToolsAsked | None) -> bool:
    """The answer is calls or what the structure says; it must be calls, if they are required. Not with GBNF, which would have to be read for that."""
    return asked is not None and (asked.choice == "required" or (asked.choice == "auto" and structure.startswith(HEAD)))


def _reasons_first(structure: str, chat: ChatPrompt) -> bool:
    """A structure that is asked for begins behind the reasoning that the prompt opened, in Harmony's last channel, or behind what else a text begins
    with. Not with GBNF, as above."""
    return structure.startswith(HEAD) and (chat.thinks or chat.answers.harmony or bool(chat.answers.opened))


def _calls_grammar(
    asked: ToolsAsked, words: Words, chat: ChatPrompt, structure: str | None, loose: Container[str]
) -> str:
    strict = {one.name for one in asked.functions if one.strict}

    def rule(name: str, schema: Mapping[str, Any], loosely: Mapping[str, Any]) -> str:
        try:
            return json_rule(loosely if name in loose else schema, f"tools: function {name}")
        except UsageError:
            if name in strict:
                raise
            return json_rule(loosely, "tools")

    return calls_grammar(
        chat.answers,
        [(one.name, one.schema) for one in asked.functions],
        rule,
        words.vocabulary.control_ids,
        required=asked.choice == "required",
        parallel=asked.parallel,
        thinks=chat.thinks,
        strict=strict,
        structure=structure,
    )
