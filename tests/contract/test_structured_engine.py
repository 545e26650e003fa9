"""Grammars in Lark's syntax in a real engine: documents that fit their schema, whatever is drawn; the same ones after a sequence is built anew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from shardnet.coordinator.structure.grammars import HEAD, regex_grammar, schema_grammar
from shardnet.coordinator.text.vocabulary import Vocabulary
from shardnet.errors import EngineError, UsageError
from shardnet.messages import Sampling
from tests.support.engine_world import PROMPT, NewRoute, Route, SplitModel

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6, "pattern": "^[a-zé]+$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "boss": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "boss"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"enum": ["é", 'q"', -1.5, None]}, "minItems": 1, "maxItems": 4},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "propertyNames": {"enum": ["a", "b"]}},
    {"oneOf": [{"type": "number", "multipleOf": 0.5, "minimum": -9, "maximum": 9}, {"type": "null"}]},
]


@pytest.fixture(scope="module")
def vocabulary(tiny: SplitModel) -> Iterator[Vocabulary]:
    vocabulary = Vocabulary(tiny.whole)
    yield vocabulary
    vocabulary.close()


async def write(route: Route, sampling: Sampling, vocabulary: Vocabulary, most: int = 120) -> tuple[list[int], str]:
    """Returns: the tokens of an answer, and its text if it came to its end."""
    tokens: list[int] = []
    position, rows = 0, list(PROMPT)
    while len(tokens) < most:
        frame = await route.step(position, rows, sampling=sampling)
        position += len(rows)
        rows = [frame.message.tokens[0]]
        tokens += rows
        if vocabulary.is_end(tokens[-1]):
            return tokens, b"".join(map(vocabulary.piece, tokens)).decode()
    return tokens, ""


@pytest.mark.parametrize("schema", SCHEMAS, ids=["recursive", "enum", "names", "number"])
async def test_whatever_is_drawn_the_answer_fits_its_schema(
    new_route: NewRoute, vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    finished = 0
    for seed in range(6):
        route = new_route()
        sampling = Sampling(temperature=2.0, seed=seed, grammar=schema_grammar(schema, "x"), prompt_tokens=len(PROMPT))
        _, text = await write(route, sampling, vocabulary)
        route.forget()
        if text:
            jsonschema.validate(json.loads(text), schema)
            finished += 1
    assert finished >= 3


async def test_a_sequence_that_is_built_anew_elsewhere_goes_on_with_the_same_tokens(
    new_route: NewRoute, vocabulary: Vocabulary
) -> None:
    sampling = Sampling(temperature=2.0, seed=2, grammar=schema_grammar(PERSON, "x"), prompt_tokens=len(PROMPT))
    tokens, _ = await write(new_route(), sampling, vocabulary, 40)
    again = new_route()
    await again.step(0, PROMPT)
    for at, token in enumerate(tokens[:25]):  # row by row, as the first time: batches change llama.cpp's numbers
        frame = await again.step(len(PROMPT) + at, [token], sampling=sampling)
        assert frame.message.tokens[0] == tokens[at + 1]
    frame = await again.step(len(PROMPT) + 4, [tokens[4]], sampling=sampling)  # back, as after a wrong proposal
    assert frame.message.tokens[0] == tokens[5]
    with pytest.raises(EngineError, match="do not follow"):
        await again.step(len(PROMPT) + 5, [0], sampling=sampling)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
async def test_a_regular_expression_is_followed_to_its_end_and_nothing_comes_behind_it(
    new_route: NewRoute, vocabulary: Vocabulary, temperature: float
) -> None:
    grammar = regex_grammar("(ab|x/y){2,3}é", "regex")
    sampling = Sampling(temperature=temperature, seed=5, grammar=grammar, prompt_tokens=len(PROMPT))
    route = new_route()
    tokens, text = await write(route, sampling, vocabulary)
    assert re.fullmatch("(ab|x/y){2,3}é", text)
    position, rows = len(PROMPT) + len(tokens) - 1, tokens[-1:]
    for _ in range(3):  # whoever ignores the end of the text gets it again
        rows = [(await route.step(position, rows, sampling=sampling)).message.tokens[0]]
        assert vocabulary.is_end(rows[0])
        position += 1


@pytest.mark.parametrize(
    "rule",
    ["start: nothing", "begin: /a/", "start: /(/", "start: %json {", '%json {"not": {}}', ""],
)
async def test_a_bad_lark_grammar_is_refused_and_the_engine_goes_on(new_route: NewRoute, rule: str) -> None:
    route = new_route()
    with pytest.raises(UsageError, match="the grammar is not taken"):
        await route.step(0, PROMPT, sampling=Sampling(grammar=HEAD + rule))
    await route.step(0, PROMPT)
