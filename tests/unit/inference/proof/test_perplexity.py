"""Perplexity is what the probabilities of a text's tokens say."""

from __future__ import annotations

from math import exp
from pathlib import Path

import numpy as np
import pytest

from shardnet.errors import EngineError, UsageError
from shardnet.inference.llama.model import LlamaModel
from shardnet.inference.proof.perplexity import Perplexity, check_text, measure_perplexity
from tests.support.random_models import tiny_llama
from tests.support.shard_chains import token_ids, unsplit_logits

SENTENCE = "The lighthouse keeper counted the waves every evening. "


def test_the_second_half_of_each_chunk_is_scored(tmp_path: Path) -> None:
    model, text = tiny_llama(tmp_path / "m.gguf", n_layers=1, n_ctx=64), tmp_path / "text.txt"
    text.write_text(SENTENCE * 3)
    shares: list[float] = []
    found = measure_perplexity(model, text, shares.append)
    with LlamaModel(model, vocab_only=True) as opened:
        tokens = token_ids(opened, SENTENCE * 3)
    losses = []
    for start in range(0, len(tokens) - 63, 64):
        chunk = tokens[start : start + 64]
        logits = unsplit_logits(model, chunk).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        losses += [-np.log(odds[row, chunk[row + 1]]) for row in range(32, 63)]
    assert found.n_tokens == len(losses) > 31
    assert found.value == pytest.approx(exp(np.mean(losses)), rel=1e-5)
    assert shares[-1] == 1


def test_a_sure_model_has_perplexity_one_and_no_doubt() -> None:
    assert Perplexity.of(np.zeros(9)) == Perplexity(1.0, 0.0, 9)
    doubtful = Perplexity.of(np.log([2.0, 8.0]))
    assert doubtful.value == pytest.approx(4)
    assert doubtful.deviation == pytest.approx(4 * np.log(2))


def test_what_cannot_be_measured_is_one_clear_sentence(tmp_path: Path) -> None:
    model, text = tiny_llama(tmp_path / "m.gguf", n_layers=1, n_ctx=64), tmp_path / "text.txt"
    text.write_text("short")
    with pytest.raises(UsageError, match=r"has \d tokens, and perplexity takes at least 64"):
        measure_perplexity(model, text)
    with pytest.raises(EngineError):
        measure_perplexity(tmp_path / "nothing.gguf", text)
    with pytest.raises(UsageError, match="cannot read the text"):
        check_text(tmp_path / "nothing.txt")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        check_text(model)
    with pytest.raises(UsageError, match="has 5 bytes, too few to measure perplexity on"):
        check_text(text)
