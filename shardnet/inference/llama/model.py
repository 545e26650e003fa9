"""llama.cpp's models and contexts, as little of them as layer-range inference needs. Only the engine process and offline tools import this.

Everything that a caller could pass wrong is checked here first, and is an error of ours: what reaches llama.cpp is what it supports.

Source: llama.h of the llama.cpp that llama-cpp-python 0.3.36 carries.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import ContextExceeded, EngineError
from shardnet.inference.llama import native_log
from shardnet.inference.llama.batch import MROPE_SECTIONS, Batch, Rows
from shardnet.inference.llama.capture import (
    FED_AS_TOKENS,
    INPUT_NODES,
    LayerProbe,
    LayerWatch,
    OutputCapture,
)
from shardnet.inference.llama.devices import usable_threads
from shardnet.inference.llama.placing import Placing
from shardnet.inference.llama.thread_choice import ThreadChoice
from shardnet.limits.memory import refuse_to_map

LLAMA_CPP_VERSION = str(llama_cpp.__version__)
MROPE_TYPES = frozenset(
    {llama_cpp.LLAMA_ROPE_TYPE_MROPE, llama_cpp.LLAMA_ROPE_TYPE_IMROPE, llama_cpp.LLAMA_ROPE_TYPE_VISION}
)
MAX_VALUE_BYTES = 256
ON_CPU = Placing()


def start_backend() -> None:
    """Initialise llama.cpp for this process; harmless when repeated."""
    native_log.listen()
    llama_cpp.llama_backend_init()


class LlamaModel:
    """One GGUF in memory. Use as a context manager, or call `close`.

    Args:
        placing: what goes to which device; nothing said: all to the processor.
        repack: let llama.cpp keep weights in memory once more, laid out for its quicker kernels. Without it they are computed with as they lie in
            the mapped file, by other kernels, whose numbers differ.
        on_progress: called with 0..1 while loading.

    Raises: EngineError with llama.cpp's own reason if it does not open the file; NoRoomError if there is no address space for it.
    """

    def __init__(
        self,
        path: Path,
        *,
        placing: Placing = ON_CPU,
        vocab_only: bool = False,
        use_mmap: bool = True,
        repack: bool = True,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        if use_mmap and not vocab_only and path.exists():
            refuse_to_map(path)
        start_backend()
        params = llama_cpp.llama_model_default_params()
        arrays = placing.put_into(params)
        params.vocab_only = vocab_only
        params.use_extra_bufts = repack
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if use_mmap else llama_cpp.LLAMA_LOAD_MODE_NONE

        def progress(share: float, _user_data: Any) -> bool:
            if on_progress is not None:
                on_progress(share)
            return True

        self._progress = llama_cpp.llama_progress_callback(progress)
        params.progress_callback = self._progress
        native_log.forget()
        self.path = path
        self.uses_gpu = placing.n_gpu_layers != 0
        self.pointer = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        del arrays
        if not self.pointer:
            raise EngineError(f"llama.cpp cannot load {path}: {native_log.why('no reason given')}")
        self.buffers = native_log.take_buffers()
        self.n_layer = int(llama_cpp.llama_model_n_layer(self.pointer))
        self.n_embd = int(llama_cpp.llama_model_n_embd(self.pointer))
        self.n_embd_out = int(llama_cpp.llama_model_n_embd_out(self.pointer))
        self.n_ctx_train = int(llama_cpp.llama_model_n_ctx_train(self.pointer))
        self.vocab = llama_cpp.llama_model_get_vocab(self.pointer)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.architecture = self.text_of("general.architecture") or ""
        self.is_recurrent = bool(
            llama_cpp.llama_model_is_recurrent(self.pointer) or llama_cpp.llama_model_is_hybrid(self.pointer)
        )
        self.layer_first = int(self.text_of("shardnet.layer_first") or 0)
        self.uses_mrope = int(llama_cpp.llama_model_rope_type(self.pointer)) in MROPE_TYPES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def text_of(self, key: str) -> str | None:
        """Returns: the metadata value of `key` as text, None if there is none."""
        buffer = ctypes.create_string_buffer(MAX_VALUE_BYTES)
        length = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), buffer, MAX_VALUE_BYTES)
        return None if length < 0 else buffer.value.decode(errors="replace")

    def close(self) -> None:
        """Free the weights; contexts of this model must be closed first."""
        if self.pointer:
            llama_cpp.llama_model_free(self.pointer)
            self.pointer = None


class LlamaContext:
    """KV cache and compute buffers for one model.

    Args:
        n_ctx: tokens of context of each sequence.
        n_seq: sequences (slots) with KV at the same time; each has cells of its own, so that one never changes another's numbers.
        n_batch: most rows in one batch; also the physical batch, so that a prompt chunk is computed in one piece.
        capture: take out the raw output of the last layer instead of logits.
        probe: collect the outputs of some layers on the way to the logits.
        threads: CPU threads; 0: all that this process can keep busy; a choice: as many as it says before each batch.
        watch: told of each layer that was computed; a probe brings its own.
        unified: one KV cache for all sequences, so that a batch of sequences of different lengths is computed in one piece.
        flash: leave flash attention to llama.cpp on the processor, too: for measuring beside it alone.

    Raises: EngineError if llama.cpp cannot create the context.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_seq: int = 1,
        n_batch: int = 512,
        threads: int | ThreadChoice = 0,
        capture: bool = False,
        probe: LayerProbe | None = None,
        watch: LayerWatch | None = None,
        unified: bool = False,
        native_capture: bool = True,
        flash: bool = False,
    ) -> None:
        self.model = model
        self.n_ctx, self.n_seq, self.n_batch = n_ctx, n_seq, n_batch
        self.choice = (
            threads if isinstance(threads, ThreadChoice) else ThreadChoice(threads or usable_threads(), learns=False)
        )
        self.spared_threads = 0
        self._n_threads = self.choice.most
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx * n_seq
        params.n_seq_max = n_seq
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = self._n_threads
        if not model.uses_gpu and not flash:
            # On the CPU its result depends on the number of threads, and it adds up in float16 (docs/decisions/0002-flash-attention.md).
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = unified
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE  # embeddings row by row, whatever the model's own is
        params.swa_full = True  # a windowed cache could not be rewound further than its window
        self._captures = capture
        self._is_watched = watch is not None
        # Only a later shard's file tells that it is fed hidden states; the whole model and its first shard read tokens as they are.
        takes_input = model.architecture in INPUT_NODES and model.layer_first > 0
        self._capture: OutputCapture | None = None
        if capture or takes_input:
            self._capture = OutputCapture(
                model.n_layer - 1 if capture else None,
                model.n_embd,
                n_batch,
                native=native_capture,
                architecture=model.architecture,
                takes_input=takes_input,
                watch=watch,
            )
        elif probe is None and watch is not None:
            probe = LayerProbe(set(), model.architecture, watch)
        hook = self._capture or probe
        if hook is not None:
            params.cb_eval = hook.callback
            params.cb_eval_user_data = hook.user_data
        self._hook = hook
        native_log.forget()
        self.pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise EngineError(
                f"llama.cpp cannot make a context for {model.path}: {native_log.why('not enough memory?')}"
            )
        self.buffers = native_log.take_buffers()
        self._memory = llama_cpp.llama_get_memory(self.pointer)
        self._batch = Batch(n_batch)
        self._row_type = ctypes.c_float * model.n_vocab

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free KV cache and buffers."""
        if self.pointer:
            llama_cpp.llama_free(self.pointer)
            self.pointer = None

    def use_threads(self, threads: int) -> None:
        """Compute the next batch with so many CPU threads, less `spared_threads`. It changes no number."""
        threads = max(1, threads - self.spared_threads)
        if threads != self._n_threads:
            self._n_threads = threads
            llama_cpp.llama_set_n_threads(self.pointer, threads, threads)

    def decode(self, rows: Rows) -> None:
        """Run one batch. Afterwards `hidden` or `logits` hold its results until the next call.

        Raises: ContextExceeded if a row lies beyond the context; EngineError if llama.cpp refuses the batch.
        """
        count = len(rows.positions)
        position = self._check(rows, count)
        hidden = rows.hidden
        if hidden is not None and self.model.architecture in FED_AS_TOKENS:
            rows = replace(rows, tokens=np.zeros(count, dtype=np.int32), hidden=None)
        batch = self._batch.fill(
            rows.positions,
            rows.slots,
            None if self._captures else rows.outputs,
            tokens=rows.tokens,
            hidden=rows.hidden,
            sections=MROPE_SECTIONS if self.model.uses_mrope and rows.hidden is not None else 1,
        )
        if self._capture is not None:
            self._capture.reset()
            if self._capture.takes_input and hidden is not None:
                self._capture.replace_input(hidden)
        # Beside a GPU llama.cpp computes attention on the processor, too, in a way whose numbers depend on the threads (decision 0002).
        choice = self.choice
        self.use_threads(choice.most if self.model.uses_gpu else choice.threads(id(self), count, position))
        began_s = time.perf_counter()
        code = llama_cpp.llama_decode(self.pointer, batch)
        choice.note(time.perf_counter() - began_s)
        if code == 1:
            raise ContextExceeded(f"no room in the KV cache for {count} more tokens", n_ctx=self.n_ctx)
        if code != 0:
            raise EngineError(
                f"llama.cpp refused a batch of {count} rows (code {code}): {native_log.why('no reason given')}"
            )
        if self._capture is not None:
            self._capture.check_input()

    def decode_for_embeddings(self, rows: Rows) -> None:
        """As `decode`, of a context that gives logits; afterwards `embedding` holds the results of all rows, and `logits` perhaps nothing.

        Raises: EngineError too if llama.cpp's embeddings are not this model's hidden states.
        """
        if self.model.n_embd_out != self.model.n_embd:
            raise EngineError(
                f"{self.model.architecture} has embeddings of another width than its hidden states: they are not given here"
            )
        llama_cpp.llama_set_embeddings(self.pointer, True)
        try:
            self.decode(rows)
        finally:
            llama_cpp.llama_set_embeddings(self.pointer, False)

    def embedding(self, row: int) -> NDArray[np.float32]:
        """Returns: float32 (n_embd,): a row's hidden state behind the final norm, of the last batch, if it was run for embeddings; a view."""
        pointer = llama_cpp.llama_get_embeddings_ith(self.pointer, row)
        if not pointer:
            raise EngineError(f"row {row} of the last batch has no embedding")
        numbers = (ctypes.c_float * self.model.n_embd).from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(memoryview(numbers), dtype=np.float32)

    def _check(self, rows: Rows, count: int) -> int:
        """Returns: the rows' mean position. Raises: EngineError, ContextExceeded: llama.cpp could not run them."""
        if not 0 < count <= self.n_batch:
            raise EngineError(f"a batch of {count} rows, where 1 to {self.n_batch} fit")
        positions = rows.positions.tolist()  # of one row, as in decoding, a list is quicker than numpy's reductions
        last = max(positions)
        if last >= self.n_ctx:
            raise ContextExceeded(f"position {last} is beyond the context of {self.n_ctx} tokens", n_ctx=self.n_ctx)
        slots = rows.slots.tolist()
        if min(slots) < 0 or max(slots) >= self.n_seq:
            raise EngineError(f"sequence slots {slots} are not all within 0..{self.n_seq - 1}")
        if rows.tokens is not None:
            tokens = rows.tokens.tolist()
            if min(tokens) < 0 or max(tokens) >= self.model.n_vocab:
                raise EngineError(f"a token id is outside the vocabulary of {self.model.n_vocab}")
        if rows.hidden is not None and rows.hidden.shape != (count, self.model.n_embd):
            raise EngineError(
                f"hidden states of shape {rows.hidden.shape}, where ({count}, {self.model.n_embd}) is needed"
            )
        if (rows.tokens is None) == (rows.hidden is None):
            raise EngineError("a batch takes either tokens or hidden states")
        return int(sum(positions)) // count

    @property
    def captures(self) -> bool:
        """True for a context that gives hidden states, not logits."""
        return self._captures

    @property
    def takes_plain_rows(self) -> bool:
        """True if a batch of this context is nothing but tokens or hidden states at positions, and nobody watches its layers."""
        takes_input = self._capture is not None and self._capture.takes_input
        is_special = takes_input or self.model.uses_mrope or self.model.architecture in FED_AS_TOKENS
        return not (is_special or self._is_watched)

    @property
    def capture_address(self) -> int | None:
        """Returns: where the `struct capture_state` is; None for a context that gives logits."""
        return self._capture.address if self._captures and self._capture is not None else None

    def hidden_view(self) -> memoryview:
        """Returns: the bytes of the last batch's first row, a view that the next batch overwrites."""
        if self._capture is None or not self._captures:
            raise EngineError("this context was made for logits")
        return self._capture.first_row()

    def hidden(self, count: int) -> NDArray[np.float32]:
        """Returns: float32 (count, n_embd): the raw output of the last layer for the last batch's rows; a view."""
        if self._capture is None or not self._captures:
            raise EngineError("this context was made for logits")
        return self._capture.rows(count)

    def logits(self, row: int) -> NDArray[np.float32]:
        """Returns: float32 (n_vocab,): the logits of a row of the last batch that was marked as output; a view."""
        pointer = llama_cpp.llama_get_logits_ith(self.pointer, row)
        if not pointer:
            raise EngineError(f"row {row} of the last batch has no logits")
        numbers = self._row_type.from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(memoryview(numbers), dtype=np.float32)

    def save_sequence(self, slot: int) -> bytes:
        """Returns: a slot's KV and recurrent state, for `restore_sequence` of a context like this one. Raises: EngineError."""
        size = int(llama_cpp.llama_state_seq_get_size(self.pointer, slot))
        buffer = (ctypes.c_uint8 * size)()
        if int(llama_cpp.llama_state_seq_get_data(self.pointer, buffer, size, slot)) != size:
            raise EngineError(
                f"llama.cpp cannot save a sequence of {self.model.path}: {native_log.why('no reason given')}"
            )
        return bytes(buffer)

    def restore_sequence(self, slot: int, state: bytes) -> None:
        """Fill an empty slot with what `save_sequence` gave. The same numbers follow as if it had never been away. Raises: EngineError."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if int(llama_cpp.llama_state_seq_set_data(self.pointer, buffer, len(state), slot)) != len(state):
            raise EngineError(
                f"llama.cpp cannot restore a sequence of {self.model.path}: {native_log.why('no reason given')}"
            )

    def copy(self, source: int, slot: int, count: int) -> None:
        """Have a slot begin with the first `count` tokens of another one, and hold nothing else. The numbers are those of the source, to the bit.

        llama.cpp copies a slot's whole KV at the next batch, since each has cells of its own. Not for recurrent state, which is that of the last
        token.
        """
        llama_cpp.llama_memory_seq_cp(self._memory, source, slot, -1, -1)
        self.truncate(slot, count)

    def truncate(self, slot: int, position: int) -> bool:
        """Drop a slot's KV at and after `position`.

        Returns: False if the model cannot go back to there (recurrent state); then drop the whole slot and replay.
        """
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, slot, position, -1))
