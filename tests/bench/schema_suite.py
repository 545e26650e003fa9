"""The official JSON-Schema-Test-Suite against what enforces schemas here, beside llguidance alone and llama-cpp-python's own converter; and what
a token costs.

    python tests/bench/schema_suite.py FOLDER --vocabulary GGUF [--optional] [--details]

FOLDER is `tests/draft2020-12` of the suite; the source distribution of the package `jsonschema` carries it as `json/tests/draft2020-12`. Each
case is a schema, a document and whether it fits. A grammar is built from the schema, and it is asked whether it permits the document, in compact
spelling, in any order of the outermost names (grammars fix the order). A case is then

    enforced   what fits is permitted, what does not fit is not
    refused    the schema is refused, with the reason
    narrower   the document fits, and cannot be written
    wrong      the document does not fit, and can be written

`--optional` adds the cases that the suite calls optional, with formats asserted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

from shardnet.coordinator.structure.grammars import HEAD, schema_grammar
from shardnet.errors import EngineError
from shardnet.inference.llama.grammar import Grammar, GrammarState
from shardnet.inference.llama.lark import LarkGrammar, TokenTable, byte_table, table_of
from shardnet.inference.llama.model import LlamaModel

MAX_NAMES = 4
"""Names of an object whose orders are all tried."""
Build = Callable[[Any], GrammarState]


class Case(NamedTuple):
    """One document of the suite."""

    name: str
    schema: Any
    document: Any
    fits: bool


def cases(folder: Path, *, optional: bool) -> Iterator[Case]:
    """Returns: the cases of the suite, in its order."""
    files = sorted(folder.glob("*.json"))
    if optional:
        files += sorted((folder / "optional").glob("*.json")) + sorted((folder / "optional" / "format").glob("*.json"))
    for file in files:
        for group in json.loads(file.read_text(encoding="utf-8")):
            for one in group["tests"]:
                name = f"{file.relative_to(folder)}: {group['description']}: {one['description']}"
                yield Case(name, group["schema"], one["data"], one["valid"])


def spellings(document: Any) -> Iterator[str]:
    """Returns: a document, its outermost names in each order, and whole numbers without a fraction."""
    orders: Iterator[Any] = iter([document])
    if isinstance(document, dict) and len(document) <= MAX_NAMES:
        orders = map(dict, itertools.permutations(document.items()))
    for one in orders:
        for value in (one, _whole(one)):
            yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return {name: _whole(one) for name, one in value.items()} if isinstance(value, dict) else value


class Engine(NamedTuple):
    """How a schema becomes a grammar, and a text becomes tokens."""

    build: Build
    tokens: Callable[[str], list[int]]
    ends: frozenset[int]

    def permits(self, grammar: GrammarState, text: str) -> bool:
        """Returns: True if the grammar permits this text and its end."""
        try:
            grammar.follow([])
            grammar.follow(self.tokens(text))
        except (EngineError, UnicodeError):
            return False
        return any(grammar.permits(end) for end in self.ends)


def judge(engine: Engine, found: Iterator[Case], *, details: bool) -> tuple[Counter[str], Counter[str]]:
    """Returns: how many cases came out how, and the reasons of refusals."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for _, group in itertools.groupby(found, key=lambda case: id(case.schema)):
        some = list(group)
        try:
            grammar = engine.build(some[0].schema)
        except Exception as error:
            counts["refused"] += len(some)
            reasons[str(error)[:90]] += len(some)
            continue
        for case in some:
            permitted = any(engine.permits(grammar, text) for text in spellings(case.document))
            verdict = "enforced" if permitted == case.fits else "narrower" if case.fits else "wrong"
            counts[verdict] += 1
            if details and verdict != "enforced":
                print(f"    {verdict}: {case.name}")
        grammar.close()
    return counts, reasons


