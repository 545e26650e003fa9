"""Which model a path or an address means, whatever it is kept as: a GGUF here or on a web server, its parts, or a Hugging Face checkpoint.

Chooses between the wings that read them. Refuses to know what is done with the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet.inference.checkpoints.files import is_checkpoint
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.remote.address import is_url
from shardnet.inference.splitting.plan import refuse_shards

if TYPE_CHECKING:
    from shardnet.inference.remote.opening import Traffic


def open_model(source: str | Path) -> GgufHeader:
    """Find and check a model; its weights are read later, when they are asked for.

    Args:
        source: a path, or the http(s) address of a GGUF.

    Returns: the model's header. That of a checkpoint `is_made`: its tensors' bytes are made when they are asked for; those of a GGUF at an address
        are fetched then.

    Raises: as `open_url` for an address; UsageError if there is no model at `source`, or several, or shards; GgufError, CheckpointError if it is
        damaged, or of a kind that is not taken.
    """
    if isinstance(source, str) and is_url(source):
        # Imported here as well: httpx takes its time.
        from shardnet.inference.remote.opening import open_url

        return open_url(source)
    source = Path(source)
    refuse_shards(source)
    if not is_checkpoint(source):
        return read_model(source)
    # Imported here: a GGUF needs none of it, and the `gguf` package takes its time.
    from shardnet.inference.checkpoints.sharded import ShardedSafeTensors
    from shardnet.inference.conversion.convert import convert

    return convert(ShardedSafeTensors(source, cache_bytes=0))


@contextmanager
def opened(source: str | Path) -> Iterator[GgufHeader]:
    """`open_model`, for as long as its weights are read. Raises: as `open_model`."""
    header = open_model(source)
    try:
        yield header
    finally:
        if header.origins:
            from shardnet.inference.remote.opening import close_url

            close_url(header)


def traffic_of(header: GgufHeader) -> Traffic | None:
    """Returns: what was asked of web servers for a model so far; None for one that is here."""
    if not header.origins:
        return None
    from shardnet.inference.remote.opening import traffic_of as traffic

    return traffic(header)
