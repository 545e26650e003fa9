"""The tokens of a step, from the logits of its rows. Lives in the engine process only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardnet.errors import ShardnetError
from shardnet.inference.grammar import Grammars
from shardnet.inference.llama import LlamaContext
from shardnet.inference.sampling import lookback, pick, top_logprobs
from shardnet.inference.sequences import SequenceState
from shardnet.inference.steps import parse_sampling
from shardnet.inference.tasks import Outcome, Task


def sample(
    task: Task, state: SequenceState, context: LlamaContext, first_row: int, grammars: Grammars, outcome: Outcome
) -> None:
    """Sample rows from `sample_from` on, going on while the step's own next token agrees: the rule by which drafts are verified.

    Args:
        context: holds the logits of the batch.
        first_row: the step's first one in the batch.
        outcome: gets the tokens, and what went wrong.
    """
    step = task.step
    sampling = parse_sampling(step.sampling)
    kept: list[NDArray[np.float32]] = []
    try:
        grammar = None
        if sampling.grammar is not None:
            model = context.model
            grammar = grammars.of(step.sequence_id, model.vocab, model.n_vocab, sampling.grammar)
        for row in range(step.sample_from or 0, step.n_tokens):
            logits = context.logits(first_row + row)
            position = step.position + row + 1
            if grammar is not None:
                grammar.follow(state.history[sampling.prompt_tokens : position])
            back = lookback(sampling, position)
            token = pick(
                logits,
                sampling,
                position=position,
                recent=np.asarray(state.history[position - back : position], dtype=np.int32),
                grammar=grammar,
            )
            outcome.tokens.append(token)
            if sampling.top_logprobs is not None:
                outcome.logprobs.append(top_logprobs(logits, token, sampling.top_logprobs))
            if step.return_logits:
                kept.append(logits.copy())
            if row + 1 < step.n_tokens and token != task.tokens[row + 1]:
                break
    except ShardnetError as error:
        outcome.error = error
    if kept:
        outcome.logits = np.stack(kept)