def plain_llguidance(table: TokenTable) -> Build:
    """Returns: llguidance's own reading of a schema, without ours."""

    def build(schema: Any) -> GrammarState:
        options = {"x-guidance": {"whitespace_flexible": False}}
        text = json.dumps(schema | options) if isinstance(schema, dict) else json.dumps(schema)
        return LarkGrammar(table, f"{HEAD}start: %json {text}\n")

    return build


def cost(grammar: GrammarState, tokens: list[int], n_vocab: int, *, draws: bool) -> float:
    """Returns: microseconds for each token, of asking for it and following it."""
    scores = np.zeros(n_vocab, dtype=np.float32)
    began = time.perf_counter()
    for at, token in enumerate(tokens):
        grammar.follow(tokens[:at])
        if draws:
            grammar.mask(scores)
        else:
            assert grammar.permits(token)
    return (time.perf_counter() - began) * 1e6 / len(tokens)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}
PEOPLE = {"type": "object", "properties": {"people": {"type": "array", "items": PERSON}}, "required": ["people"]}
DOCUMENT = {
    "people": [
        {
            "name": f"Ada Lovelace the {n}th of that name",
            "age": 30 + n,
            "email": "ada@example.org",
            "tags": ["red", "blue"],
        }
        for n in range(8)
    ]
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--optional", action="store_true")
    parser.add_argument("--details", action="store_true")
    asked = parser.parse_args()
    model = LlamaModel(asked.vocabulary, vocab_only=True)

    def tokens(text: str) -> list[int]:
        raw = text.encode()
        buffer = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(model.vocab, raw, len(raw), buffer, len(buffer), False, False)
        return list(buffer[:count])

    bytewise = byte_table()
    began = time.perf_counter()
    table = table_of(model.vocab, model.n_vocab)
    made_s = time.perf_counter() - began

    def ours(schema: Any) -> GrammarState:
        return LarkGrammar(bytewise, schema_grammar(schema, "schema"))

    def by_llama(schema: Any) -> GrammarState:
        return Grammar(model.vocab, model.n_vocab, json_schema_to_gbnf(json.dumps(schema)))

    def as_bytes(text: str) -> list[int]:
        return list(text.encode())

    engines = {
        "shardnet": Engine(ours, as_bytes, bytewise.ends),
        "llguidance alone": Engine(plain_llguidance(bytewise), as_bytes, bytewise.ends),
        "llama-cpp-python's converter, GBNF": Engine(by_llama, tokens, table.ends),
    }
    print("| | enforced | refused | narrower | wrong |\n|---|---|---|---|---|")
    for name, engine in engines.items():
        counts, reasons = judge(engine, cases(asked.folder, optional=asked.optional), details=asked.details)
        print(
            f"| {name} | " + " | ".join(str(counts[one]) for one in ("enforced", "refused", "narrower", "wrong")) + " |"
        )
        if asked.details:
            for reason, count in reasons.most_common():
                print(f"    refused {count}: {reason}")

    written = tokens(json.dumps(DOCUMENT, separators=(",", ":")))
    spaced = tokens(json.dumps(DOCUMENT, separators=(", ", ": ")))
    print(
        f"\n{model.n_vocab} tokens in the vocabulary; its table took {made_s:.2f} s; a document of {len(written)} tokens"
    )
    print("| | compiling, ms | most likely token, us | drawn token, us |\n|---|---|---|---|")
    makers: list[tuple[str, Callable[[], GrammarState], list[int]]] = [
        ("llguidance", lambda: LarkGrammar(table, schema_grammar(PEOPLE, "schema")), written),
        ("llama.cpp's GBNF", lambda: by_llama(PEOPLE), spaced),
    ]
    for name, build, answer in makers:
        began = time.perf_counter()
        grammar = build()
        compiled = (time.perf_counter() - began) * 1e3
        costs = [cost(grammar, answer, model.n_vocab, draws=draws) for draws in (False, True)]
        print(f"| {name} | {compiled:.1f} | {costs[0]:.0f} | {costs[1]:.0f} |")


if __name__ == "__main__":
    main()
