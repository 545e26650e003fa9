"""Which model a path or an address means, whatever it is kept as: a GGUF here or on a web server, its parts, or a Hugging Face checkpoint.

Chooses between the wings that read them, and the one that quantises. Refuses to know what is done with the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shardnet.errors import UsageError
from shardnet.inference.checkpoints.files import is_checkpoint
from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.remote.address import is_url
from shardnet.inference.splitting.plan import refuse_shards

if TYPE_CHECKING:
    from shardnet.inference.remote.opening import Traffic


def open_model(
    source: str | Path, *, quantize: str | None = None, imatrix: Path | None = None, allow_requantize: bool = False
) -> GgufHeader:
    """Find and check a model; its weights are read later, when they are asked for.

    Args:
        source: a path, or the http(s) address of a GGUF.
        quantize: the type that its weights get on the way: q8_0, q4_k_m, ...; None: they stay as they are.
        imatrix: an importance matrix for that.
        allow_requantize: though they are quantised already.

    Returns: the model's header. That of a checkpoint `is_made`: its tensors' bytes are made when they are asked for; those of a GGUF at an address
        are fetched then.

    Raises: as `open_url` for an address; UsageError if there is no model at `source`, or several, or shards, or it cannot be quantised like this;
        GgufError, CheckpointError if it is damaged, or of a kind that is not taken.
    """
    if quantize is None:
        if imatrix is not None or allow_requantize:
            raise UsageError("--imatrix and --allow-requantize say how to quantise: say to which type with --quantize")
        return _found(source)
    from shardnet.inference.quantising.importance import read_importance
    from shardnet.inference.quantising.mixtures import checked_kind
    from shardnet.inference.quantising.model import quantise

    kind = checked_kind(quantize)
    importance = None if imatrix is None else read_importance(imatrix)
    header = _found(source)
    try:
        return quantise(header, kind, importance, allow_requantize=allow_requantize)
    except BaseException:
        _close(header)
        raise


def _found(source: str | Path) -> GgufHeader:
    if isinstance(source, str) and is_url(source):
        # Imported here as well: httpx takes its time.
        from shardnet.inference.remote.opening import open_url

        return open_url(source)
    refuse_no_model(source)
    source = Path(source)
    refuse_shards(source)
    if not is_checkpoint(source):
        return read_model(source)
    # Imported here: a GGUF needs none of it, and the `gguf` package takes its time.
    from shardnet.inference.checkpoints.sharded import ShardedSafeTensors
    from shardnet.inference.conversion.convert import convert

    return convert(ShardedSafeTensors(source, cache_bytes=0))


def refuse_no_model(source: str | Path) -> None:
    """Raises: UsageError if `source` is no path that anybody could mean: nothing, or an address that is not fetched from."""
    if source == "":
        raise UsageError("no model is named: the path or the address is empty")
    if isinstance(source, str) and (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source)):
        raise UsageError(f"{source} is no address that is fetched from: {scheme[0]} is neither http:// nor https://")


@contextmanager
def opened(
    source: str | Path, *, quantize: str | None = None, imatrix: Path | None = None, allow_requantize: bool = False
) -> Iterator[GgufHeader]:
    """`open_model`, for as long as its weights are read. Raises: as `open_model`."""
    header = open_model(source, quantize=quantize, imatrix=imatrix, allow_requantize=allow_requantize)
    try:
        yield header
    finally:
        _close(header)


def _close(header: GgufHeader) -> None:
    if header.origins:
        from shardnet.inference.remote.opening import close_url

        close_url(header)


def traffic_of(header: GgufHeader) -> Traffic | None:
    """Returns: what was asked of web servers for a model so far; None for one that is here."""
    if not header.origins:
        return None
    from shardnet.inference.remote.opening import traffic_of as traffic

    return traffic(header)
