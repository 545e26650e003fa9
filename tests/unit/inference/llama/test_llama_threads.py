"""A stage may run on any machine: what it computes must not depend on how many cores that has."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.llama.thread_choice import ThreadChoice
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


@pytest.mark.parametrize(("spared", "computing"), [(0, [4, 2]), (1, [3, 1])])
def test_a_context_computes_each_batch_with_as_many_threads_as_are_chosen(
    tmp_path: Path, spared: int, computing: list[int]
) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_llama(path)
    choice = ThreadChoice(4, learns=False)
    with LlamaModel(path) as model, LlamaContext(model, n_ctx=32, threads=choice) as context:
        context.spared_threads = spared
        found = []
        for position, most in enumerate((4, 2)):
            choice.most = most
            context.decode(single_sequence_rows(position, 1, tokens=[3], outputs=[0]))
            found.append(llama_cpp.llama_n_threads(context.pointer))
    assert found == computing


def test_beside_a_gpu_nothing_is_learnt(tmp_path: Path) -> None:
    """There the processor's part of attention has numbers that depend on the threads."""
    choice = ThreadChoice(3)
    with LlamaModel(tiny_llama(tmp_path / "tiny.gguf")) as model, LlamaContext(model, n_ctx=256, threads=choice) as one:
        model.uses_gpu = True
        for position in range(200):
            one.decode(single_sequence_rows(position, 1, tokens=[5], outputs=[0]))
            assert llama_cpp.llama_n_threads(one.pointer) == 3
    assert choice.now == {}


def test_logits_do_not_change_while_the_number_of_threads_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_llama(path)
    found, used = [], set()
    with LlamaModel(path) as model:
        for threads in (1, ThreadChoice(3)):
            with LlamaContext(model, n_ctx=256, threads=threads) as context:
                rows = []
                for position in range(200):
                    context.decode(single_sequence_rows(position, 1, tokens=[position % 50], outputs=[0]))
                    rows.append(context.logits(0).copy())
                    used.add((context.choice.most, llama_cpp.llama_n_threads(context.pointer)))
                found.append(np.array(rows))
    assert np.array_equal(found[0], found[1])
    assert len(used) > 2, "nothing was tried"
