"""config.json as keys of a GGUF: sizes, heads, norms, experts, windows, scales.

Refuses to know tensors and vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import EVERY_LAYER, CheckpointConfig, Rope
from shardnet.inference.checkpoints.json_files import is_count
from shardnet.inference.conversion.families import GEMMA3_BY_WIDTH, SMOLLM3_ROPE_STEP, ConvertedFamily
from shardnet.inference.conversion.rope import DEFAULT_THETA, Tables, put_rope
from shardnet.inference.gguf.header import MAX_LAYERS

MAX_COUNT = (1 << 31) - 1  # ggml's numbers of rows and columns
MAX_HEAD = 1 << 16
MAX_NUMBER = 3e38  # GGUF keeps these in F32
FULL, WINDOWED = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the tensors must fit: rows of q are `n_heads * head_dim`, of k and v `n_kv_heads * head_dim`.

    Attributes:
        n_ff: width of the feed-forward part, of one expert where there are experts.
        n_experts: 0 for a dense model.
        q_norm_scale: what the norm of q is multiplied by, since llama.cpp scales attention by the head's width and nothing else.
    """

    n_layers: int
    n_embd: int
    n_vocab: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    n_ctx_train: int
    q_norm_scale: float = 1.0


def read_sizes(config: CheckpointConfig, family: ConvertedFamily) -> Sizes:
    """Returns: a model's sizes, with the family's defaults. Raises: CheckpointError if one is missing, or none."""
    read = _Reader(config, family)
    n_embd, n_heads = read.count("hidden_size"), read.count("num_attention_heads")
    n_layers = read.count("num_hidden_layers", most=MAX_LAYERS)
    head_dim = read.count("head_dim", n_embd // n_heads, most=MAX_HEAD)
    if not family.has_free_heads and head_dim * n_heads != n_embd:
        raise CheckpointError(
            f"{config.path} says {n_heads} heads of {head_dim} for a width of {n_embd}, and llama.cpp computes {family.architecture} models "
            "only where heads are as wide together"
        )
    if head_dim % 2:
        raise read.refuse("head_dim", head_dim, "odd: no half of a head can be turned against the other")
    return Sizes(
        n_layers=n_layers,
        n_embd=n_embd,
        n_vocab=read.count("vocab_size"),
        n_ff=read.count("moe_intermediate_size" if family.has_experts else "intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=read.count("num_key_value_heads", n_heads),
        head_dim=head_dim,
        n_experts=(config.n_experts or 128) if family.has_experts else 0,
        n_ctx_train=read.count("max_position_embeddings"),
        q_norm_scale=_q_norm_scale(read, n_layers, head_dim, n_embd // n_heads),
    )


def put_keys(writer: Any, config: CheckpointConfig, family: ConvertedFamily, sizes: Sizes) -> Tables:
    """Add the keys of a model to a `GGUFWriter`.

    Returns: tensors that its rope needs. Raises: CheckpointError if config.json asks for what llama.cpp does not compute.
    """
    read = _Reader(config, family)
    writer.add_context_length(_context_length(read, config, family, sizes))
    writer.add_block_count(sizes.n_layers)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_feed_forward_length(read.count("intermediate_size"))
    writer.add_vocab_size(sizes.n_vocab)
    writer.add_head_count(sizes.n_heads)
    writer.add_head_count_kv(sizes.n_kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_layer_norm_rms_eps(read.number("rms_norm_eps"))
    for key, (method, default) in family.scales.items():
        getattr(writer, method)(read.number(key, default))
    if family.has_experts:
        writer.add_expert_count(sizes.n_experts)
        writer.add_expert_used_count(read.count("num_experts_per_tok"))
        writer.add_expert_feed_forward_length(sizes.n_ff)
    if family.has_windows:
        _put_windows(writer, read, config, sizes)
        if read.value("final_logit_softcapping") is not None:
            writer.add_final_logit_softcapping(read.number("final_logit_softcapping"))
    if family.architecture == "smollm3":
        _check_unturned_layers(read, sizes)
    return _put_rope(writer, read, config, family, sizes)


class _Reader:
    """Keys of config.json with a family's defaults. A key that is there and null is not left out: it takes the caller's default."""

    def __init__(self, config: CheckpointConfig, family: ConvertedFamily) -> None:
        self.path, self._text, self._defaults = config.path, config.text, family.defaults

    def value(self, key: str, default: Any = None) -> Any:
        value = self._text[key] if key in self._text else self._defaults.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None, most: int = MAX_COUNT) -> int:
        """Raises: CheckpointError if it is missing, or no whole number from 1 to `most`."""
        value = self.value(key, default)
        if not is_count(value) or not 0 < value <= most:
            raise self.refuse(key, value, f"no whole number from 1 to {most}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Raises: CheckpointError if it is missing, or no finite number from 0 on."""
        value = self.value(key, default)
        if type(value) not in (int, float) or not 0 <= value <= MAX_NUMBER:
            raise self.refuse(key, value, "no number from 0 on")
        return float(value)

    def refuse(self, key: str, value: Any, reason: str) -> CheckpointError:
        said = "does not say" if value is None else f"says {key} = {value!r}, which is"
        return CheckpointError(f"{self.path} {said} {key if value is None else reason}")


def _context_length(read: _Reader, config: CheckpointConfig, family: ConvertedFamily, sizes: Sizes) -> int:
    """Returns: the longest text for which llama.cpp and transformers compute the same."""
    if family.has_windows or "sliding_window" not in family.defaults or read.value("sliding_window") is None:
        return sizes.n_ctx_train
    kinds = config.text.get("layer_types") or WINDOWED
    if not read.value("use_sliding_window", True) or (isinstance(kinds, list) and WINDOWED not in kinds):
        return sizes.n_ctx_train
    return min(sizes.n_ctx_train, read.count("sliding_window"))


def _put_windows(writer: Any, read: _Reader, config: CheckpointConfig, sizes: Sizes) -> None:
    """Which layers look back how far, layer by layer, and by what base they turn."""
    kinds = config.text.get("layer_types")
    if kinds is None:
        step = read.count("sliding_window_pattern")
        kinds = [WINDOWED if (layer + 1) % step else FULL for layer in range(sizes.n_layers)]
    if (
        not isinstance(kinds, list)
        or len(kinds) != sizes.n_layers
        or any(kind not in (FULL, WINDOWED) for kind in kinds)
    ):
        raise CheckpointError(
            f"{config.path} says layer_types that are not {sizes.n_layers} times {FULL!r} or {WINDOWED!r}"
        )
    if WINDOWED not in kinds:
        return
    writer.add_sliding_window(read.count("sliding_window"))
    writer.add_sliding_window_pattern([kind == WINDOWED for kind in kinds])
    rope = config.rope.get(WINDOWED) or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"{config.path} asks for the rope type {rope['rope_type']!r} in windows, which llama.cpp does not compute"
        )
    theta = rope.get("rope_theta")
    writer.add_rope_freq_base_swa(float(theta) if isinstance(theta, int | float) else DEFAULT_THETA)


def _put_rope(writer: Any, read: _Reader, config: CheckpointConfig, family: ConvertedFamily, sizes: Sizes) -> Tables:
    rope = _rope_of(config)
    kind = rope["rope_type"]
    if family.architecture == "phi3" and kind == "yarn" and "long_factor" in rope:
        kind = "longrope"  # what early ones called it
    if kind not in family.rope_types:
        raise CheckpointError(
            f"{config.path} asks for the rope type {kind!r}, which llama.cpp does not compute for {family.architecture} models"
        )
    share = rope.get("partial_rotary_factor", read.value("partial_rotary_factor"))
    share = 1.0 if share is None else share
    if type(share) not in (int, float) or not 0 < share <= 1 or (share != 1 and not family.has_partial_rope):
        raise CheckpointError(
            f"{config.path} says partial_rotary_factor = {share!r}, which llama.cpp does not compute for {family.architecture} models"
        )
    original = read.value("original_max_position_embeddings")
    if original is not None:
        rope = rope | {"original_max_position_embeddings": original}  # outside the parameters it counts more
    return put_rope(
        writer,
        rope | {"rope_type": kind},
        n_rot=int(sizes.head_dim * share),
        n_ctx_train=sizes.n_ctx_train,
        theta=read.value("rope_theta", DEFAULT_THETA),
        where=str(config.path),
    )


def _rope_of(config: CheckpointConfig) -> Rope:
    """Returns: the parameters of layers that look back to the beginning."""
    for kind in (FULL, EVERY_LAYER):
        if kind in config.rope:
            return config.rope[kind]
    raise CheckpointError(f"{config.path} has rope parameters, and none for {FULL!r}")


def _q_norm_scale(read: _Reader, n_layers: int, head_dim: int, width_of_head: int) -> float:
    """Gemma 3 says by what attention is scaled; llama.cpp goes by the head. The norm before it can make up for the difference."""
    scalar = read.value("query_pre_attn_scalar")
    if scalar is None:
        return 1.0
    given = read.number("query_pre_attn_scalar")
    if given <= 0:
        raise read.refuse("query_pre_attn_scalar", scalar, "no number above zero")
    scaled_by = width_of_head if n_layers == GEMMA3_BY_WIDTH else head_dim
    return float((scaled_by / given) ** 0.5)


def _check_unturned_layers(read: _Reader, sizes: Sizes) -> None:
    step = read.count("no_rope_layer_interval")
    turned = read.value("no_rope_layers", [int((layer + 1) % step != 0) for layer in range(sizes.n_layers)])
    if turned != [int((layer + 1) % SMOLLM3_ROPE_STEP != 0) for layer in range(sizes.n_layers)]:
        raise CheckpointError(
            f"{read.path} turns other layers than all but every {SMOLLM3_ROPE_STEP}th, which llama.cpp does not compute for smollm3 models"
        )
