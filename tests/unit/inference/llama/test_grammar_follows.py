"""Standing in a grammar where a sequence's tokens have led: long answers, and answers that are taken up again elsewhere."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.errors import EngineError
from shardnet.inference.llama.lark import LarkGrammar, byte_table
from shardnet.messages import LARK
from shardnet.token_arrays import common_length

NUMBERS = LARK + ' {}\nstart: %json {"type": "array", "items": {"type": "integer"}}'
TOKENS = st.lists(st.integers(0, 3), max_size=8)


@given(TOKENS, TOKENS)
def test_two_sequences_agree_up_to_the_first_token_that_differs(one: list[int], other: list[int]) -> None:
    found = common_length(array("i", one), array("i", other))
    assert one[:found] == other[:found]
    assert one[found : found + 1] != other[found : found + 1] or found == min(len(one), len(other))


def test_a_long_answer_is_followed_token_by_token_and_taken_up_again_anywhere() -> None:
    grammar = LarkGrammar(byte_table(), NUMBERS)
    text = array("i", list(("[" + "12, " * 500).encode()))
    for count in range(len(text) + 1):
        grammar.follow(text[:count])
    assert grammar.permits(ord("7"))
    assert not grammar.permits(ord("]")), "a comma wants another number"
    back = array("i", list(b"[12, 12"))
    grammar.follow(back)
    assert grammar.permits(ord("]"))
    other = array("i", list(b"[12, 9"))
    grammar.follow(other)
    with pytest.raises(EngineError, match="do not follow the grammar"):
        grammar.follow(array("i", list(b"[12, x")))
    grammar.close()
