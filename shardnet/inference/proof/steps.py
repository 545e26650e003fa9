"""The batches of a proof, the same for the unsplit model and for every shard: llama.cpp's numbers depend on what is computed together.

Two ways of making them. *One by one* is how a node runs requests: each prompt by itself, in chunks, then single tokens. *All at once* reads weights
as seldom as can be: all prompts in one batch, then one batch for each further token of all of them.

Knows tokens and rows. Refuses to know models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import EngineError
from shardnet.inference.llama.batch import Rows
from shardnet.inference.llama.model import LlamaModel

Method = Literal["full", "quick"]

N_BATCH = 512
"""Rows of a prompt chunk, as the engine uses by default."""

_STORY = (
    "The lighthouse keeper counted the waves every evening, for he believed that the seventh one after sunset brought news from the far shore. "
    "On the night of the great storm he counted six, and then the sea fell silent; nothing moved but the beam above his head. "
)
PROMPTS = (
    "The capital of France is",
    "def quicksort(values):\n    if len(values) < 2:\n        return values\n    pivot = values[0]\n",
    "Übersetze ins Englische: „Der Fluss fließt schneller, als man denkt.“ — 日本語も少し。 1 + 2 × 3 = ?",
    _STORY * 10,
)
"""Short and long, words, code and other scripts. The last is cut to `LONG_PROMPT` tokens: more than one chunk, and more than most sliding windows."""
LONG_PROMPT = N_BATCH + 48
QUICK_LONG_PROMPT = 240
"""What it is cut to in a quick proof of a model without windows: there the arithmetic of its rows takes longer than reading the weights."""
BYTES_PER_TOKEN = 3
"""Of the built-in prompts, few rather than many: what a proof costs is told before the vocabulary was read."""

Best = Callable[[int], int]
"""The unsplit model's most likely token, by the row of logits."""


@dataclass(frozen=True, slots=True)
class Step:
    """One batch. All arrays have one entry for each row: tokens, positions and slots int32, outputs bool.

    Attributes:
        row: number of its first row among those of all steps.
        output: number of its first row with logits, likewise.
        starts: its sequences begin here; what their slots held is dropped.
    """

    row: int
    output: int
    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    outputs: NDArray[np.bool_]
    starts: bool

    @property
    def n_rows(self) -> int:
        """Returns: rows of the batch."""
        return len(self.tokens)

    def rows(self, hidden: NDArray[np.float32] | None) -> Rows:
        """Returns: the batch, of tokens, or of its rows of `hidden` float32 (rows of all steps, n_embd)."""
        return Rows(
            positions=self.positions,
            slots=self.slots,
            outputs=self.outputs,
            tokens=self.tokens if hidden is None else None,
            hidden=None if hidden is None else hidden[self.row : self.row + self.n_rows],
        )


def long_prompt(method: Method, *, is_windowed: bool) -> int:
    """Returns: tokens that the longest of the built-in prompts is cut to. `is_windowed`: some layers attend to the last so many tokens only."""
    return LONG_PROMPT if method == "full" or is_windowed else QUICK_LONG_PROMPT


def tokenized(model: LlamaModel, longest: int) -> list[list[int]]:
    """Returns: the built-in prompts in the model's vocabulary, none above `longest`; random tokens where it cannot encode text."""
    room = min(longest, max(model.n_ctx_train - 64, 16))
    if llama_cpp.llama_vocab_type(model.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        generator = np.random.default_rng(1)
        return [generator.integers(0, model.n_vocab, min(size, room)).tolist() for size in (7, 40, longest)]
    prompts = []
    for text in PROMPTS:
        data = text.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(model.vocab, data, len(data), buffer, len(buffer), True, False)
        if count < 0:
            raise EngineError(f"the tokenizer of {model.path} made {-count} tokens of {len(data)} bytes")
        prompts.append(list(buffer[: min(count, room)]))
    return [prompt for prompt in prompts if prompt]


def built_in_lengths(longest: int) -> list[int]:
    """Returns: about how many tokens the built-in prompts have, none above `longest`."""
    return [min(longest, -(-len(text.encode()) // BYTES_PER_TOKEN)) for text in PROMPTS]


def rows_of_steps(method: Method, lengths: Sequence[int], decode_tokens: int) -> list[int]:
    """Returns: rows of each step that prompts of these lengths make."""
    if method == "quick":
        return [sum(lengths), *[len(lengths)] * decode_tokens]
    rows: list[int] = []
    for length in lengths:
        rows += [min(N_BATCH, length - at) for at in range(0, length, N_BATCH)] + [1] * decode_tokens
    return rows


def equalized(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Returns: the prompts, all cut or repeated to their mean length: llama.cpp computes sequences with recurrent state together only so far as they
    are equally long, and would make several batches of one."""
    length = -(-sum(map(len, prompts)) // len(prompts))
    return [list(islice(cycle(prompt), length)) for prompt in prompts]


def one_by_one(prompts: Sequence[list[int]], decode_tokens: int, best: Best) -> Iterator[Step]:
    """Yield each prompt's chunks, then its greedy tokens. Every step has one row with logits, its last."""
    row = output = 0
    for prompt in prompts:
        position = 0
        chunks = [prompt[at : at + N_BATCH] for at in range(0, len(prompt), N_BATCH)]
        for number in range(len(chunks) + decode_tokens):
            tokens = chunks[number] if number < len(chunks) else [best(output - 1)]
            count = len(tokens)
            yield Step(
                row,
                output,
                np.asarray(tokens, dtype=np.int32),
                np.arange(position, position + count, dtype=np.int32),
                np.zeros(count, dtype=np.int32),
                np.arange(count) == count - 1,
                starts=position == 0,
            )
            row, output, position = row + count, output + 1, position + count


def all_at_once(prompts: Sequence[list[int]], decode_tokens: int, best: Best) -> Iterator[Step]:
    """Yield all prompts, each in its slot, then one greedy token of each. The last row of every sequence has logits."""
    n_seq = len(prompts)
    row = output = 0
    for number in range(1 + decode_tokens):
        parts = prompts if number == 0 else [[best(output - n_seq + slot)] for slot in range(n_seq)]
        lengths = [len(part) for part in parts]
        begins = [0 if number == 0 else len(prompt) + number - 1 for prompt in prompts]
        outputs = np.zeros(sum(lengths), dtype=np.bool_)
        outputs[np.cumsum(lengths) - 1] = True
        yield Step(
            row,
            output,
            np.concatenate([np.asarray(part, dtype=np.int32) for part in parts]),
            np.concatenate([np.arange(at, at + n, dtype=np.int32) for at, n in zip(begins, lengths, strict=True)]),
            np.repeat(np.arange(n_seq, dtype=np.int32), lengths),
            outputs,
            starts=number == 0,
        )
        row, output = row + sum(lengths), output + n_seq
