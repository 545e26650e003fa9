"""Which characters of a prompt may become control tokens: those that the template wrote. Pure.

llama.cpp looks for the texts of special tokens anywhere in a prompt; the two kinds differ in what stops it. Tokens typed CONTROL or UNKNOWN are only
looked for with `parse_special`. Tokens typed USER_DEFINED are always looked for, and many models type control tokens so (gpt-oss's `<|channel|>`,
gemma 4's `<|turn>`, thinking tags): a text that spells one is cut after its first character.

Source: `tokenizer_st_partition` in llama.cpp's llama-vocab.cpp.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.text.provenance import TEMPLATE, authors_of

_WHITE_SPACE = " \t\n\v\f\r"
"""What isspace of C knows."""
WINDOW = 1 << 16
"""Characters searched at once: other threads may run in between."""
_LOOKS_LIKE_CONTROL = re.compile(r"<[|\uff5c].+[|\uff5c]?>|<.+[|\uff5c]>|\[/?[A-Z][A-Z_]*\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt, to be tokenized by itself.

    Attributes:
        special: may hold control tokens.
        joined: goes on the text before it, so no space belongs between them.
    """

    text: str
    special: bool
    joined: bool = False


class ControlTokens:
    """The control tokens of one model.

    Args:
        control: texts of tokens that llama.cpp looks for only with `parse_special`.
        defined: texts of tokens that it always looks for. Of these only those count that look like control tokens or that the template spells out:
            others (runs of spaces, HTML tags) are text like any other.
        template: all that the template's source says.
        strips_right: texts of tokens behind which white space is dropped (Phi-3).
    """

    def __init__(
        self,
        control: Iterable[str],
        defined: Iterable[str] = (),
        template: str = "",
        strips_right: Iterable[str] = (),
    ) -> None:
        self._defined = frozenset(
            text
            for text in defined
            if len(text) > 1 and not text.isspace() and (text in template or _LOOKS_LIKE_CONTROL.fullmatch(text))
        )
        self._strips_right = frozenset(strips_right)
        texts = {text for text in control if text} | self._defined
        self._pattern = _pattern_of(texts)
        self._longest = max(map(len, texts), default=0)

    def parts(self, prompt: str) -> list[Part]:
        """Returns: the prompt in parts, such that no character that a client wrote is part of a control token. Mostly a single part."""
        authors = authors_of(prompt)
        genuine: list[tuple[int, int]] = []
        forged: list[tuple[int, int]] = []
        for start, end in self._found(prompt):
            if authors[start:end] != TEMPLATE * (end - start):
                forged.append((start, end))
            elif not genuine or start >= genuine[-1][1]:
                genuine.append((start, end))
        return self._cut(str.__str__(prompt), genuine, forged) if forged else [Part(str.__str__(prompt), True)]

    def _found(self, prompt: str) -> Iterator[tuple[int, int]]:
        """Yields: where control tokens are spelled, overlapping ones too, for each beginning the longest."""
        at = 0
        while self._pattern is not None and at < len(prompt):
            limit = at + WINDOW
            match = self._pattern.search(prompt, at, limit + self._longest)
            if match is None or match.start() >= limit:  # behind the limit it may be cut short
                at = limit
            else:
                yield match.span()
                at = match.start() + 1

    def _cut(self, prompt: str, genuine: list[tuple[int, int]], forged: list[tuple[int, int]]) -> list[Part]:
        """Returns: parts. What stands between two genuine tokens and spells another is set apart, whole; all else stays together."""
        parts: list[Part] = []
        begun = before = 0
        token = ""
        starts = [start for start, _ in forged]
        for start, end in [*genuine, (len(prompt), len(prompt))]:
            first = bisect_left(starts, before - self._longest)
            inside = [one for one in forged[first : bisect_left(starts, start)] if one[1] > before]
            if inside:
                parts.append(Part(prompt[begun:before], True))
                if token in self._strips_right:
                    before = start - len(prompt[before:start].lstrip(_WHITE_SPACE))
                parts += self._apart(prompt, before, start, inside)
                begun = start
            before, token = end, prompt[start:end]
        parts.append(Part(prompt[begun:], True))
        return [part for part in parts if part.text]

    def _apart(self, prompt: str, start: int, end: int, forged: list[tuple[int, int]]) -> Iterator[Part]:
        cuts = [at + 1 for at, stop in forged if start < at + 1 < end and prompt[at:stop] in self._defined]
        for number, (first, last) in enumerate(zip([start, *cuts], [*cuts, end], strict=True)):
            yield Part(prompt[first:last], False, joined=number > 0)


def _pattern_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Returns: what matches the longest of many texts, in a time that does not depend on how many there are."""
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_source_of(trie), re.DOTALL) if trie else None


def _source_of(node: dict[str, Any]) -> str:
    options = [re.escape(character) + _source_of(child) for character, child in sorted(node.items()) if character]
    if not options:
        return ""
    if "" in node:
        return f"(?:{'|'.join(options)})?"
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"
