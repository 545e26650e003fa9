"""The short way of a row through chains that begin, pass on and end a model."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.worker.rows import Lane
from shardnet.inference.worker.sequences import SequenceState
from shardnet.messages import Sampling
from tests.support.engine_world import PROMPT, SplitModel, split
from tests.support.random_models import tiny_llama

TOKEN = 7
N_EMBD = 64


@pytest.fixture(scope="module")
def quarters(tmp_path_factory: pytest.TempPathFactory) -> SplitModel:
    folder = tmp_path_factory.mktemp("rows")
    return split(tiny_llama(folder / "tiny.gguf", n_layers=4, n_embd=N_EMBD), 4, folder / "cache")


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 2), (0, 3), (1, 3), (0, 4), (2, 4)])
def test_every_chain_takes_the_short_way_and_gives_the_long_ones_numbers(
    quarters: SplitModel, first: int, end: int
) -> None:
    with ExitStack() as stack:
        contexts = []
        for shard in range(first, end):
            model = stack.enter_context(LlamaModel(quarters.shards[shard]))
            is_last = shard == quarters.n - 1
            contexts.append(
                stack.enter_context(LlamaContext(model, n_ctx=64, n_batch=32, threads=1, capture=not is_last))
            )
        rows = np.random.default_rng(3).standard_normal((len(PROMPT) + 1, N_EMBD), dtype=np.float32)
        passed = None if first == 0 else rows

        def long_way(position: int, tokens: list[int]) -> NDArray[np.float32]:
            hidden = None if passed is None else passed[position : position + len(tokens)]
            for context in contexts:
                count = len(tokens)
                given = {"tokens": tokens} if hidden is None else {"hidden": hidden}
                context.decode(single_sequence_rows(position, count, outputs=[count - 1], **given))
                hidden = context.hidden(count).copy() if context.captures else context.logits(count - 1)[None].copy()
            assert hidden is not None
            return hidden

        prompt = list(PROMPT)
        long_way(0, prompt)
        expected = long_way(len(prompt), [TOKEN])
        for context in contexts:
            context.truncate(0, len(prompt))
        state = SequenceState(0, dict.fromkeys(range(first, end), len(prompt)))
        state.history.extend(prompt)
        assert Lane.fits(contexts, Sampling())
        lane = Lane(contexts, range(first, end), state, Sampling())
        address = 0 if passed is None else passed[len(prompt) :].ctypes.data
        token = lane.run(len(prompt), TOKEN, address)
        if end == quarters.n:
            assert token == int(expected.argmax())
        else:
            assert token == 0
            assert lane.hidden is not None
            assert np.array_equal(np.frombuffer(lane.hidden, dtype=np.float32), expected[0])
        assert state.lengths == dict.fromkeys(range(first, end), len(prompt) + 1)


def test_a_token_beyond_the_vocabulary_goes_the_way_that_refuses_it(quarters: SplitModel) -> None:
    with (
        LlamaModel(quarters.shards[0]) as model,
        LlamaContext(model, n_ctx=64, threads=1, capture=True) as context,
    ):
        lane = Lane([context], range(1), SequenceState(0, {0: 0}), Sampling())
        for token in (-1, model.n_vocab):
            assert lane.run(0, token, 0) is None
