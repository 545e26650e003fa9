"""Which model a path means, whatever it is kept as: a GGUF, its parts, or a Hugging Face checkpoint.

Chooses between the wings that read them. Refuses to know what is done with the model.
"""

from __future__ import annotations

from pathlib import Path

from shardnet.inference.checkpoints.files import is_checkpoint
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.splitting.plan import refuse_shards


def open_model(source: Path) -> GgufHeader:
    """Find and check a model; its weights are read later, when they are asked for.

    Returns: the model's header. That of a checkpoint `is_made`: its tensors' bytes are made when they are asked for.

    Raises: UsageError if there is no model at `source`, or several, or shards; GgufError, CheckpointError if it is damaged, or of a kind that is
        not taken.
    """
    refuse_shards(source)
    if not is_checkpoint(source):
        return read_model(source)
    # Imported here: a GGUF needs none of it, and the `gguf` package takes its time.
    from shardnet.inference.checkpoints.sharded import ShardedSafeTensors
    from shardnet.inference.conversion.convert import convert

    return convert(ShardedSafeTensors(source, cache_bytes=0))
