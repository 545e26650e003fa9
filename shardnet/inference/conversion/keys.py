"""config.json as keys of a GGUF: sizes, heads, norms, experts, windows.

Refuses to know tensors and vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import EVERY_LAYER, CheckpointConfig
from shardnet.inference.checkpoints.json_files import is_count
from shardnet.inference.conversion.families import ConvertedFamily
from shardnet.inference.conversion.rope import Tables, put_rope

FULL, WINDOWED = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the tensors must fit: rows of q are `n_heads * head_dim`, of k and v `n_kv_heads * head_dim`."""

    n_layers: int
    n_embd: int
    n_vocab: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    n_ctx_train: int


def read_sizes(config: CheckpointConfig, family: ConvertedFamily) -> Sizes:
    """Returns: a model's sizes, with the family's defaults. Raises: CheckpointError if one is missing, or none."""
    read = _Reader(config, family)
    n_embd, n_heads = read.count("hidden_size"), read.count("num_attention_heads")
    return Sizes(
        n_layers=read.count("num_hidden_layers"),
        n_embd=n_embd,
        n_vocab=read.count("vocab_size"),
        n_ff=read.count("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=read.count("num_key_value_heads", n_heads),
        head_dim=read.count("head_dim", n_embd // n_heads),
        n_experts=config.n_experts or 0,
        n_ctx_train=read.count("max_position_embeddings"),
    )


def put_keys(writer: Any, config: CheckpointConfig, family: ConvertedFamily, sizes: Sizes) -> Tables:
    """Add the keys of a model to a `GGUFWriter`.

    Returns: tensors that its rope needs. Raises: CheckpointError if config.json asks for what llama.cpp does not compute.
    """
    read = _Reader(config, family)
    writer.add_context_length(_context_length(config, read, family, sizes))
    writer.add_block_count(sizes.n_layers)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_feed_forward_length(sizes.n_ff)
    writer.add_vocab_size(sizes.n_vocab)
    writer.add_head_count(sizes.n_heads)
    writer.add_head_count_kv(sizes.n_kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_layer_norm_rms_eps(read.number("rms_norm_eps"))
    rope = config.rope.get(FULL) or config.rope.get(EVERY_LAYER)
    if rope is None or rope["rope_type"] not in family.rope_types:
        kind = rope["rope_type"] if rope else "none for full attention"
        raise CheckpointError(
            f"{config.path} asks for the rope type {kind!r}, which llama.cpp has not for {family.architecture} models"
        )
    return put_rope(
        writer,
        rope,
        n_rot=sizes.head_dim,
        n_ctx_train=sizes.n_ctx_train,
        n_ctx_original=sizes.n_ctx_train,
        where=str(config.path),
    )


class _Reader:
    """Keys of config.json with a family's defaults."""

    def __init__(self, config: CheckpointConfig, family: ConvertedFamily) -> None:
        self._config, self._defaults = config, family.defaults

    def value(self, key: str, default: Any = None) -> Any:
        value = self._config.text.get(key)
        return self._defaults.get(key, default) if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        """Raises: CheckpointError if it is missing, or no whole number above zero."""
        value = self.value(key, default)
        if not is_count(value) or not value:
            raise self.refuse(key, value, "no whole number above zero")
        return int(value)

    def number(self, key: str) -> float:
        """Raises: CheckpointError if it is missing, or no number."""
        value = self.value(key)
        if type(value) not in (int, float):
            raise self.refuse(key, value, "no number")
        return float(value)

    def refuse(self, key: str, value: Any, reason: str) -> CheckpointError:
        said = "does not say" if value is None else f"says {key} = {value!r}, which is"
        return CheckpointError(f"{self._config.path} {said} {key if value is None else reason}")


def _context_length(config: CheckpointConfig, read: _Reader, family: ConvertedFamily, sizes: Sizes) -> int:
    """Returns: the longest text for which llama.cpp and transformers compute the same."""
    window = read.value("sliding_window")
    is_used = read.value("use_sliding_window", True) and WINDOWED in (config.text.get("layer_types") or [WINDOWED])
    if not family.windows_cap_context or window is None or not is_used:
        return sizes.n_ctx_train
    return min(sizes.n_ctx_train, read.count("sliding_window"))
