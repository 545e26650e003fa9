"""What a proof reads and about how long it takes, and which kind of proof that calls for. Pure arithmetic.

Knows sizes and speeds. Refuses to know where they come from (`weights`, `verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardnet.inference.engine.memory import MASK_BYTES, TOKEN_BYTES, ShardCost, need_of
from shardnet.inference.llama.residency import bytes_read, bytes_to_keep
from shardnet.inference.proof.steps import N_BATCH, Method, built_in_lengths, long_prompt, rows_of_steps
from shardnet.log import human_bytes
from shardnet.messages import ShardOptions

MOST_READINGS = 20
"""A full proof that would read the model's file more often gives way to a quick one, where nobody asked for it by name."""
FULL_DECODE_TOKENS = 32
QUICK_READINGS = 8
"""What a quick proof aims to stay within."""
QUICK_DECODE_TOKENS = 4
"""Greedy tokens after each prompt of a quick proof, fewer where each costs a reading and `QUICK_READINGS` would not do."""

MOST_BATCH = 8192
"""Rows of a batch, of which `ShardOptions` knows no more."""

PROCESS_BYTES = 160 << 20
"""The verifying process without a model: Python, numpy, llama.cpp. Measured: 105 MB."""
HEADROOM = 0.05
"""Of the free memory, left alone."""
SCORE_BYTES = 4
"""Attention scores are float32, one for each row, cell and head."""
OPERATIONS_PER_S = 30e9
"""Of one thread, on quantised weights as they lie in the file. A guess: one core of an EPYC gave 31e9 on Q4_K_M, reading included."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Sizes of one model file, or of one model in several.

    Attributes:
        stages: bytes of each layer, then of what stands behind them; what a pass reads.
        total: bytes of all weights.
        active: number of weights that one row is multiplied with.
        n_head: attention heads of a layer.
    """

    stages: tuple[int, ...]
    total: int
    active: int
    n_head: int = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to prove on.

    Attributes:
        free_bytes: of main memory, as this process may use it.
        bytes_per_s: of the disk.
        threads: to compute with.
        limit: what bounds the memory, in words; "" if that is the machine itself.
    """

    free_bytes: int
    bytes_per_s: float
    threads: int
    limit: str = ""


@dataclass(frozen=True, slots=True)
class ProofPlan:
    """How a proof will run, and what it will cost.

    Attributes:
        decode_tokens: greedy tokens after each prompt.
        weights_budget: bytes of weights that may be in memory; None if the unsplit model fits.
        read_bytes: what the disk will be asked for, which gives `bytes_per_s`.
        rows_per_step: rows whose arithmetic takes as long as reading the weights for one step.
        model_bytes: the unsplit model's weights.
        full_readings: how many times a full proof would read the model.
        longest_prompt: tokens that the built-in prompts are cut to.
        was_asked_for: somebody named the method.
        limit: what bounds the memory, in words. Not for the certificate, which others read.
    """

    method: Method
    decode_tokens: int
    weights_budget: int | None
    read_bytes: int
    bytes_per_s: float
    seconds: float
    rows_per_step: int
    model_bytes: int
    full_readings: float
    longest_prompt: int
    was_asked_for: bool
    limit: str

    @property
    def readings(self) -> float:
        """Returns: how many times as much as the model has is read."""
        return self.read_bytes / max(self.model_bytes, 1)

    @property
    def why(self) -> str:
        """Returns: what a certificate says about fewer decode steps and other kernels; '' where a full proof ran as it always does."""
        words = []
        if self.method == "quick":
            reason = (
                "asked for"
                if self.was_asked_for
                else f"a full proof would read the model {self.full_readings:.0f} times"
            )
            words.append(f"quick ({reason}): all prompts in one batch, {self.decode_tokens} tokens after each")
        if self.weights_budget is not None:
            words.append(
                f"weights of {human_bytes(self.model_bytes)} in {human_bytes(self.weights_budget)} of memory, not repacked"
            )
        return "; ".join(words)

    def __str__(self) -> str:
        """Returns: one sentence for people, said before it begins."""
        rate = f" at {human_bytes(self.bytes_per_s)}/s" if self.bytes_per_s else ""
        words = [
            f"{self.method} proof, {human_bytes(self.read_bytes)} to read ({self.readings:.1f} times the model){rate}, "
            f"about {_in_time(self.seconds)}",
            self.why,
            f"this process may have {self.limit}" if self.limit and self.weights_budget is not None else "",
        ]
        return "; ".join(word for word in words if word)


def plan_proof(
    source: Weights,
    shards: Sequence[Weights],
    cost: ShardCost,
    machine: Machine,
    lengths: Sequence[int] | None = None,
    *,
    is_windowed: bool = False,
    method: Method | None = None,
    decode_tokens: int | None = None,
) -> ProofPlan:
    """Choose how to prove a split.

    Args:
        source: of the unsplit model, `cost` what running it takes.
        lengths: tokens of each prompt; None: about those of the built-in ones.
        is_windowed: some layers attend to the last so many tokens only.
        method: as somebody asked for; None: chosen.
        decode_tokens: greedy tokens after each prompt, as somebody asked for; None: chosen.
    """
    room = int(machine.free_bytes * (1 - HEADROOM)) - PROCESS_BYTES - TOKEN_BYTES * cost.n_vocab
    was_asked_for = method is not None
    full_tokens = FULL_DECODE_TOKENS if decode_tokens is None else decode_tokens

    def planned(kind: Method, tokens: int) -> ProofPlan:
        longest = long_prompt(kind, is_windowed=is_windowed)
        prompts = built_in_lengths(longest) if lengths is None else lengths
        budget = _budget(source, room - working_bytes(cost, source.n_head, kind, prompts))
        rows = rows_of_steps(kind, prompts, tokens)
        is_twice = kind == "full" and budget is None and len(shards) > 1
        ops = 2 / (OPERATIONS_PER_S * max(machine.threads, 1))
        read, seconds = 0, 0.0
        for one in (source, *shards):
            loading = one.total / machine.bytes_per_s if machine.bytes_per_s else 0.0
            passing = _passing(one, budget)
            each = passing / machine.bytes_per_s if machine.bytes_per_s else 0.0
            read += one.total + _all_passes(one, budget, len(rows))
            times = sum(max(each, ops * one.active * count) for count in rows)
            seconds += loading + times * (2 if is_twice and one is source else 1)
        return ProofPlan(
            method=kind,
            decode_tokens=tokens,
            weights_budget=budget,
            read_bytes=read,
            bytes_per_s=machine.bytes_per_s,
            seconds=seconds,
            rows_per_step=_rows_per_step(source, budget, machine, ops),
            model_bytes=source.total,
            full_readings=0.0,
            longest_prompt=longest,
            was_asked_for=was_asked_for,
            limit=machine.limit,
        )

    full = planned("full", full_tokens)
    if method is None:
        method = "quick" if full.readings > MOST_READINGS else "full"
    if method == "full":
        return replace(full, full_readings=full.readings)
    choices = [decode_tokens] if decode_tokens is not None else range(QUICK_DECODE_TOKENS, 0, -1)
    plans = [planned("quick", tokens) for tokens in choices]
    chosen = next((plan for plan in plans if plan.readings <= QUICK_READINGS), plans[-1])
    return replace(chosen, full_readings=full.readings)


def working_bytes(cost: ShardCost, n_head: int, method: Method, lengths: Sequence[int]) -> int:
    """Returns: bytes that running the unsplit model takes besides its weights: KV cache, and what a batch computes with."""
    longest, total = max(lengths, default=1), sum(lengths)
    rows, cells = (total, total) if method == "quick" else (min(N_BATCH, longest), longest)
    cells += FULL_DECODE_TOKENS * len(lengths)
    options = ShardOptions(n_ctx=max(8, cells), n_seq=1, n_batch=max(1, min(rows, MOST_BATCH)))
    # Scores are counted below, for all rows; of the logits only those of a few rows are ever written.
    need = need_of(replace(cost, n_vocab=0, n_head=0), options)
    states = cost.state_bytes_per_sequence * len(lengths)
    scores = rows * cells * (SCORE_BYTES * n_head + MASK_BYTES)
    return need.kv + need.compute + states + scores + 8 * cost.n_vocab * len(lengths)


def _budget(source: Weights, room: int) -> int | None:
    """Returns: None if the unsplit model fits, else the bytes of weights that may be in memory."""
    return None if source.total <= room else max(room, 0)


def _passing(one: Weights, budget: int | None) -> int:
    """Returns: bytes that each pass over a file reads."""
    if budget is None:
        return 0
    return sum(one.stages) - sum(bytes_to_keep(one.stages, budget))


def _all_passes(one: Weights, budget: int | None, passes: int) -> int:
    """Returns: bytes that so many passes read after loading has read the file once: nothing where it fits."""
    if budget is None or sum(one.stages) <= budget:
        return 0
    return bytes_read(one.stages, bytes_to_keep(one.stages, budget), passes)


def _rows_per_step(source: Weights, budget: int | None, machine: Machine, ops: float) -> int:
    from_memory = 16  # a decode step computes as long as it reads memory
    if budget is None or not machine.bytes_per_s or not source.active:
        return from_memory
    return max(from_memory, round(_passing(source, budget) / machine.bytes_per_s / (ops * source.active)))


def _in_time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
