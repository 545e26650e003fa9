"""Logits of a model, unsplit or as a chain of its shards, in this process: one batch, every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.splitting.manifest_file import load_manifest

Logits = NDArray[np.float32]


@contextmanager
def keys_and_values_in_f32() -> Iterator[None]:
    """Contexts made meanwhile keep KV in F32, as transformers does, and not in llama.cpp's F16."""
    usual = llama_cpp.llama_context_default_params

    def wide() -> Any:
        params = usual()
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        return params

    with patch.object(llama_cpp, "llama_context_default_params", wide):
        yield


def unsplit_logits(model: Path, tokens: Sequence[int]) -> Logits:
    """Returns: float32 (n_tokens, n_vocab) of a GGUF."""
    with LlamaModel(model) as whole, LlamaContext(whole, n_ctx=_n_ctx(tokens), threads=1) as context:
        context.decode(single_sequence_rows(0, len(tokens), tokens=tokens, outputs=range(len(tokens))))
        return _logits_of(context, len(tokens))


def chained_logits(folder: Path, tokens: Sequence[int]) -> Logits:
    """Returns: float32 (n_tokens, n_vocab) of the shards in the folder of a split model, one after the other."""
    hidden: NDArray[np.float32] | None = None
    shards = load_manifest(folder).content.shards
    for shard in shards:
        is_last = shard is shards[-1]
        rows = single_sequence_rows(
            0, len(tokens), tokens=tokens if hidden is None else None, hidden=hidden, outputs=range(len(tokens))
        )
        with (
            LlamaModel(folder / shard.file) as part,
            LlamaContext(part, n_ctx=_n_ctx(tokens), threads=1, capture=not is_last) as context,
        ):
            context.decode(rows)
            if is_last:
                return _logits_of(context, len(tokens))
            hidden = context.hidden(len(tokens)).copy()
    raise AssertionError("no last shard")


def token_ids(model: LlamaModel, text: str) -> list[int]:
    """Returns: what llama.cpp makes of a text, with what it puts around it; special tokens in it are found."""
    data = text.encode()
    buffer = (llama_cpp.llama_token * (len(data) + 16))()
    count = llama_cpp.llama_tokenize(model.vocab, data, len(data), buffer, len(buffer), True, True)
    assert count >= 0
    return list(buffer[:count])


def _n_ctx(tokens: Sequence[int]) -> int:
    return max(64, len(tokens))  # llama.cpp makes 256 of less


def _logits_of(context: LlamaContext, n_rows: int) -> Logits:
    return np.array([context.logits(row).copy() for row in range(n_rows)])
