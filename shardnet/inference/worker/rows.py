"""The short way of a run's step: one row, one sequence, nothing else waiting. native/row.c does it in one call.

The general way (`chains`) stays the only one that checks, rewinds, merges and samples in all its variants. This one is taken when none of that is
needed, changes the same state, and leaves everything else alone: a step that does not go through here is simply run the general way.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from shardnet.inference.llama.capture import native_functions
from shardnet.inference.llama.model import LlamaContext
from shardnet.inference.llama.sampling import is_greedy, lookback, pick
from shardnet.inference.worker.sequences import SequenceState
from shardnet.messages import Sampling


class LaneShard(ctypes.Structure):
    """Mirrors `struct row_shard` of native/row.c."""

    _fields_ = (("context", ctypes.c_void_p), ("capture", ctypes.c_void_p))


class LaneState(ctypes.Structure):
    """Mirrors `struct row_lane`."""

    _fields_ = (
        ("decode", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("shards", ctypes.POINTER(LaneShard)),
        ("n_shards", ctypes.c_int32),
        ("n_embd", ctypes.c_int32),
        ("n_vocab", ctypes.c_int32),
        ("slot", ctypes.c_int32),
        ("pick", ctypes.c_int32),
        ("token", ctypes.c_int32),
    )


def _native_row() -> Any | None:
    """Returns: the compiled function; None without a compiler, or where llama.cpp's batch is not what it was compiled for."""
    found = native_functions("shardnet_row_1", "shardnet_row_batch_bytes")
    if found is None:
        return None
    function, batch_bytes = found
    batch_bytes.restype = ctypes.c_size_t
    if batch_bytes() != ctypes.sizeof(llama_cpp.llama_batch):
        return None
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32]
    return function


NATIVE_ROW = _native_row()


class Lane:
    """A sequence's way through a chain of shards. Valid while the chain and the sequence's slot stay what they are.

    Args:
        contexts: of the chain's shards, in order.
        shard_ids: theirs.
        sampling: how the head picks tokens, if the chain has it; neither grammar nor log-probabilities.
    """

    def __init__(
        self, contexts: Sequence[LlamaContext], shard_ids: Sequence[int], state: SequenceState, sampling: Sampling
    ) -> None:
        last = contexts[-1]
        self._contexts = tuple(contexts)
        self._choice = last.choice
        self._what = tuple(map(id, contexts))
        self._learns = not any(context.model.uses_gpu for context in contexts)  # as `LlamaContext.decode` has it
        self._state = state
        self._lengths = state.lengths
        self._shard_ids = tuple(shard_ids)
        self._n_ctx = min(context.n_ctx for context in contexts)
        self._head = None if last.captures else last
        self._sampling = None if is_greedy(sampling) else sampling
        self._reads_tokens = not shard_ids[0]
        self._n_tokens = contexts[0].model.n_vocab  # a middle shard at the chain's end has a vocabulary of one
        self._shards = (LaneShard * len(contexts))(
            *(LaneShard(context.pointer, context.capture_address) for context in contexts)
        )
        model = last.model
        self._lane = LaneState(
            decode=ctypes.cast(llama_cpp.llama_decode, ctypes.c_void_p),
            logits=ctypes.cast(llama_cpp.llama_get_logits_ith, ctypes.c_void_p),
            shards=self._shards,
            n_shards=len(contexts),
            n_embd=model.n_embd,
            n_vocab=model.n_vocab,
            slot=state.slot,
            pick=self._head is not None and self._sampling is None,
        )
        self._address = ctypes.addressof(self._lane)
        self.row_bytes = 0 if self._reads_tokens else 4 * model.n_embd
        self.hidden = None if self._head is not None else last.hidden_view()

    @staticmethod
    def fits(contexts: Sequence[LlamaContext], sampling: Sampling) -> bool:
        """True if such a chain can be run this way."""
        return (
            NATIVE_ROW is not None
            and all(context.takes_plain_rows for context in contexts)
            and sampling.grammar is None
            and sampling.top_logprobs is None
        )

    def run(self, position: int, token: int, hidden_address: int) -> int | None:
        """Run the row at `position`.

        Args:
            hidden_address: of float32 (n_embd,), where the chain's first shard is not the model's.

        Returns: the sampled token, 0 from a chain without the head (`hidden` has its output then); None if the general way has to be taken.
        """
        lengths = self._lengths
        for shard_id in self._shard_ids:
            if lengths.get(shard_id) != position:
                return None
        if position >= self._n_ctx or (self._reads_tokens and not 0 <= token < self._n_tokens):
            return None
        history = self._state.history
        if self._head is not None and len(history) != position:
            return None
        choice = self._choice
        threads = choice.threads(self._what, 1, position) if self._learns else choice.most
        for context in self._contexts:
            context.use_threads(threads)
        began_s = time.perf_counter()
        failed = NATIVE_ROW(self._address, token, None if self._reads_tokens else hidden_address, position)  # type: ignore[misc]
        choice.note(time.perf_counter() - began_s)
        if failed:
            for shard_id in self._shard_ids:
                lengths[shard_id] = (
                    position + 1
                )  # the general way drops what may stand there, and begins at `position` again
            return None
        for shard_id in self._shard_ids:
            lengths[shard_id] = position + 1
        if self._head is None:
            return 0
        history.append(token)
        if self._sampling is None:
            return int(self._lane.token)
        back = lookback(self._sampling, position + 1)
        recent = np.asarray(history[position + 1 - back :], dtype=np.int32)
        return pick(self._head.logits(0), self._sampling, position=position + 1, recent=recent)
