"""The token of a step, from the logits of its last row. Lives in the engine process only."""

from __future__ import annotations

import numpy as np

from shardnet.errors import ShardnetError
from shardnet.inference.engine.steps import parse_sampling
from shardnet.inference.llama.grammar import Grammars
from shardnet.inference.llama.model import LlamaContext
from shardnet.inference.llama.sampling import lookback, pick, top_logprobs
from shardnet.inference.worker.sequences import SequenceState
from shardnet.inference.worker.tasks import Outcome, Task


def sample(
    task: Task, state: SequenceState, context: LlamaContext, last_row: int, grammars: Grammars, outcome: Outcome
) -> None:
    """Sample the token behind a step.

    Args:
        context: holds the logits of the batch.
        last_row: the step's last one in the batch.
        outcome: gets the token, or what went wrong.
    """
    step = task.step
    sampling = parse_sampling(step.sampling)
    position = step.position + step.n_tokens
    back = lookback(sampling, position)
    try:
        grammar = None
        if sampling.grammar is not None:
            model = context.model
            grammar = grammars.of(step.sequence_id, model.vocab, model.n_vocab, sampling.grammar)
            grammar.follow(state.history[sampling.prompt_tokens : position])
        logits = context.logits(last_row)
        outcome.token = pick(
            logits,
            sampling,
            position=position,
            recent=np.asarray(state.history[position - back : position], dtype=np.int32),
            grammar=grammar,
        )
        if sampling.top_logprobs is not None:
            outcome.logprobs = (top_logprobs(logits, outcome.token, sampling.top_logprobs),)
        if step.return_logits:
            outcome.logits = logits[np.newaxis].copy()
    except ShardnetError as error:
        outcome.error = error
