"""The rows of a batch, and llama.cpp's `llama_batch`, laid over numpy arrays.

Source: llama.h of the llama.cpp that llama-cpp-python 0.3.36 carries.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

MROPE_SECTIONS = 4
"""Numbers that a row's position has in models with multi-section RoPE, when it is not a token."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one llama.cpp batch, all of the same length for each sequence, sorted by sequence slot.

    Exactly one of `tokens` int32 (n,) and `hidden` float32 (n, n_embd) is set. `positions` and `slots` are int32 (n,).
    `outputs` bool (n,) marks the rows whose logits are wanted; a context that captures marks all of them itself.
    """

    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    outputs: NDArray[np.bool_]
    tokens: NDArray[np.int32] | None = None
    hidden: NDArray[np.float32] | None = None


def single_sequence_rows(
    first_position: int,
    count: int,
    *,
    tokens: Sequence[int] | NDArray[np.int32] | None = None,
    hidden: NDArray[np.float32] | None = None,
    slot: int = 0,
    outputs: Sequence[int] = (),
) -> Rows:
    """Returns: rows of one sequence at consecutive positions; `outputs` are the row numbers whose logits are wanted."""
    marked = np.zeros(count, dtype=np.bool_)
    marked[list(outputs)] = True
    return Rows(
        positions=np.arange(first_position, first_position + count, dtype=np.int32),
        slots=np.full(count, slot, dtype=np.int32),
        outputs=marked,
        tokens=None if tokens is None else np.asarray(tokens, dtype=np.int32),
        hidden=hidden,
    )


class Batch:
    """One batch of up to `n_rows` rows, filled again for each step without a Python loop over rows."""

    def __init__(self, n_rows: int) -> None:
        self._tokens: NDArray[np.int32] = np.zeros(n_rows, dtype=np.int32)
        self._positions: NDArray[np.int32] = np.zeros(n_rows * MROPE_SECTIONS, dtype=np.int32)
        self._slots: NDArray[np.int32] = np.zeros(n_rows, dtype=np.int32)
        self._counts: NDArray[np.int32] = np.ones(n_rows, dtype=np.int32)
        self._outputs: NDArray[np.int8] = np.zeros(n_rows, dtype=np.int8)
        # seq_id is an array of pointers, one to each row's (only) slot.
        self._slot_pointers: NDArray[np.uintp] = (self._slots.ctypes.data + 4 * np.arange(n_rows)).astype(np.uintp)
        self._batch = llama_cpp.llama_batch()
        self._pos_pointer = _pointer(self._positions, llama_cpp.llama_pos)
        self._token_pointer = _pointer(self._tokens, llama_cpp.llama_token)
        self._batch.pos = self._pos_pointer
        self._batch.n_seq_id = _pointer(self._counts, ctypes.c_int32)
        self._batch.seq_id = _pointer(self._slot_pointers, ctypes.POINTER(llama_cpp.llama_seq_id))
        self._batch.logits = _pointer(self._outputs, ctypes.c_int8)
        self._hidden: NDArray[np.float32] | None = None

    def fill(
        self,
        positions: NDArray[np.int32],
        slots: NDArray[np.int32],
        outputs: NDArray[np.bool_] | None,
        *,
        tokens: NDArray[np.int32] | None,
        hidden: NDArray[np.float32] | None,
        sections: int,
    ) -> Any:
        """Take in rows, the same number in every array.

        Args:
            outputs: the rows whose results are wanted; None: all.
            tokens, hidden: (n,) or float32 (n, n_embd), one of them.
            sections: how many numbers a position has, 1 or `MROPE_SECTIONS`.

        Returns: the `llama_batch`, good until the next call.
        """
        count = len(positions)
        self._batch.n_tokens = count
        if sections == 1:
            self._positions[:count] = positions
        else:  # sections 0 to 2 hold the position, section 3 zeros
            for section in range(sections):
                self._positions[section * count : (section + 1) * count] = positions if section < sections - 1 else 0
        self._slots[:count] = slots
        self._outputs[:count] = 1 if outputs is None else outputs
        if tokens is not None:
            self._tokens[:count] = tokens
            self._batch.token, self._batch.embd = self._token_pointer, None
        else:
            self._hidden = np.ascontiguousarray(hidden, dtype=np.float32)  # kept alive over the call
            self._batch.token, self._batch.embd = None, _pointer(self._hidden, ctypes.c_float)
        return self._batch


def _pointer(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
