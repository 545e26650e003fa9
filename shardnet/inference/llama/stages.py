"""Where a model's weights lie in its files, stage by stage, as `residency` and `read_ahead` need it."""

from __future__ import annotations

from shardnet.inference.gguf.header import GgufHeader
from shardnet.inference.gguf.layout import LOOKED_UP, layer_of
from shardnet.inference.llama.experts import LayerExperts
from shardnet.inference.llama.residency import Extent

Stage = tuple[Extent, ...]
EXPERT_DIMENSIONS = 3
"""A tensor of experts has one matrix for each."""


def experts_of(header: GgufHeader) -> dict[int, LayerExperts]:
    """Returns: layer -> its experts, of those layers that are mixtures of equal experts."""
    count = header.get(f"{header.architecture}.expert_count")
    found: dict[int, list[Extent]] = {}
    for tensor in header.tensors:
        layer = layer_of(tensor.name)
        if layer is None or not tensor.name.endswith("_exps.weight") or not isinstance(count, int) or count < 2:
            continue
        if len(tensor.shape) == EXPERT_DIMENSIONS and tensor.shape[-1] == count and tensor.nbytes % count == 0:
            found.setdefault(layer, []).append(Extent(tensor.path, tensor.offset, tensor.nbytes))
    return {layer: LayerExperts(tuple(tensors), count) for layer, tensors in found.items()}


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
