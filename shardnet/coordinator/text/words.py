"""A model's words: its vocabulary and its chat template, and how a request becomes prompt tokens. The coordinator and the library share them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shardnet.coordinator.text.calls.answer import AnswerFormat
from shardnet.coordinator.text.calls.known import SPOKEN
from shardnet.coordinator.text.infill import InfillTokens
from shardnet.coordinator.text.spoken_tools import with_tools_told
from shardnet.coordinator.text.template import ChatTemplate
from shardnet.coordinator.text.vocabulary import Vocabulary
from shardnet.errors import ShardnetError, UsageError

_END = 1 << 16
"""Characters at a prompt's end in which reasoning that it opened would stand."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, worded for a model.

    Attributes:
        answers: how the model writes its answers.
        thinks: the prompt ends within reasoning that it opened itself.
    """

    tokens: list[int]
    answers: AnswerFormat
    thinks: bool


@dataclass(frozen=True, slots=True)
class Words:
    """A model's vocabulary and chat template. `template` is None where the model has none, or an unusable one (`template_error`)."""

    vocabulary: Vocabulary
    template: ChatTemplate | None
    template_error: str = ""

    def check_tokens(self, tokens: Iterable[int], field: str) -> None:
        """Raises: UsageError naming the field for a token that the vocabulary does not have."""
        n_vocab = self.vocabulary.n_vocab
        if bad := next((token for token in tokens if token >= n_vocab), None):
            raise UsageError(f"{field}: token {bad} is outside the vocabulary of {n_vocab}", param=field)

    async def prompt_tokens(
        self, prompt: str | list[int], *, add_special: bool = True, field: str = "prompt"
    ) -> list[int]:
        """Returns: the tokens of a text, or those given. Raises: UsageError, naming the field, for a token that the vocabulary does not have."""
        if isinstance(prompt, str):
            # A user's text cannot spell control tokens; whoever wants them sends token ids.
            return await asyncio.to_thread(self._plain_tokens, prompt, add_special)
        await asyncio.to_thread(self.check_tokens, prompt, field)
        return prompt

    def _plain_tokens(self, prompt: str, add_special: bool, joined: bool = False) -> list[int]:
        control = self.template.control if self.template is not None else self.vocabulary.control
        parts = control.parts(prompt)
        if len(parts) == 1 and not joined:  # the vocabulary itself knows what belongs in front and behind
            return self.vocabulary.tokenize(prompt, add_special=add_special, parse_special=False)
        plain = [
            replace(part, special=False, joined=part.joined or (joined and at == 0)) for at, part in enumerate(parts)
        ]
        tokens = self.vocabulary.tokenize_parts(plain, add_special=add_special)
        if add_special and self.vocabulary.adds_eos and self.vocabulary.eos >= 0:
            tokens.append(self.vocabulary.eos)
        return tokens

    def infill_tokens(self) -> InfillTokens:
        """Returns: the model's tokens for filling in the middle. Raises: UsageError if it has none."""
        found = self.vocabulary.infill
        if found is None:
            raise UsageError(
                "suffix: this model has no tokens for filling in the middle (FIM): ask a code model that has, or leave it out",
                param="suffix",
            )
        return found

    async def infill_prompt(self, prompt: str | list[int], suffix: str) -> list[int]:
        """Returns: the tokens of a prompt with a gap between the two. No text spells a control token.

        Raises: UsageError if the model has no tokens for that, or for a token that the vocabulary does not have.
        """
        infill = self.infill_tokens()
        before = await self.prompt_tokens(prompt, add_special=False)
        # What is behind the gap goes on in the middle of a line: SentencePiece puts no space of its own before it.
        behind = await asyncio.to_thread(self._plain_tokens, suffix, False, True)
        bos = self.vocabulary.bos if self.vocabulary.adds_bos and self.vocabulary.bos >= 0 else None
        return infill.prompt(before, behind, bos)

    async def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None,
        timeout_s: float,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        continues: bool = False,
        begins_answer: bool = True,
    ) -> ChatPrompt:
        """Returns: a conversation as its tokens, and how the answer to it will be written. Arguments and `Raises:` as `ChatTemplate.render`."""
        if self.template is None:
            raise UsageError(self.template_error, param="messages")
        answers = await self.template.answers(tools=bool(tools), timeout_s=timeout_s)
        if tools and not answers.shows_tools:
            told = partial(with_tools_told, messages, tools, in_words=not answers.writes_calls)
            messages, tools = await asyncio.to_thread(told), None
            answers = answers if answers.writes_calls else replace(answers, calls=SPOKEN)
        parts = await self.template.render(
            messages,
            variables=variables,
            tools=tools,
            documents=documents,
            continues=continues,
            begins_answer=begins_answer,
            timeout_s=timeout_s,
        )
        tokens = await asyncio.to_thread(self.vocabulary.tokenize_parts, parts)
        end = "".join(part.text[-_END:] for part in parts[-2:])
        is_begun = continues or not begins_answer or (answers.text_begins and end.endswith(answers.text_begins))
        if is_begun or not end.endswith(answers.opened):
            answers = replace(answers, opened="", text_begins="")
        return ChatPrompt(tokens, answers, answers.thinks_already(end))


def open_words(name: str, path: Path) -> Words:
    """Open a model's `tokenizer.gguf`. Blocking, some tenths of a second.

    Args:
        name: the model's, for sentences.

    Raises: EngineError if llama.cpp does not open the file.
    """
    vocabulary = Vocabulary(path)
    source = vocabulary.chat_template or vocabulary.tool_template
    if source is None:
        return Words(vocabulary, None, f"model {name} has no chat template: use /v1/completions")
    try:
        template = ChatTemplate(
            source,
            model=name,
            bos=vocabulary.text_of(vocabulary.bos),
            eos=vocabulary.text_of(vocabulary.eos),
            control=vocabulary.control_texts,
            defined=vocabulary.defined_texts,
            strips_right=vocabulary.strips_right,
            with_tools=vocabulary.tool_template,
        )
    except ShardnetError as error:
        return Words(vocabulary, None, str(error))
    return Words(vocabulary, template)
