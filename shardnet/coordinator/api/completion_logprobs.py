"""The log-probabilities of a completion, in the shape of OpenAI's completions: four lists with an entry for each token. Pure.

Tokens are called by their texts. One whose bytes are no whole characters is called `bytes:\\xf0\\x9f`, as in OpenAI's own answers, so that no two are
called alike; where two tokens of a vocabulary have the same text all the same, the less likely one is `token_id:123`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shardnet.coordinator.requests.generation_spec import Emitted

PieceOf = Callable[[int], bytes]
"""Token -> its bytes."""


def name_of(piece: bytes) -> str:
    """Returns: what a token is called."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class TextOffsets:
    """Where tokens begin in the text that they are part of, in characters. A token within a character begins where that does.

    Args:
        start: of the first one.
        skip: bytes of the tokens that the text does not have: a vocabulary may put a space in front.
    """

    def __init__(self, start: int = 0, skip: int = 0) -> None:
        self._at = start
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def of(self, piece: bytes) -> int:
        """Returns: where the next token begins. Args: piece: its bytes in the text; none for a control token that is not shown."""
        begins = self._at
        cut = min(self._skip, len(piece))
        self._skip -= cut
        self._at += len(self._decoder.decode(piece[cut:]))
        return begins


def prompt_offsets(pieces: Sequence[bytes], text: str) -> list[int]:
    """Returns: where the tokens of a prompt begin in its text."""
    joined, raw = b"".join(pieces), text.encode()
    offsets = TextOffsets(skip=len(joined) - len(raw) if joined.endswith(raw) else 0)
    return [offsets.of(piece) for piece in pieces]


def logprob_lists(tokens: Iterable[Emitted], offsets: Iterable[int], called_by: PieceOf) -> dict[str, Any]:
    """Returns: the four lists.

    Args:
        tokens: each with its log-probability and the most likely ones in its place; without any, nothing is known of it.
        offsets: where each begins in the text.
        called_by: the bytes that name a token, control tokens too.
    """
    names: dict[int, str] = {}

    def name(token: int) -> str:
        found = names.get(token)
        if found is None:
            found = names[token] = name_of(called_by(token))
        return found

    lists: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one, offset in zip(tokens, offsets, strict=True):
        tops: dict[str, float] = {}
        for top in one.logprobs[1:]:
            key = name(top.token)
            tops[f"token_id:{top.token}" if key in tops else key] = top.logprob
        lists["tokens"].append(name(one.token))
        lists["token_logprobs"].append(one.logprobs[0].logprob if one.logprobs else None)
        lists["top_logprobs"].append(tops if one.logprobs else None)
        lists["text_offset"].append(offset)
    return lists


def joined_lists(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Returns: the entries of both."""
    return {key: first[key] + second[key] for key in first}
