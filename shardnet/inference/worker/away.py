"""What is kept of sequences whose shard is unloaded for a while: their KV, in main memory. Lives in the engine process only.

So a model whose shards do not fit into memory together can be run one shard after the other, and each is read once for each token.
"""

from __future__ import annotations

from shardnet.errors import EngineError
from shardnet.inference.worker.sequences import SequenceTable
from shardnet.inference.worker.shard import Shard
from shardnet.messages import ShardOptions


class Away:
    """The shards of one model that are away. All methods return by how many bytes what is kept grew or shrank."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ShardOptions, dict[str, bytes]]] = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, shard: Shard, sequences: SequenceTable) -> int:
        """Keep the KV of a shard that is about to be closed. Raises: EngineError if llama.cpp cannot save a sequence."""
        shard_id = shard.request.shard_id
        kept = {key: shard.context.save_sequence(state.slot) for key, state in sequences.in_shard(shard_id)}
        self._kept[shard_id] = (shard.request.options, kept)
        return sum(map(len, kept.values()))

    def bring_back(self, shard: Shard, sequences: SequenceTable) -> int:
        """Fill a shard that was loaded again. Sequences that it cannot take are lost, and their next step learns so by SequenceGap."""
        shard_id = shard.request.shard_id
        options, kept = self._kept.pop(shard_id, (shard.request.options, {}))
        for sequence_id, state in sequences.in_shard(shard_id):
            try:
                if options != shard.request.options:
                    raise EngineError("the shard came back with other options")
                shard.context.restore_sequence(state.slot, kept[sequence_id])
            except EngineError:
                shard.context.truncate(state.slot, 0)
                state.lengths[shard_id] = 0
        return -sum(map(len, kept.values()))

    def drop(self, shard_id: int) -> int:
        """Keep nothing of a shard any more."""
        _, kept = self._kept.pop(shard_id, (None, {}))
        return -sum(map(len, kept.values()))

    def forget(self, sequence_id: str) -> int:
        """Keep nothing of a sequence any more."""
        return -sum(len(kept.pop(sequence_id, b"")) for _, kept in self._kept.values())
