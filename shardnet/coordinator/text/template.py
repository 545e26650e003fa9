"""A model's chat template: a conversation becomes a prompt, in which nothing that a client sent is a control token.

What the template is given is told in `conversation`, the dialect and the sandbox in `jinja`, who wrote which character in `provenance`.
Rendering runs in a thread, see `limited_work`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes

from shardnet.coordinator.text.calls.answer import AnswerFormat
from shardnet.coordinator.text.calls.formats import format_of
from shardnet.coordinator.text.control import WINDOW, ControlTokens, Part
from shardnet.coordinator.text.conversation import as_template_wants, text_of, without_trace
from shardnet.coordinator.text.jinja import ChatEnvironment, RefusedByTemplate
from shardnet.coordinator.text.limited_work import LimitedWork
from shardnet.coordinator.text.provenance import author_of_message, authors_of, written_by
from shardnet.coordinator.text.traits import EXAMPLE_CALL, FAULTS, Message, Traits
from shardnet.errors import DeadlineExceeded, UsageError

T = TypeVar("T")
_NO_LETTERS = re.compile("[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template is to render.

    Attributes:
        messages: as a client sent them.
        variables: further names for the template; tools and documents may be among them.
        tools: as the API has them; none is the same as no tools.
        documents: the same.
        continues: the answer goes on the last message, which must be the assistant's, in the place of beginning a new one.
        begins_answer: the prompt ends where an answer begins.
    """

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]
    tools: Sequence[Any] | None = None
    documents: Sequence[Any] | None = None
    continues: bool = False
    begins_answer: bool = True


class ChatTemplate:
    """One model's template, compiled.

    Args:
        source: the Jinja text.
        model: the model's name, for sentences.
        bos: text of the begin-of-text token, `eos` of the end.
        control: texts of its control tokens, `defined` of those that llama.cpp types USER_DEFINED, `strips_right`: see `ControlTokens`.
        with_tools: the template for conversations with tools, where the model has one of its own (`tool_use`).

    Raises: UsageError if a template is no Jinja.
    """

    def __init__(
        self,
        source: str,
        *,
        model: str,
        bos: str = "",
        eos: str = "",
        control: Iterable[str] = (),
        defined: Iterable[str] = (),
        strips_right: Iterable[str] = (),
        with_tools: str | None = None,
    ) -> None:
        self._model = model
        try:
            self._plain = _Compiled(source, bos, eos)
            self._with_tools = (
                _Compiled(with_tools, bos, eos, for_tools=True) if with_tools is not None else self._plain
            )
        except jinja2.TemplateError as error:
            raise UsageError(f"the chat template of {model} cannot be used: {error}; use /v1/completions") from error
        self.control = ControlTokens(control, defined, self._plain.words + self._with_tools.words, strips_right)

    def traits(self, *, tools: bool = False) -> Traits:
        """Returns: what the template takes. Asking it renders small conversations, some milliseconds."""
        return (self._with_tools if tools else self._plain).traits

    async def answers(self, *, tools: bool = False, timeout_s: float = 2.0) -> AnswerFormat:
        """Returns: how the model writes its answers. Arguments and `Raises:` as `render`."""
        return await self._limited(lambda: (self._with_tools if tools else self._plain).answers, timeout_s)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        continues: bool = False,
        begins_answer: bool = True,
        timeout_s: float = 2.0,
    ) -> list[Part]:
        """Render a conversation, up to where the model's answer begins. Arguments: see `Chat`.

        Args:
            timeout_s: seconds of processor time.

        Returns: the prompt in parts, see `Part`.
        Raises: UsageError with the template's reason if it refuses the conversation, or leaves a message out; DeadlineExceeded if it takes too long.
        """
        further = dict(variables or {})
        tools, documents = tools or further.pop("tools", None), documents or further.pop("documents", None)
        chat = Chat(messages, further, tools or None, documents or None, continues, begins_answer)
        return await self._limited(lambda: self.control.parts(self._prompt(chat)), timeout_s)

    async def _limited(self, work: Callable[[], T], timeout_s: float) -> T:
        try:
            return await LimitedWork(work).result(timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the chat template of {self._model} did not finish within {timeout_s:g} s; use /v1/completions"
            ) from None

    def _prompt(self, chat: Chat) -> str:
        """Returns: the prompt, each character with its author."""
        compiled = self._with_tools if chat.tools else self._plain
        try:
            prompt = self._rendered(compiled, chat)
            left_out = self._left_out(compiled, chat, prompt)
            if left_out and all(chat.messages[one].get("role") in ("system", "developer") for one in left_out):
                # Mistral's shows a system text only where a user has the last word.
                prompt = self._rendered(compiled, chat, shows_system=False)
                left_out = self._left_out(compiled, chat, prompt, shows_system=False)
        except RefusedByTemplate as error:
            raise UsageError(f"the chat template of {self._model} refuses this conversation: {error}") from error
        except jinja2.TemplateError as error:
            raise UsageError(f"the chat template of {self._model} failed: {error}") from error
        except FAULTS as error:
            raise UsageError(f"the chat template of {self._model} cannot take these messages: {error}") from error
        if left_out:
            number, role = left_out[0], chat.messages[left_out[0]].get("role")
            raise UsageError(
                f"messages[{number}]: the chat template of {self._model} leaves a message of role {role!r} out here: the model would not see it",
                param="messages",
            )
        return prompt

    def _rendered(self, compiled: _Compiled, chat: Chat, *, shows_system: bool | None = None) -> str:
        messages = as_template_wants(chat.messages, compiled.traits, shows_system=shows_system)
        return self._continued(compiled, messages, chat) if chat.continues else compiled.render(messages, chat)

    def _continued(self, compiled: _Compiled, messages: list[Message], chat: Chat) -> str:
        """The end of the last message's text is found by its author, which no other text has."""
        text, last = text_of(messages[-1]), author_of_message(len(chat.messages))
        if messages[-1].get("role") != "assistant" or not text.strip():
            raise UsageError(
                "continue_final_message: the last message must be the assistant's, with a text",
                param="continue_final_message",
            )
        own = written_by(last, text)
        content = [{"type": "text", "text": own}] if isinstance(messages[-1]["content"], list) else own
        prompt = compiled.render([*messages[:-1], messages[-1] | {"content": content}], chat)
        begun = prompt[: authors_of(prompt).rfind(last) + 1]
        if not begun.endswith((text, text.rstrip())):
            raise UsageError(
                f"continue_final_message: the chat template of {self._model} does not end with the last message's text",
                param="continue_final_message",
            )
        return begun

    def _left_out(self, compiled: _Compiled, chat: Chat, prompt: str, *, shows_system: bool | None = None) -> list[int]:
        """Returns: numbers of messages that the prompt does not show.

        A template may write a text in ways that lose its author, or drop it for what it says (thoughts of an earlier turn) and keep the turn. So what
        seems to be missing is asked for: with a plain word behind its text, and with the word alone.
        """
        missing = without_trace(chat.messages, prompt)
        if chat.continues and missing and missing[-1] == len(chat.messages) - 1:
            missing.pop()
        for alone in (False, True):
            if not missing:
                break
            words = {number: f"needle{number}needle" for number in missing}
            marked = [
                _with_word(message, words[number], alone=alone) if number in words else message
                for number, message in enumerate(chat.messages)
            ]
            try:
                text = compiled.render(as_template_wants(marked, compiled.traits, shows_system=shows_system), chat)
            except FAULTS:
                return []  # nothing is known then
            letters = _letters_of(text)
            missing = [number for number, word in words.items() if word not in letters]
        return missing


