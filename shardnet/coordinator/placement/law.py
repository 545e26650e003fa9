"""What a step costs: the one law that placement, routing, `shardnet plan` and `shardnet bench` share. Pure.

    time of a stage  = weights it reads / bytes a second x (batch of n rows: how many times as long as one row) + handing over
    time of a hop    = one-way latency + bytes / bandwidth + what a row costs more than a ping
    time per token   = sum of stages + sum of hops, in a ring: the last stage sends the token to the first by itself
    chunk of a prompt = a batch of as many rows at the start of a context x (1 + tokens before it x `attention_growth`)
    many streams     = the slowest stage, or the way round, sets the pace; rows go in batches, or one by one, as `inference.worker.pacing` has them

A pipeline of one stage has no hop.
Everything is measured where it can be: a node tells its own times (`HeldShard.step_us`, `rows_us`, `handover_us`), links are measured
by pings. What is not known yet is guessed, and `shardnet plan` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from shardnet.inference.worker.pacing import batches, block_sizes, goes_whole
from shardnet.manifest import Manifest

GUESSED_BYTES_PER_S = 8e9
"""Weights that an unmeasured node reads per second: a desktop's memory, one stream."""
GUESSED_HANDOVER_S = 250e-6
"""Taking a row in and handing it on right after llama.cpp streamed its weights through the caches: seen 200 to 400 on virtual machines."""
GUESSED_ROWS_PER_STEP = 4.0
"""Rows of one batch share each weight that is read: an unmeasured CPU computes so many rows in the time of one step, if there are enough."""
ATTENTION_COST = 2.3
"""An operation of attention takes so many times as long as one with a quantised weight: Qwen2.5-Coder-0.5B Q4_K_M on one core of a Zen 4, chunks of
128 without flash attention, 2.2 behind 4,000 tokens and 2.6 behind 16,000."""
TOKEN_BYTES = 100
"""A frame that carries a token alone."""


@dataclass(frozen=True, slots=True)
class LinkTime:
    """One direction between two daemons."""

    one_way_s: float = 100e-6
    bytes_per_s: float = 100e6


Links = Mapping[tuple[str, str], LinkTime]
"""`(from node id, to node id)`; the coordinator is ""."""

RowCosts = tuple[tuple[int, float], ...]
"""`(rows of a batch, how many times as long it takes as one row)`, rows ascending."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How quick one node is.

    Attributes:
        bytes_per_s: weights it reads per second in decode, as measured; None: not known.
        row_costs: as measured; empty: not known.
        handover_s: what each step costs beside computing: to take it in, and to hand it on; None: not known.
        read_s: what each batch waits for weights that are read from their file.
    """

    bytes_per_s: float | None = None
    row_costs: RowCosts = ()
    handover_s: float | None = None
    read_s: float = 0.0

    def step_s(self, nbytes: int, rows: int = 1, growth: float = 0.0) -> float:
        """Returns: seconds of a batch of so many rows through weights of so many bytes, handing over included.

        Args:
            growth: by what share of itself computing takes longer than at the start of a context.
        """
        handover_s = GUESSED_HANDOVER_S if self.handover_s is None else self.handover_s
        compute_s = nbytes / (self.bytes_per_s or GUESSED_BYTES_PER_S) * self.times_longer(rows) * (1 + growth)
        return self.read_s + compute_s + handover_s

    def block_s(self, nbytes: int, rows: int) -> float:
        """Returns: seconds that a stage is busy with so many rows which may go together: as one batch or one by one, whichever takes less."""
        single_s, whole_s = self.step_s(nbytes), self.step_s(nbytes, rows)
        return whole_s if goes_whole(rows, single_s, whole_s) else rows * single_s

    def times_longer(self, rows: int) -> float:
        """Returns: how many times as long a batch of so many rows takes as one row: measured, and straight lines between what was measured."""
        if rows <= 1:
            return 1.0
        if not self.row_costs:
            return max(1.0, rows / GUESSED_ROWS_PER_STEP)
        before = (1, 1.0)
        for point in self.row_costs:
            if rows <= point[0]:
                share = (rows - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1] * rows / before[0]


def pace_in(pace: Pace, *, stages: int) -> Pace:
    """Returns: the pace of a node in a pipeline of so many stages. An engine that has the whole model goes on by itself: nothing is handed over."""
    return replace(pace, handover_s=0.0) if stages == 1 else pace


def step_bytes(manifest: Manifest, first: int, end: int) -> int:
    """Returns: bytes of weights that one decode step reads in the shards `[first, end)`; all of them where the manifest does not tell."""
    shards, files = manifest.content.shards[first:end], manifest.files[first:end]
    return sum(
        shard.bytes if file.step_bytes is None else file.step_bytes for shard, file in zip(shards, files, strict=True)
    )


def attention_growth(manifest: Manifest) -> float:
    """Returns: by what share of itself computing a prompt's row takes longer for each token before it: four operations for each element of a layer's
    width, beside two for each weight that the row uses. 0 where the manifest does not tell how many those are."""
    content = manifest.content
    used = step_bytes(manifest, 0, manifest.n_shards) / sum(shard.bytes for shard in content.shards)
    weights = used * content.n_params - content.n_vocab * content.n_embd  # the head is there for the last row only
    return ATTENTION_COST * 4 * content.n_embd * content.n_layers / (2 * weights) if weights > 0 else 0.0


