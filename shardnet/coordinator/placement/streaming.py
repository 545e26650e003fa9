"""What a shard costs that a node has not enough memory for, and reads from its file for each token. Pure.

Sizes are those of the manifest, which knows whole shards: their layers count as equally large. A node's engine, which knows each tensor, settles in
the end what stays, and refuses what it cannot do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shardnet.inference.engine.memory import SPARE_DIVISOR
from shardnet.log import human_bytes
from shardnet.manifest import Manifest
from shardnet.messages import StreamedWeights

GUESSED_READ_BYTES_PER_S = 5e8
"""Of a disk that was not measured yet: a plain SSD."""


@dataclass(frozen=True, slots=True)
class Streaming:
    """What a node can do with shards that do not fit.

    Attributes:
        bytes_per_s: of reading weights, as measured; 0: not known.
        yielding_bytes: memory that its streamed shards have beyond the least they need, and would share.
        held: shard -> its weights as they are now, of this model's streamed shards.
    """

    bytes_per_s: float = 0.0
    yielding_bytes: int = 0
    held: Mapping[int, StreamedWeights] = field(default_factory=dict)

    def read_s(self, nbytes: int) -> float:
        """Returns: seconds that so many bytes take."""
        return nbytes / (self.bytes_per_s or GUESSED_READ_BYTES_PER_S)

    def held_read_s(self, shards: range) -> float:
        """Returns: seconds for each step in which loaded shards read what does not stay."""
        return sum(self.read_s(weights.read_bytes) for shard, weights in self.held.items() if shard in shards)


def computing_s(step_s: float, weights: StreamedWeights | None) -> float:
    """Returns: of a step's usual time through a shard what is left without reading; a tenth of it at least, since both go on at once."""
    if weights is None or not weights.bytes_per_s:
        return step_s
    return max(step_s / 10, step_s - weights.read_bytes / weights.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Share:
    """How shards that come to one node would lie there.

    Attributes:
        weights_bytes: of all of them.
        read_bytes: of these, what each step reads from files; 0 where all stay.
        n_layers: their layers.
    """

    weights_bytes: int
    read_bytes: int
    n_layers: int

    def __str__(self) -> str:
        """Returns: `streamed, 11 of 28 layers stay, 585.0 MB are read for each token`; "" where all of it stays."""
        if not self.read_bytes:
            return ""
        return stays_sentence(self.weights_bytes, self.weights_bytes - self.read_bytes, self.read_bytes, self.n_layers)


def stays_sentence(weights_bytes: int, stays_bytes: int, read_bytes: int, n_layers: int) -> str:
    """Returns: how much of a streamed shard stays, in layers: a part of each one that is as much as so many whole ones."""
    layers = n_layers * stays_bytes // max(1, weights_bytes)
    return f"streamed, {layers} of {n_layers} layers stay, {human_bytes(read_bytes)} are read for each token"


def share_of(manifest: Manifest, shards: Sequence[int], needs: Sequence[int], room: int) -> Share | None:
    """Work out what stays of shards in less memory than they need.

    Args:
        shards: those that come to the node.
        needs: bytes that each shard of the model takes when all of it stays.
        room: bytes for them.

    Returns: None if they cannot be streamed either, since KV cache, buffers and the two layers that pass through do not fit.
    """
    content = manifest.content.shards
    weights = sum(content[shard].bytes for shard in shards)
    layers = sum(len(content[shard].layers) for shard in shards)
    needed = sum(needs[shard] for shard in shards)
    if needed <= room:
        return Share(weights, 0, layers)
    budget = int(room * (1 - 1 / SPARE_DIVISOR)) - (needed - weights)
    if budget < sum(least_weights(manifest, shard) for shard in shards):
        return None
    # Of n layers each a part passes, and there is room for two such parts: what is missing, over the n - 2 others.
    passing = (weights - budget) / max(1, layers - 2)
    return Share(weights, min(weights, int(passing * layers)), layers)


def least_weights(manifest: Manifest, shard_id: int) -> int:
    """Returns: weights that have to be in memory at a time: two layers."""
    shard = manifest.content.shards[shard_id]
    return min(shard.bytes, 2 * -(-shard.bytes // max(1, len(shard.layers))))


def least_need(manifest: Manifest, shard_id: int, needs: Sequence[int]) -> int:
    """Returns: free memory that a streamed shard needs at least; `needs` as in `share_of`."""
    beside = needs[shard_id] - manifest.content.shards[shard_id].bytes
    return int((beside + least_weights(manifest, shard_id)) / (1 - 1 / SPARE_DIVISOR)) + 1
