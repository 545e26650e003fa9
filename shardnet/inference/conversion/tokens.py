"""Tokens of a checkpoint in the form that llama.cpp reads: text, kind and, for SentencePiece, score of each row of the embedding.

Refuses to know from which file they come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from shardnet.errors import CheckpointError

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
ADDED_SCORE = -1000.0
"""Of tokens that are found as they stand and never merged. Source: llama.cpp's converter."""
UNUSED_SCORE = -10000.0

_BYTE = re.compile(r"^<0x[0-9A-F]{2}>$")
_LOOKS_SPECIAL = re.compile(r"^(<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>)$", re.DOTALL)
"""Tokens that checkpoints add as if they were text and that steer. Source: llama.cpp's converter, `does_token_look_special`."""


class Kind(IntEnum):
    """Source: llama.h, enum llama_token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in a text as it stands, before anything else happens to it. `strips_right`: and swallows spaces behind it."""

    token_id: int
    text: str
    is_special: bool
    strips_right: bool = False


@dataclass(slots=True)
class Vocabulary:
    """Lists of one entry per row of the embedding.

    Attributes:
        model: "gpt2" for byte-level pairs, "llama" for SentencePiece.
        pre: llama.cpp's name for the way text is cut.
        strips_right: whether spaces behind some special token are swallowed.
        adds_space: whether a text begins with a space that it has not; None where the model leaves it open.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: list[str]
    kinds: list[Kind]
    scores: list[float]
    adds_space: bool | None = None
    strips_right: bool = False

    def add(self, token: AddedToken) -> None:
        """Put an added token in its row. One without a row is left out: no model can read it (Gemma 3 1B has one, for pictures)."""
        if not 0 <= token.token_id < len(self.tokens):
            return
        is_unknown = self.kinds[token.token_id] == Kind.UNKNOWN
        if token.is_special or _LOOKS_SPECIAL.match(token.text):
            kind, text = Kind.UNKNOWN if is_unknown else Kind.CONTROL, token.text
        else:
            kind, text = Kind.USER_DEFINED, token.text.replace(SPACE, " ")
        self.strips_right = self.strips_right or (token.is_special and token.strips_right)
        self.tokens[token.token_id] = text
        self.kinds[token.token_id] = kind
        self.scores[token.token_id] = ADDED_SCORE


def empty_vocabulary(model: Literal["gpt2", "llama"], pre: str, n_rows: int) -> Vocabulary:
    """Returns: a vocabulary in which no row of the embedding has a token yet; what stays so is never used."""
    return Vocabulary(
        model, pre, [f"[PAD{row}]" for row in range(n_rows)], [Kind.UNUSED] * n_rows, [UNUSED_SCORE] * n_rows
    )


def kind_of_piece(text: str) -> Kind:
    """Returns: BYTE for the pieces that stand for one byte, else NORMAL."""
    return Kind.BYTE if _BYTE.match(text) else Kind.NORMAL


def check_row(token_id: int, n_rows: int, where: str) -> None:
    """Raises: CheckpointError if a token has no row in the embedding."""
    if not 0 <= token_id < n_rows:
        raise CheckpointError(
            f"{where} has a token {token_id}, and the embedding {n_rows} rows: tokenizer and weights are not of one model"
        )