def hop_s(
    manifest: Manifest, source: str, target: str, links: Links, default: LinkTime, fixed_s: float, rows: int = 1
) -> float:
    """Returns: seconds of one hop with so many rows; from and to the coordinator ("") only tokens travel."""
    link = links.get((source, target)) or default
    nbytes = TOKEN_BYTES + (4 * manifest.content.n_embd * rows if source and target else 0)
    return link.one_way_s + nbytes / link.bytes_per_s + fixed_s


@dataclass(frozen=True, slots=True)
class Law:
    """One pipeline's times: seconds of each stage as a function of rows, and of each hop.

    Attributes:
        paces, nbytes: of each stage, in order.
        between: seconds of the hops from each stage to the next, one row.
        more_row_s: seconds that each further row adds to those hops.
        closing_s: from the last stage back to the first; 0 for one stage.
        enter_s, leave_s: from and to the coordinator.
        growth: `attention_growth`.
    """

    paces: tuple[Pace, ...]
    nbytes: tuple[int, ...]
    between: tuple[float, ...]
    more_row_s: tuple[float, ...]
    closing_s: float
    enter_s: float
    leave_s: float
    growth: float = 0.0

    def stages_s(self, rows: int = 1, before: int = 0) -> tuple[float, ...]:
        """Returns: seconds of a batch of so many rows in each stage.

        Args:
            before: tokens of its sequence, where it is a chunk of a prompt.
        """
        growth = before * self.growth
        return tuple(pace.step_s(nbytes, rows, growth) for pace, nbytes in zip(self.paces, self.nbytes, strict=True))

    def token_s(self, rows: int = 1) -> float:
        """Returns: seconds from one token to the next, of streams that go round together, `rows` of them."""
        return sum(self.stages_s(rows)) + self.hops_s(rows)

    def hops_s(self, rows: int = 1) -> float:
        """Returns: seconds of all hops of a round with so many rows."""
        return sum(self.between) + (rows - 1) * sum(self.more_row_s) + self.closing_s

    def tokens_per_s(self, streams: int) -> float:
        """Returns: tokens per second of so many streams together.

        A round takes as long as the slowest stage needs for all rows, or as the first block of them needs to come round: one row of it, where every
        stage takes them one by one.
        """
        sizes = block_sizes(streams // len(self.paces))
        return max(self._in_batches(streams, batches(streams, len(self.paces), full)) for full in sizes)

    def _in_batches(self, streams: int, blocks: tuple[int, ...]) -> float:
        stages = tuple(zip(self.paces, self.nbytes, strict=True))
        slowest_s = max(sum(pace.block_s(nbytes, rows) for rows in blocks) for pace, nbytes in stages)
        rows = max(blocks)
        block_s = [pace.block_s(nbytes, rows) for pace, nbytes in stages]
        if all(one_s < whole_s for one_s, whole_s in zip(block_s, self.stages_s(rows), strict=True)):
            return streams / max(slowest_s, self.token_s())
        return streams / max(slowest_s, sum(block_s) + self.hops_s(rows))

    def first_token_s(self, prompt_tokens: int, chunk: int) -> float:
        """Returns: seconds until the first token of a prompt in chunks: one goes all the way, the others come behind at the slowest stage's pace."""
        arrived_s = self.enter_s
        stage_free_s, link_free_s = [0.0] * len(self.paces), [0.0] * len(self.between)
        for start in range(0, prompt_tokens, chunk):
            rows = min(chunk, prompt_tokens - start)
            arrived_s = self.enter_s
            for index, seconds in enumerate(self.stages_s(rows, start)):
                stage_free_s[index] = arrived_s = max(arrived_s, stage_free_s[index]) + seconds
                if index < len(self.between):
                    link_free_s[index] = max(arrived_s, link_free_s[index]) + rows * self.more_row_s[index]
                    arrived_s = link_free_s[index] + self.between[index] - self.more_row_s[index]
        return arrived_s + self.leave_s


def law_of(
    manifest: Manifest,
    stages: Sequence[tuple[str, Pace, int, int]],
    links: Links,
    default: LinkTime,
    fixed_s: float,
) -> Law:
    """Returns: the law of one pipeline.

    Args:
        stages: (node id, its pace, first shard, end shard), in order.
        default: of links that were not measured.
        fixed_s: what a hop costs beside latency and bandwidth.
    """
    nodes = [node for node, _, _, _ in stages]

    def hop(source: str, target: str, rows: int = 1) -> float:
        return hop_s(manifest, source, target, links, default, fixed_s, rows)

    closing = 0.0
    if len(nodes) > 1:
        link = links.get((nodes[-1], nodes[0])) or default
        closing = link.one_way_s + TOKEN_BYTES / link.bytes_per_s + fixed_s
    return Law(
        paces=tuple(pace_in(pace, stages=len(nodes)) for _, pace, _, _ in stages),
        nbytes=tuple(step_bytes(manifest, first, end) for _, _, first, end in stages),
        between=tuple(hop(a, b) for a, b in pairwise(nodes)),
        more_row_s=tuple(hop(a, b, 2) - hop(a, b) for a, b in pairwise(nodes)),
        closing_s=closing,
        enter_s=hop("", nodes[0]),
        leave_s=hop(nodes[-1], ""),
        growth=attention_growth(manifest),
    )
