"""The families of checkpoints that are taken: llama.cpp's name for each, what its weights need, and what llama.cpp takes for granted.

Data only. A family stands here once `tests/bench/checkpoint_parity.py` has shown llama.cpp's logits on our shards beside those of transformers
(docs/checkpoints.md).

Source: transformers 5.24.0, models/*/configuration_*.py and modeling_*.py; llama.cpp, src/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import CheckpointConfig

SILU, GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)
SCALED = frozenset({"default", "dynamic", "linear", "yarn"})
"""Rope types that need no tensor. `dynamic` is the default up to the length that the model was trained for, which is as far as we go."""
WITH_FACTORS = SCALED | {"llama3", "longrope"}
"""Where llama.cpp reads factors of each frequency as well."""


@dataclass(frozen=True, slots=True)
class ConvertedFamily:
    """What makes a family's checkpoint a GGUF.

    Attributes:
        architecture: llama.cpp's name.
        rope_types: those that llama.cpp computes for it.
        has_permuted_rope: llama.cpp turns neighbouring values, transformers values half a head apart: rows of q and k change places.
        has_partial_rope: the first values of a head alone may be turned.
        has_free_heads: heads need not be as wide as the hidden state together.
        has_windows: llama.cpp looks back no further than `sliding_window` in the layers that `layer_types` names. For other families it looks back
            to the beginning: as far as the window reaches, both compute the same, and further the model is not said to reach.
        norms_add_one: transformers multiplies by 1 + weight.
        has_experts: its feed-forward part is many, of which a router chooses.
        has_fused_parts: q, k and v are one tensor, gate and up another, for transformers as for llama.cpp.
        is_tied: what a config.json that does not say so means.
        defaults: what a config.json means that leaves a key out.
        fixed: key -> the values that llama.cpp can compute; a key that is neither there nor in `defaults` has the first.
        scales: key -> (method of `GGUFWriter`, what a config.json means that leaves it out).
    """

    architecture: str
    rope_types: frozenset[str] = SCALED
    has_permuted_rope: bool = False
    has_partial_rope: bool = False
    has_free_heads: bool = True
    has_windows: bool = False
    norms_add_one: bool = False
    has_experts: bool = False
    has_fused_parts: bool = False
    is_tied: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    scales: Mapping[str, tuple[str, float]] = field(default_factory=dict)


_NO_BIAS = {"attention_bias": (False,)}
_NO_WINDOWS = {"use_sliding_window": False}
_NO_BIASES = _NO_BIAS | {"mlp_bias": (False,)}
_EPS = {"rms_norm_eps": 1e-6}

FAMILIES: dict[str, ConvertedFamily] = {
    "llama": ConvertedFamily(
        "llama",
        rope_types=WITH_FACTORS,
        has_permuted_rope=True,
        defaults=_EPS | {"max_position_embeddings": 2048},
        fixed={"hidden_act": SILU},
    ),
    "mistral": ConvertedFamily(
        "llama",
        rope_types=WITH_FACTORS,
        has_permuted_rope=True,
        defaults=_EPS | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
        fixed={"hidden_act": SILU},
    ),
    "qwen2": ConvertedFamily(
        "qwen2",
        has_free_heads=False,
        defaults=_EPS | _NO_WINDOWS | {"max_position_embeddings": 32768, "sliding_window": 4096},
        fixed={"hidden_act": SILU},
    ),
    "qwen3": ConvertedFamily(
        "qwen3",
        defaults=_EPS | _NO_WINDOWS | {"head_dim": 128, "max_position_embeddings": 32768, "sliding_window": 4096},
        fixed={"hidden_act": SILU} | _NO_BIAS,
    ),
    "qwen3_moe": ConvertedFamily(
        "qwen3moe",
        has_experts=True,
        defaults=_EPS
        | _NO_WINDOWS
        | {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
        fixed={
            "hidden_act": SILU,
            "norm_topk_prob": (True,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
        }
        | _NO_BIAS,
    ),
    "gemma3_text": ConvertedFamily(
        "gemma3",
        rope_types=frozenset({"default", "linear"}),
        has_windows=True,
        norms_add_one=True,
        is_tied=True,
        defaults=_EPS
        | {
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
        },
        fixed={
            "hidden_activation": GELU,
            "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, None),
        }
        | _NO_BIAS,
    ),
    "phi3": ConvertedFamily(
        "phi3",
        rope_types=frozenset({"default", "longrope"}),
        has_partial_rope=True,
        has_free_heads=False,
        has_fused_parts=True,
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": None,
        },
        fixed={"hidden_act": SILU},
    ),
    "smollm3": ConvertedFamily(
        "smollm3",
        has_permuted_rope=True,
        is_tied=True,
        defaults=_EPS
        | _NO_WINDOWS
        | {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "rope_theta": 2e6,
            "no_rope_layer_interval": 4,
        },
        fixed={"hidden_act": SILU} | _NO_BIASES,
    ),
    "granite": ConvertedFamily(
        "granite",
        rope_types=WITH_FACTORS,
        has_permuted_rope=True,
        defaults=_EPS | {"max_position_embeddings": 2048},
        fixed={"hidden_act": SILU},
        scales={
            "embedding_multiplier": ("add_embedding_scale", 1.0),
            "residual_multiplier": ("add_residual_scale", 1.0),
            "attention_multiplier": ("add_attention_scale", 1.0),
            "logits_scaling": ("add_logit_scale", 1.0),
        },
    ),
}
"""`model_type` of config.json (of its text part, where a model takes pictures too) -> what is done."""

SMOLLM3_ROPE_STEP = 4
"""llama.cpp turns all layers of SmolLM3 but every fourth, whatever a file says."""
GEMMA3_BY_WIDTH = 62
"""Layers of the one Gemma 3 for which llama.cpp scales attention by the width over the heads, and not by the head's."""


def family_of(config: CheckpointConfig) -> ConvertedFamily:
    """Returns: the family that config.json names.

    Raises: CheckpointError if it is none of those that are taken, or asks for something that llama.cpp does not compute for it.
    """
    name = str(config.text.get("model_type") or config.model_type)
    family = FAMILIES.get(name)
    if family is None:
        raise CheckpointError(
            f"{config.path} names a model of the family {name!r}, which is not converted (converted are {', '.join(sorted(FAMILIES))}): "
            "a GGUF of it can be split"
        )
    for key, allowed in family.fixed.items():
        value = config.text.get(key, family.defaults.get(key, allowed[0]))
        if value not in allowed:
            raise CheckpointError(
                f"{config.path} says {key} = {value!r}, and llama.cpp computes {family.architecture} models with {allowed[0]!r} only"
            )
    return family
