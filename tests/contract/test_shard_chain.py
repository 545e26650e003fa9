"""llama.cpp opens every shard that a split writes, and the chain of them gives the unsplit model's logits bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.splitting import plan as plan_module
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from tests.support.random_models import tiny_llama

TOKENS = list(range(40, 60))


def logits_of(context: LlamaContext) -> NDArray[np.float32]:
    return np.array([context.logits(row).copy() for row in range(len(TOKENS))])


def unsplit(model: Path) -> NDArray[np.float32]:
    with LlamaModel(model) as whole, LlamaContext(whole, n_ctx=64, threads=1) as context:
        context.decode(single_sequence_rows(0, len(TOKENS), tokens=TOKENS, outputs=range(len(TOKENS))))
        return logits_of(context)


def chained(model: Path, cache: Path, n_shards: int) -> NDArray[np.float32]:
    folder, manifest = split_model(plan_split(model, CutRequest(n_shards=n_shards)), cache)
    with LlamaModel(folder / "tokenizer.gguf", vocab_only=True) as vocabulary:
        assert vocabulary.n_vocab == manifest.content.n_vocab
    hidden: NDArray[np.float32] | None = None
    for shard in manifest.content.shards:
        is_last = shard.shard_id == n_shards - 1
        rows = single_sequence_rows(
            0, len(TOKENS), tokens=TOKENS if hidden is None else None, hidden=hidden, outputs=range(len(TOKENS))
        )
        with (
            LlamaModel(folder / shard.file) as part,
            LlamaContext(part, n_ctx=64, threads=1, capture=not is_last) as context,
        ):
            context.decode(rows)
            if is_last:
                return logits_of(context)
            hidden = context.hidden(len(TOKENS)).copy()
    raise AssertionError("no last shard")


@pytest.mark.parametrize("quantisation", ["F16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_chains_of_one_two_and_three_shards_are_exact(tmp_path: Path, quantisation: str, tied: bool) -> None:
    model = tiny_llama(tmp_path / "m.gguf", n_embd=256, tied=tied, quantisation=quantisation)
    expected = unsplit(model)
    for n_shards in (1, 2, 3):
        assert np.array_equal(chained(model, tmp_path / "cache", n_shards), expected)


@pytest.mark.parametrize("n_embd", [64, 128, 256])
def test_zeros_in_place_of_a_head_or_an_embedding_load_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_embd: int
) -> None:
    """As for the architectures that demand both tensors in every file."""
    monkeypatch.setattr(plan_module, "HEAD_FROM_EMBEDDING", frozenset())
    model = tiny_llama(tmp_path / "m.gguf", n_embd=n_embd, tied=False)
    assert np.array_equal(chained(model, tmp_path / "cache", 3), unsplit(model))
