"""llama.cpp opens every shard that a split writes, and the chain of them gives the unsplit model's logits bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardnet.inference.llama.model import LlamaModel
from shardnet.inference.splitting import plan as plan_module
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model
from tests.support.random_models import tiny_llama
from tests.support.shard_chains import Logits, chained_logits, unsplit_logits

TOKENS = list(range(40, 60))


def chained(model: Path, cache: Path, n_shards: int) -> Logits:
    folder, manifest = split_model(plan_split(model, CutRequest(n_shards=n_shards)), cache)
    with LlamaModel(folder / "tokenizer.gguf", vocab_only=True) as vocabulary:
        assert vocabulary.n_vocab == manifest.content.n_vocab
    return chained_logits(folder, TOKENS)


@pytest.mark.parametrize("quantisation", ["F16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_chains_of_one_two_and_three_shards_are_exact(tmp_path: Path, quantisation: str, tied: bool) -> None:
    model = tiny_llama(tmp_path / "m.gguf", n_embd=256, tied=tied, quantisation=quantisation)
    expected = unsplit_logits(model, TOKENS)
    for n_shards in (1, 2, 3):
        assert np.array_equal(chained(model, tmp_path / "cache", n_shards), expected)


@pytest.mark.parametrize("n_embd", [64, 128, 256])
def test_zeros_in_place_of_a_head_or_an_embedding_load_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_embd: int
) -> None:
    """As for the architectures that demand both tensors in every file."""
    monkeypatch.setattr(plan_module, "HEAD_FROM_EMBEDDING", frozenset())
    model = tiny_llama(tmp_path / "m.gguf", n_embd=n_embd, tied=False)
    assert np.array_equal(chained(model, tmp_path / "cache", 3), unsplit_logits(model, TOKENS))
