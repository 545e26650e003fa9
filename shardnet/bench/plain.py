"""Plain llama.cpp on the unsplit model: the yardstick of every benchmark, and the oracle of every parity check.

It is driven through the same thin binding as the shards, with the same chunking, so that the difference is the price of
distribution and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardnet.inference.llama.batch import Rows, single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.llama.thread_choice import ThreadChoice

Choose = Callable[[list[int], NDArray[np.float32]], int]
"""`(tokens so far, logits float32 (n_vocab,)) -> next token`."""


@dataclass(slots=True)
class PlainRun:
    """What one generation gave."""

    tokens: list[int] = field(default_factory=list)
    prefill_s: float = 0.0
    """Time to the first token, seconds."""
    decode_s: float = 0.0
    """Time of all further tokens, seconds."""
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    """float32 (n_vocab,) per token, when asked for."""

    @property
    def decode_tokens_per_s(self) -> float:
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True, slots=True)
class BatchedRun:
    """What several generations in one batch gave: their tokens, and decode tokens per second of all together."""

    tokens: list[list[int]]
    tokens_per_s: float


class PlainLlama:
    """The unsplit model in this process, greedy. Use as a context manager.

    Args:
        threads: CPU threads; 0 for all; a choice: as many as it says.
        n_seq: sequences for `generate_batched`.
        flash: with llama.cpp's own choice of flash attention, whose numbers are others (docs/decisions/0002-flash-attention.md).

    Attributes:
        context: what computes.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | ThreadChoice = 0,
        n_ctx: int = 4096,
        n_seq: int = 1,
        n_batch: int = 512,
        flash: bool = False,
    ) -> None:
        self._model = LlamaModel(path)
        self.context = LlamaContext(
            self._model, n_ctx=n_ctx, n_seq=n_seq, n_batch=n_batch, threads=threads, flash=flash
        )
        self._n_batch = n_batch
        self._known: dict[tuple[int, ...], list[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.context.close()
        self._model.close()

    def _prefill(self, prompt: list[int], slot: int) -> int:
        """Returns: the row of the last chunk that holds the prompt's last token."""
        self.context.truncate(slot, 0)
        for start in range(0, len(prompt), self._n_batch):
            chunk = prompt[start : start + self._n_batch]
            last = start + len(chunk) == len(prompt)
            outputs = [len(chunk) - 1] if last else []
            self.context.decode(single_sequence_rows(start, len(chunk), tokens=chunk, slot=slot, outputs=outputs))
        return (len(prompt) - 1) % self._n_batch

    def generate(
        self, prompt: list[int], n_tokens: int, *, keep_logits: bool = False, choose: Choose | None = None
    ) -> PlainRun:
        """Returns: `n_tokens` tokens after `prompt`, greedy unless `choose` picks them; the end-of-text token is treated like any other."""
        run = PlainRun()
        begin = time.perf_counter()
        row = self._prefill(prompt, 0)
        for step in range(n_tokens):
            logits = self.context.logits(row)
            if keep_logits:
                run.logits.append(logits.copy())
            run.tokens.append(choose(prompt + run.tokens, logits) if choose else int(logits.argmax()))
            if step == 0:
                run.prefill_s = time.perf_counter() - begin
                begin = time.perf_counter()
            if step + 1 < n_tokens:
                token = [run.tokens[-1]]
                self.context.decode(single_sequence_rows(len(prompt) + step, 1, tokens=token, outputs=[0]))
                row = 0
        run.decode_s = time.perf_counter() - begin
        return run

    def expected(self, prompt: list[int], n_tokens: int) -> list[int]:
        """Returns: the tokens that `generate` gives, computed once."""
        known = self._known.get(tuple(prompt), [])
        if len(known) < n_tokens:
            known = self._known[tuple(prompt)] = self.generate(prompt, n_tokens).tokens
        return known[:n_tokens]

    def generate_batched(self, prompts: list[list[int]], n_tokens: int) -> BatchedRun:
        """Returns: `n_tokens` tokens after each prompt, greedy, one row of each in every batch."""
        count = len(prompts)
        current = np.empty(count, dtype=np.int32)
        for slot, prompt in enumerate(prompts):
            current[slot] = int(self.context.logits(self._prefill(prompt, slot)).argmax())
        found = [current]
        positions = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
        slots, outputs = np.arange(count, dtype=np.int32), np.ones(count, dtype=np.bool_)
        begin = time.perf_counter()
        for step in range(n_tokens - 1):
            self.context.decode(Rows(positions=positions + step, slots=slots, outputs=outputs, tokens=current))
            current = np.array([int(self.context.logits(row).argmax()) for row in range(count)], dtype=np.int32)
            found.append(current)
        tokens_per_s = count * (n_tokens - 1) / (time.perf_counter() - begin)
        return BatchedRun([[int(each[slot]) for each in found] for slot in range(count)], tokens_per_s)
