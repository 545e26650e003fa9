"""Reading a shard's cost in memory out of its GGUF header."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shardnet.inference.engine.device_map import EXPERTS
from shardnet.inference.engine.memory import ShardCost
from shardnet.inference.gguf.header import GgufHeader, read_gguf_header
from shardnet.inference.gguf.layout import layer_of, layout_of

STATE_ELEMENT_BYTES = 4
HEADS = ("output.weight", "token_embd.weight")
"""A head may be tied to the embedding. llama.cpp reserves room for logits in a first shard too, although they are never computed there."""


def cost_of(path: Path) -> ShardCost:
    """Returns: what the GGUF at `path` takes when it is loaded.

    Raises: GgufError if it is no whole GGUF; UsageError if it cannot be read.
    """
    return cost_of_header(read_gguf_header(path))


def cost_of_header(header: GgufHeader) -> ShardCost:
    """Returns: what the model or shard with this header takes when it is loaded. Raises: GgufError if it holds no layers."""
    layout = layout_of(header)
    return ShardCost(
        layer_bytes=layout.layer_bytes,
        other_bytes=layout.global_bytes,
        kv_bytes_per_token=layout.kv_bytes_per_token,
        n_embd=_largest(header.arch("embedding_length")),
        # Experts run one row after another through buffers of their own width, as many as a row uses.
        n_ff=max(
            _largest(header.arch("feed_forward_length")),
            _largest(header.arch("expert_feed_forward_length")) * max(1, _largest(header.arch("expert_used_count"))),
        ),
        n_vocab=max((tensor.shape[1] for tensor in header.tensors if tensor.name in HEADS), default=0),
        n_head=_largest(header.arch("attention.head_count")),
        is_last=header.get("shardnet.layer_end") == header.get("shardnet.n_layers"),
        state_bytes_per_sequence=_state_bytes(header),
        head_bytes=_head_bytes(header),
        expert_bytes=_expert_bytes(header),
    )


def _head_bytes(header: GgufHeader) -> int:
    sizes = {tensor.name: tensor.nbytes for tensor in header.tensors}
    return next((sizes[name] for name in HEADS if name in sizes), 0)


def _expert_bytes(header: GgufHeader) -> tuple[int, ...]:
    """Returns: bytes of the experts of each layer; nothing where no layer has any."""
    found = [0] * header.n_layers
    for tensor in header.tensors:
        layer = layer_of(tensor.name)
        if layer is not None and layer < len(found) and re.search(EXPERTS, tensor.name):
            found[layer] += tensor.nbytes
    return tuple(found) if any(found) else ()


def _largest(value: Any) -> int:
    values = value if isinstance(value, list) else [value]
    return max((v for v in values if isinstance(v, int)), default=0)


def _state_bytes(header: GgufHeader) -> int:
    """Recurrent state of a sequence, as if every layer had one; 0 for families without any."""
    inner, state = _largest(header.arch("ssm.inner_size")), _largest(header.arch("ssm.state_size"))
    return header.n_layers * STATE_ELEMENT_BYTES * inner * (state + _largest(header.arch("ssm.conv_kernel")))
