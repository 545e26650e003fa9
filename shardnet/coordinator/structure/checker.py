"""The process that looks grammars over for the coordinator: `python -m shardnet.coordinator.structure.checker`. One line of JSON in, one out.

Native parsers see a client's text here first. If one crashes or does not come to an end, this process is all that is lost.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from shardnet.errors import EngineError, ShardnetError, UsageError
from shardnet.inference.llama.grammar import Grammar
from shardnet.inference.llama.lark import LarkGrammar, TokenTable, byte_table, table_of
from shardnet.inference.llama.model import LlamaModel
from shardnet.lifecycle import NATIVE_STACK_BYTES, become_a_child
from shardnet.messages import LARK

MAX_VOCABULARIES = 2
NAMES_TOKENS = ("unknown special token", "Token range", "token range")
"""What llguidance says of a grammar that names tokens, where it has bytes alone."""


class Checker:
    """Looks grammars over, one at a time."""

    def __init__(self) -> None:
        self._bytes = byte_table()
        self._models: dict[str, LlamaModel] = {}
        self._tables: dict[str, TokenTable] = {}

    def check(self, grammar: str, vocabulary: str) -> None:
        """Raises: UsageError if an engine with this vocabulary (a GGUF's path) would not take the grammar, or can write nothing by it."""
        if not grammar.startswith(LARK):
            model = self._model(vocabulary)
            Grammar(model.vocab, model.n_vocab, grammar).close()
            return
        try:
            _begin(LarkGrammar(self._bytes, grammar), self._bytes.n_vocab)
        except UsageError as error:
            if not any(words in str(error) for words in NAMES_TOKENS):
                raise
            table = self._table(vocabulary)
            _begin(LarkGrammar(table, grammar), table.n_vocab)

    def close(self) -> None:
        """Free what was opened."""
        self._tables.clear()
        for model in self._models.values():
            model.close()
        self._models.clear()

    def _model(self, vocabulary: str) -> LlamaModel:
        if vocabulary not in self._models:
            while len(self._models) >= MAX_VOCABULARIES:
                oldest = next(iter(self._models))
                self._tables.pop(oldest, None)
                self._models.pop(oldest).close()
            self._models[vocabulary] = LlamaModel(Path(vocabulary), vocab_only=True)
        return self._models[vocabulary]

    def _table(self, vocabulary: str) -> TokenTable:
        if vocabulary not in self._tables:
            model = self._model(vocabulary)
            self._tables[vocabulary] = table_of(model.vocab, model.n_vocab)
        return self._tables[vocabulary]


def _begin(grammar: LarkGrammar, n_vocab: int) -> None:
    scores = np.zeros(n_vocab, dtype=np.float32)
    with suppress(EngineError):
        grammar.mask(scores)
        if np.isfinite(scores).any():
            return
    raise UsageError("the grammar is not taken: no answer follows it")


def main() -> None:
    """Answer until standard input closes."""
    become_a_child(NATIVE_STACK_BYTES)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    checker = Checker()
    print("{}", file=answers, flush=True)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        error = None
        try:
            checker.check(asked["grammar"], asked["vocabulary"])
        except ShardnetError as refused:
            error = str(refused)
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
