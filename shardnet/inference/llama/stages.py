"""Where a model's weights lie in its files, stage by stage, as `residency` and `read_ahead` need it."""

from __future__ import annotations

from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import LOOKED_UP, layer_of
from shardnet.inference.llama.residency import Extent

Stage = tuple[Extent, ...]


def stages_of(header: GgufHeader, *, has_head: bool) -> tuple[Stage, ...]:
    """Returns: the extents of each layer, with `has_head` then those of what stands behind them; without tables of which a token reads a row."""
    layers: list[list[Extent]] = [[] for _ in range(header.n_layers)]
    head: list[Extent] = []
    is_tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    for tensor in header.tensors:
        layer = layer_of(tensor.name)
        if layer is None and tensor.name in LOOKED_UP and not (is_tied and tensor.name == "token_embd.weight"):
            continue
        (head if layer is None else layers[layer]).append(Extent(tensor.path, tensor.offset, tensor.nbytes))
    return tuple(tuple(stage) for stage in ([*layers, head] if has_head else layers) if stage)
