"""Random JSON schemas of what is enforced, and random documents that a grammar permits."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from shardnet.inference.llama.lark import LarkGrammar, TokenTable
from shardnet.inference.llama.sampling import pick
from shardnet.messages import Sampling

NAMES = ("a", "b", 'q"', "é", "x y")
PATTERNS = ("^a+$", "b|c", r"^\d{2}-\w$", "[^x]$", "^(é|\\/)*$", "^.{2,3}$")
EAGER = b'"}]:,0123456789aeult'
"""Bytes that bring a document to its end."""

_scalars = st.sampled_from([None, True, False, 0, 1, -3, 2.5, "a", "é", 'b"', "", [1], {"a": None}])
_bound = st.integers(-20, 20)


def _ordered(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(values, values).map(lambda pair: {low: min(pair), high: max(pair)})


_numbers = st.builds(
    lambda kind, bounds, multiple: {"type": kind} | bounds | multiple,
    st.sampled_from(["integer", "number"]),
    st.one_of(
        st.just({}),
        _ordered("minimum", "maximum", _bound),
        _ordered("exclusiveMinimum", "maximum", _bound),
        _ordered("minimum", "exclusiveMaximum", st.sampled_from([-1.5, -0.25, 0, 0.1, 3.75, 12])),
    ),
    st.sampled_from([{}, {}, {"multipleOf": 3}, {"multipleOf": 0.5}]),
)
_strings = st.builds(
    lambda length, pattern: {"type": "string"} | length | pattern,
    st.one_of(st.just({}), _ordered("minLength", "maxLength", st.integers(0, 5))),
    st.one_of(st.just({}), st.sampled_from(PATTERNS).map(lambda one: {"pattern": one})),
)
_leaves = st.one_of(
    _numbers,
    _strings,
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}, {}, True]),
    _scalars.map(lambda one: {"const": one}),
    st.lists(_scalars, min_size=1, max_size=3).map(lambda some: {"enum": some}),
    st.just({"$ref": "#/$defs/node"}),
)


def _nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(NAMES)
    objects = st.builds(
        lambda properties, required, rest, most: (
            {"type": "object", "properties": properties, "required": required} | rest | most
        ),
        st.dictionaries(names, children, max_size=3),
        st.lists(names, unique=True, max_size=2),
        st.one_of(
            st.just({}),
            children.map(lambda one: {"additionalProperties": one}),
            st.just({"additionalProperties": False}),
            children.map(lambda one: {"patternProperties": {"^z": one}, "additionalProperties": False}),
        ),
        st.sampled_from([{}, {}, {"maxProperties": 3}, {"minProperties": 1}]),
    )
    arrays = st.builds(
        lambda items, prefix, counts: {"type": "array", "items": items} | prefix | counts,
        children,
        st.one_of(st.just({}), st.lists(children, min_size=1, max_size=2).map(lambda some: {"prefixItems": some})),
        st.one_of(st.just({}), _ordered("minItems", "maxItems", st.integers(0, 3))),
    )
    choices = st.builds(
        lambda keyword, options: {keyword: options},
        st.sampled_from(["anyOf", "oneOf", "allOf"]),
        st.lists(children, min_size=1, max_size=3),
    )
    merged = st.builds(lambda one, other: one | {"allOf": [other]}, objects, objects)
    return st.one_of(objects, arrays, choices, merged)


NODE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["next"],
    "additionalProperties": False,
}


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas; some contradict themselves, and some use what can be refused by name."""
    whole = st.recursive(_leaves, _nested, max_leaves=8)
    return whole.map(lambda one: (one if isinstance(one, dict) else {}) | {"$defs": {"node": NODE}})


def random_document(grammar: LarkGrammar, table: TokenTable, seed: int, most: int = 400) -> bytes | None:
    """Returns: what a model that knows nothing writes by a grammar; None if that has no end."""
    generator = np.random.default_rng(seed)
    tokens: list[int] = []
    eager = np.zeros(table.n_vocab, dtype=np.float32)
    eager[list(EAGER)] = 4.0
    eager[sorted(table.ends)] = 6.0
    for position in range(most):
        grammar.follow(tokens)
        logits = generator.normal(0, 1, table.n_vocab).astype(np.float32) + eager * min(2.0, position / 40)
        token = pick(
            logits,
            Sampling(temperature=2.0, seed=seed),
            position=position,
            recent=np.zeros(0, dtype=np.int32),
            grammar=grammar,
        )
        if token in table.ends:
            return b"".join(table.tokens[one] for one in tokens)
        tokens.append(token)
    return None
