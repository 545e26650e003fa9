"""Rotary positions: the keys and tensors by which llama.cpp turns heads as transformers does.

llama.cpp multiplies the length of turned values with YaRN by 1 + 0.1 ln(factor) on its own; what transformers was told beyond that goes into
`rope.scaling.attn_factor`. Refuses to know which family asks.

Source: transformers 5.24.0, modeling_rope_utils.py; llama.cpp, src/llama-context.cpp and ggml's `rope_yarn`.
"""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import Rope

ROPE_FREQS, FACTORS_LONG, FACTORS_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
DEFAULT_THETA = 10000.0

Tables = dict[str, NDArray[np.float32]]


def put_rope(writer: Any, rope: Rope, *, n_rot: int, n_ctx_train: int, theta: float, where: str) -> Tables:
    """Add the keys of a model's rope parameters to a `GGUFWriter`.

    Args:
        rope: `rope_type`, `rope_theta` and what the type needs, as version 5 of transformers writes them.
        n_rot: values of a head that are turned.
        n_ctx_train: `max_position_embeddings`; also the length before it was stretched, if the parameters do not say.
        theta: the base, if the parameters do not say.
        where: what an error names.

    Returns: tensors of no layer: name -> float32 (n_rot / 2,).
    Raises: CheckpointError if a number is missing, or none.
    """
    parameters = _Parameters(rope, where)
    theta = parameters.number("rope_theta", theta)
    writer.add_rope_dimension_count(n_rot)
    writer.add_rope_freq_base(theta)
    original = int(parameters.number("original_max_position_embeddings", n_ctx_train))
    match rope["rope_type"]:
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(parameters.number("factor"))
        case "yarn":
            _put_yarn(writer, parameters, n_ctx_train, original)
        case "longrope":
            return _put_longrope(writer, parameters, n_rot, n_ctx_train, original)
        case "llama3":
            return {ROPE_FREQS: llama3_factors(parameters, theta, n_rot, original)}
    return {}


class _Parameters:
    """Rope parameters whose numbers are numbers."""

    def __init__(self, rope: Rope, where: str) -> None:
        self._rope, self._where = rope, where

    def number(self, key: str, default: float | None = None) -> float:
        """Raises: CheckpointError if there is none, or none above zero."""
        value = self._rope.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(
                f"{self._where} asks for the rope type {self._rope['rope_type']!r} with {key} = {value!r}, which is no number above zero"
            )
        return float(value)

    def has(self, key: str) -> bool:
        return self._rope.get(key) is not None

    def is_off(self, key: str) -> bool:
        return self._rope.get(key) is False

    def factors(self, key: str, count: int) -> NDArray[np.float32]:
        """Returns: float32 (count,). Raises: CheckpointError if there are not as many numbers."""
        value = self._rope.get(key)
        numbers = value if isinstance(value, list) else []
        if len(numbers) != count or not all(type(number) in (int, float) for number in numbers):
            raise CheckpointError(f"{self._where} has rope parameters whose {key} is no list of {count} numbers")
        return np.array(numbers, np.float32)

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._where} asks for the rope type {self._rope['rope_type']!r} {reason}")


def _put_yarn(writer: Any, parameters: _Parameters, n_ctx_train: int, original: int) -> None:
    if parameters.is_off("truncate"):
        raise parameters.refuse("with truncate = false, which llama.cpp does not compute")
    factor = parameters.number("factor", n_ctx_train / original)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(original)
    for key, add in (
        ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
        ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
    ):
        if parameters.has(key):
            add(parameters.number(key))
    if parameters.has("attention_factor"):
        length = parameters.number("attention_factor")
    elif parameters.has("mscale") and parameters.has("mscale_all_dim"):
        length = _yarn_length(factor, parameters.number("mscale")) / _yarn_length(
            factor, parameters.number("mscale_all_dim")
        )
    else:
        return
    writer.add_rope_scaling_attn_factors(length / _yarn_length(factor, 1.0))


def _yarn_length(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _put_longrope(writer: Any, parameters: _Parameters, n_rot: int, n_ctx_train: int, original: int) -> Tables:
    factor = parameters.number("factor", n_ctx_train / original)
    length = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_scaling_attn_factors(parameters.number("attention_factor", length))
    return {
        FACTORS_LONG: parameters.factors("long_factor", n_rot // 2),
        FACTORS_SHORT: parameters.factors("short_factor", n_rot // 2),
    }


def llama3_factors(parameters: _Parameters, theta: float, n_rot: int, original: int) -> NDArray[np.float32]:
    """Returns: what each frequency is divided by, float32 (n_rot / 2,): 1 for the quick ones, the factor for the slow ones, in between a blend."""
    factor, low, high = (parameters.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    frequencies = 1.0 / theta ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    turns = original * frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0) if high != low else (turns > low).astype(np.float64)
    return (1.0 / ((1 - blend) / factor + blend)).astype(np.float32)