def _letters_of(text: str) -> str:
    """Returns: a prompt's letters and digits, small; in pieces, so that other threads may run in between."""
    plain = str.__str__(text)
    pieces = (plain[at : at + WINDOW].lower() for at in range(0, len(plain), WINDOW))
    return "".join([_NO_LETTERS.sub("", piece) for piece in pieces])


def _with_word(message: Mapping[str, Any], word: str, *, alone: bool) -> dict[str, Any]:
    if text := text_of(message):
        return dict(message) | {"content": word if alone else f"{text} {word}"}
    calls = message["tool_calls"]
    if not (
        isinstance(calls, list) and calls and isinstance(calls[0], dict) and isinstance(calls[0].get("function"), dict)
    ):
        return dict(message)
    function = calls[0]["function"] | {"name": word}
    return dict(message) | {"tool_calls": [calls[0] | {"function": function}, *calls[1:]]}


class _Compiled:
    """One Jinja source."""

    def __init__(self, source: str, bos: str, eos: str, *, for_tools: bool = False) -> None:
        self._for_tools = for_tools
        environment = ChatEnvironment(bos=bos, eos=eos)
        tree = environment.parse(source)
        texts = [one.data for one in tree.find_all(nodes.TemplateData)]
        texts += [one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str)]
        self.words = "\n".join(texts)
        self._template = environment.from_string(tree)
        self.traits = Traits(self._ask, self.words)

    @cached_property
    def answers(self) -> AnswerFormat:
        """How the model writes its answers."""
        found = format_of(self.words, self.traits.call_example, EXAMPLE_CALL)
        return replace(found, shows_tools=self._for_tools or self.traits.tools)

    def _ask(self, messages: Sequence[Message], *, tools: Sequence[Any] | None, as_none: bool) -> str:
        return self._rendered(messages, {}, Chat((), {}, tools), as_none)

    def render(self, messages: Sequence[Message], chat: Chat) -> str:
        """Returns: the text. Raises: one of `FAULTS`."""
        return self._rendered(messages, chat.variables, chat, self.traits.takes_none)

    def _rendered(self, messages: Sequence[Message], variables: Mapping[str, Any], chat: Chat, as_none: bool) -> str:
        given = {"tools": chat.tools, "documents": chat.documents}
        if not as_none:
            given = {key: one for key, one in given.items() if one is not None}
        begins = {"add_generation_prompt": chat.begins_answer and not chat.continues}
        return self._template.render({**begins, **_copy(given), **_copy(variables), "messages": list(messages)})


def _copy(value: Any) -> Any:
    """Returns: the value, for a template to change as it likes."""
    if isinstance(value, Mapping):
        return {key: _copy(one) for key, one in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list | tuple) else value
