"""A stage may run on any machine: what it computes must not depend on how many cores that has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from tests.support.random_models import tiny_llama

CONTEXT = 600  # llama.cpp's flash attention divides a decode step among threads from 512 tokens of KV on


def test_logits_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_llama(path, n_ctx=1024)
    with LlamaModel(path) as model:
        found = []
        for threads in (1, 2, 3):
            with LlamaContext(model, n_ctx=1024, n_batch=CONTEXT, threads=threads) as context:
                tokens = [(7 * index) % model.n_vocab for index in range(CONTEXT)]
                context.decode(single_sequence_rows(0, CONTEXT, tokens=tokens, outputs=[CONTEXT - 1]))
                rows = [context.logits(CONTEXT - 1).copy()]
                for step in range(4):
                    context.decode(single_sequence_rows(CONTEXT + step, 1, tokens=[step + 5], outputs=[0]))
                    rows.append(context.logits(0).copy())
                found.append(np.array(rows))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
