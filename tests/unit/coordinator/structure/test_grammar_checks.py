"""A grammar is looked over in a process of its own, which may end or hang without harm."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shardnet.coordinator.structure import checking
from shardnet.coordinator.structure.checker import Checker
from shardnet.coordinator.structure.checking import GrammarChecks
from shardnet.coordinator.structure.grammars import HEAD, regex_grammar, schema_grammar
from shardnet.errors import EngineError, UsageError
from tests.support.random_models import tiny_llama

NOWHERE = Path("/nowhere/tokenizer.gguf")
"""JSON schemas and regular expressions need no vocabulary."""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("vocabulary") / "tokenizer.gguf", n_layers=1)


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    checker = Checker()
    yield checker
    checker.close()


@asynccontextmanager
async def checks(script: str) -> AsyncIterator[GrammarChecks]:
    """The coordinator's side, with another program on the other one."""
    made = GrammarChecks([sys.executable, "-c", script])
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize(
    "grammar",
    [
        schema_grammar({"type": "object"}, "x"),
        schema_grammar({"$defs": {"A": {"items": {"$ref": "#/$defs/A"}}}, "$ref": "#/$defs/A"}, "x"),
        regex_grammar("a/b", "x"),
        "root ::= [a-z]+",
        HEAD + "start: /[a-z]+/ <|im_end|>",
        HEAD + "start: <[3]>",
    ],
)
def test_what_engines_take_is_good(checker: Checker, vocabulary: Path, grammar: str) -> None:
    checker.check(grammar, str(vocabulary))


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        ("root ::= (", "llama.cpp does not take the grammar"),
        ("rood ::= [a]", "a rule named root"),
        ("root ::= root [a]", "left recursion"),
        (" ", "empty"),
        (HEAD + "start: nothing", "nothing"),
        (HEAD + "start: <|nothing|>", "<|nothing|>"),
        (HEAD + "start: <[3000]>", "3000"),
        (HEAD + "start: A\nA: /a/ & /b/", "no answer follows it"),
        (schema_grammar({"type": "string", "pattern": "^(a"}, "x"), "unclosed group"),
        (schema_grammar({"required": ["a"], "additionalProperties": False, "type": "object"}, "x"), "no document"),
        (schema_grammar({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "x"), "oneOf"),
        (schema_grammar({"patternProperties": {"a": {}, "b": {"type": "null"}}}, "x"), "/a/ and /b/"),
    ],
)
def test_what_they_do_not_take_is_refused_with_the_reason(
    checker: Checker, vocabulary: Path, grammar: str, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        checker.check(grammar, str(vocabulary))
    assert named in str(caught.value)


async def test_the_process_answers_and_is_asked_once_about_each_grammar() -> None:
    made = GrammarChecks()
    try:
        good, bad = schema_grammar({"type": "object"}, "x"), schema_grammar({"pattern": "^(a"}, "x")
        await made.check(good, NOWHERE, "response_format")
        with pytest.raises(UsageError, match=r"^regex: .*unclosed group") as caught:
            await made.check(bad, NOWHERE, "regex")
        assert caught.value.facts["param"] == "regex"
    finally:
        await made.close()
    await made.check(good, NOWHERE, "response_format")
    await made.close()


async def test_a_process_that_ends_over_a_grammar_refuses_it_and_the_next_one_has_another_process() -> None:
    script = (
        "import json, sys\nprint('{}', flush=True)\nfor line in sys.stdin:\n"
        " if 'deadly' in line: sys.exit(3)\n print(json.dumps({'error': None}), flush=True)"
    )
    async with checks(script) as made:
        await made.check("first", NOWHERE, "grammar")
        with pytest.raises(UsageError, match="ended"):
            await made.check("deadly", NOWHERE, "grammar")
        await made.check("second", NOWHERE, "grammar")


async def test_a_process_that_does_not_come_to_an_end_refuses_its_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "CHECK_TIMEOUT_S", 0.05)
    async with checks("print('{}', flush=True)\nimport sys\nsys.stdin.read()") as made:
        with pytest.raises(UsageError, match=r"longer than 0.05 s"):
            await made.check("slow", NOWHERE, "grammar")


async def test_a_client_that_goes_away_leaves_no_answer_for_the_next_one() -> None:
    script = (
        "import json, sys\nprint('{}', flush=True)\nfor line in sys.stdin:\n"
        " if 'slow' in line: sys.stdin.readline()\n print(json.dumps({'error': json.loads(line)['grammar']}), flush=True)"
    )
    async with checks(script) as made:
        with pytest.raises(UsageError, match="first"):
            await made.check("first", NOWHERE, "grammar")
        leaving = asyncio.create_task(made.check("slow", NOWHERE, "grammar"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        with pytest.raises(UsageError, match="next"):
            await made.check("next", NOWHERE, "grammar")


@pytest.mark.parametrize("command", [["/nowhere/python"], [sys.executable, "-c", "pass"]])
async def test_a_process_that_does_not_start_is_said(command: list[str]) -> None:
    with pytest.raises(EngineError, match="looks grammars over"):
        await GrammarChecks(command).check("a", NOWHERE, "grammar")
