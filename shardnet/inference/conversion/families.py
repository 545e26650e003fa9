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
        norms_add_one: transformers multiplies by 1 + weight.
        has_fused_attention: q, k and v are one tensor, gate and up another, for llama.cpp as well.
        is_tied: what a config.json that does not say so means.
        defaults: what a config.json means that leaves a key out.
        fixed: key -> the values that llama.cpp can compute; a config.json without the key has the first.
        windows_cap_context: transformers looks back no further than `sliding_window`, llama.cpp further: up to that length they agree.
    """

    architecture: str
    rope_types: frozenset[str] = SCALED
    has_permuted_rope: bool = False
    norms_add_one: bool = False
    has_fused_attention: bool = False
    is_tied: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    windows_cap_context: bool = True


_LLAMA_FIXED = {"hidden_act": SILU}
_QWEN_FIXED = {"hidden_act": SILU, "attention_bias": (False,)}

FAMILIES: dict[str, ConvertedFamily] = {
    "llama": ConvertedFamily(
        "llama",
        rope_types=WITH_FACTORS,
        has_permuted_rope=True,
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
        fixed=_LLAMA_FIXED,
    ),
    "mistral": ConvertedFamily(
        "llama",
        rope_types=WITH_FACTORS,
        has_permuted_rope=True,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        },
        fixed=_LLAMA_FIXED,
    ),
    "qwen2": ConvertedFamily(
        "qwen2", defaults={"max_position_embeddings": 32768, "rms_norm_eps": 1e-6}, fixed=_LLAMA_FIXED
    ),
    "qwen3": ConvertedFamily(
        "qwen3",
        defaults={"head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6},
        fixed=_QWEN_FIXED,
    ),
}
"""`model_type` of config.json (of its text part, where a model takes pictures too) -> what is done."""


def family_of(config: CheckpointConfig) -> ConvertedFamily:
    """Returns: the family that config.json names.

    Raises: CheckpointError if it is none of those that are taken, or asks for something that llama.cpp computes otherwise.
    """
    name = str(config.text.get("model_type") or config.model_type)
    family = FAMILIES.get(name)
    if family is None:
        raise CheckpointError(
            f"{config.path} names a model of the family {name!r}, which is not converted (converted are {', '.join(sorted(FAMILIES))}): "
            "a GGUF of it can be split"
        )
    for key, allowed in family.fixed.items():
        value = config.text.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{config.path} says {key} = {value!r}, and llama.cpp computes {family.architecture} models with {allowed[0]!r} only"
            )
    return family
