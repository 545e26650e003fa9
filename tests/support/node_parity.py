"""Every logit and every token of a pipeline of real nodes, beside unsplit llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardnet.bench.driver import DrivenRun, Driver
from shardnet.bench.plain import PlainLlama
from shardnet.inference.llama.sampling import pick
from shardnet.manifest import Manifest
from shardnet.messages import Sampling, ShardOptions


@dataclass(frozen=True)
class ParityRow:
    """One sequence compared."""

    shards: int
    nodes: int
    seed: int | None
    """None: greedy."""
    tokens: int
    tokens_equal: bool
    max_abs_logit_diff: float

    @property
    def is_exact(self) -> bool:
        return self.tokens_equal and self.max_abs_logit_diff == 0


def expected_run(plain: PlainLlama, prompt: Sequence[int], n_tokens: int, sampling: Sampling) -> DrivenRun:
    """Returns: what unsplit llama.cpp gives, its logits sampled by the same rule."""

    def choose(history: list[int], logits: NDArray[np.float32]) -> int:
        return pick(logits, sampling, position=len(history), recent=np.asarray(history, dtype=np.int32))

    run = plain.generate(list(prompt), n_tokens, keep_logits=True, choose=choose if sampling.temperature else None)
    return DrivenRun(tokens=run.tokens, logits=run.logits)


async def compare(
    driver: Driver,
    expected: DrivenRun,
    manifest: Manifest,
    route: Sequence[tuple[str, int, int]],
    prompt: Sequence[int],
    n_tokens: int,
    sampling: Sampling,
    options: ShardOptions,
) -> ParityRow:
    """Returns: the comparison of one sequence over `route` with unsplit llama.cpp's `expected_run` of the same prompt, length and sampling."""
    run = await driver.generate(manifest, route, prompt, n_tokens, options=options, sampling=sampling, keep_logits=True)
    differences = [float(np.abs(a - b).max()) for a, b in zip(expected.logits, run.logits, strict=True)]
    return ParityRow(
        shards=manifest.n_shards,
        nodes=len(route),
        seed=sampling.seed if sampling.temperature else None,
        tokens=n_tokens,
        tokens_equal=run.tokens == expected.tokens,
        max_abs_logit_diff=max(differences),
    )
