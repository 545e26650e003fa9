"""Embeddings and log-probabilities of a whole model by stock llama.cpp, in this process: what shards are held against."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.inference.llama.batch import Batch, single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel

POOLING = {
    "mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama_cpp.LLAMA_POOLING_TYPE_CLS,
    "last": llama_cpp.LLAMA_POOLING_TYPE_LAST,
}


def plain_embedding(whole: Path, tokens: Sequence[int], pooling: str, *, threads: int = 1) -> NDArray[np.float32]:
    """Returns: float32 (n_embd,): what llama.cpp itself pools, in one batch, not normalised."""
    with LlamaModel(whole) as model:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(tokens))
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.embeddings = True
        params.pooling_type = POOLING[pooling]
        context = llama_cpp.llama_init_from_model(model.pointer, params)
        assert context
        try:
            rows = single_sequence_rows(0, len(tokens), tokens=tokens)
            batch = Batch(len(tokens))
            filled = batch.fill(rows.positions, rows.slots, None, tokens=rows.tokens, hidden=None, sections=1)
            assert llama_cpp.llama_decode(context, filled) == 0
            pointer = llama_cpp.llama_get_embeddings_seq(context, 0)
            numbers = (ctypes.c_float * model.n_embd).from_address(ctypes.addressof(pointer.contents))
            return np.frombuffer(memoryview(numbers), dtype=np.float32).copy()
        finally:
            llama_cpp.llama_free(context)


def plain_row_logits(whole: Path, tokens: Sequence[int], *, threads: int = 1) -> NDArray[np.float32]:
    """Returns: float32 (n, n_vocab): the logits of every row, computed in one batch."""
    count = len(tokens)
    with LlamaModel(whole) as model, LlamaContext(model, n_ctx=max(64, count), n_batch=count, threads=threads) as one:
        one.decode(single_sequence_rows(0, count, tokens=tokens, outputs=range(count)))
        return np.stack([one.logits(row).copy() for row in range(count)])
