"""Which model a path means, whatever it is kept as: a GGUF, its parts, or a Hugging Face checkpoint.

Chooses between the wings that read them, and the one that quantises. Refuses to know what is done with the model.
"""

from __future__ import annotations

from pathlib import Path

from shardnet.errors import UsageError
from shardnet.inference.checkpoints.files import is_checkpoint
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.splitting.plan import refuse_shards


def open_model(
    source: Path, *, quantize: str | None = None, imatrix: Path | None = None, allow_requantize: bool = False
) -> GgufHeader:
    """Find and check a model; its weights are read later, when they are asked for.

    Returns: the model's header. That of a checkpoint `is_made`: its tensors' bytes are made when they are asked for.

    Args:
        quantize: the type that its weights get on the way: q8_0, q4_k_m, ...
        imatrix: an importance matrix for that.
        allow_requantize: though they are quantised already.

    Raises: UsageError if there is no model at `source`, or several, or shards, or it cannot be quantised like this; GgufError, CheckpointError if it
        is damaged, or of a kind that is not taken.
    """
    if quantize is None:
        if imatrix is not None or allow_requantize:
            raise UsageError("--imatrix and --allow-requantize say how to quantise: say to which type with --quantize")
        return _opened(source)
    from shardnet.inference.quantising.importance import read_importance
    from shardnet.inference.quantising.mixtures import checked_kind
    from shardnet.inference.quantising.model import quantise

    kind = checked_kind(quantize)
    importance = None if imatrix is None else read_importance(imatrix)
    return quantise(_opened(source), kind, importance, allow_requantize=allow_requantize)


def _opened(source: Path) -> GgufHeader:
    refuse_shards(source)
    if not is_checkpoint(source):
        return read_model(source)
    # Imported here: a GGUF needs none of it, and the `gguf` package takes its time.
    from shardnet.inference.checkpoints.sharded import ShardedSafeTensors
    from shardnet.inference.conversion.convert import convert

    return convert(ShardedSafeTensors(source, cache_bytes=0))
