"""Where a model of a given family may be cut, and which metadata each shard then needs, so that not a bit of the answers changes.

Legality is by allow-list: a family counts as splittable once its shards were proved identical to the unsplit model (family_table.py,
docs/families.md). The generic part of a cut (renumbering, per-layer arrays, vocabularies) is `split.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm
from struct import pack, unpack

import numpy as np

from shardnet.errors import FamilyRefused
from shardnet.inference.gguf.header import GgufHeader, GgufValue, ValueType
from shardnet.inference.gguf.layout import DEFAULT_INTERVAL, PURE_RECURRENT, vocabulary_size
from shardnet.inference.gguf.writer import u32_value
from shardnet.inference.splitting.family_table import PROVED, REFUSED, Family, Windows
from shardnet.shards import LayerRange

Overrides = dict[str, GgufValue | None]

ENDLESS_WINDOW = 1 << 30
"""Tokens: a window longer than any context, and still an int32 in llama.cpp's mask."""

COUNTED_FROM_ZERO = ("leading_dense_block_count", "hash_layer_count")
"""Keys that count the first so many layers: each shard gets its share of them."""

SOFTMAX, SIGMOID = 1, 2  # llama_expert_gating_func_type
GLM_VOCABULARY = 154_880
"""How llama.cpp tells GLM 4.7 Flash from other models of DeepSeek's architecture."""

NOT_PER_LAYER = ("rope.dimension_sections", "attention.layer_indices", "ple.layers")
"""Arrays that are no list of layers, however long they are."""

STATEFUL = PURE_RECURRENT | DEFAULT_INTERVAL.keys() | {"falcon-h1"}
"""Architectures with recurrent layers, beside those of `Family.hybrid`."""

DROPPED = ("nextn_predict_layers",)
"""Layers for multi-token prediction follow the real ones in the file; shards leave them out."""


@dataclass(frozen=True, slots=True)
class CutRules:
    """Where a model may be cut.

    Attributes:
        legal_cuts: sorted layer indices c, 0 < c < layer_count, at which a shard may begin.
        reason: if there are none: one sentence that names the family and says why; else ''.
        forbidden_lengths: numbers of layers that no shard may have, since llama.cpp takes them for another model's.
    """

    legal_cuts: tuple[int, ...]
    reason: str = ""
    forbidden_lengths: frozenset[int] = frozenset()


def layer_count(header: GgufHeader) -> int:
    """Returns: layers that take part in inference: `block_count` without the layers for multi-token prediction."""
    return header.n_layers - int(header.arch("nextn_predict_layers", 0))


def rules_for(header: GgufHeader) -> CutRules:
    """Decide where a model may be cut.

    Raises: FamilyRefused, naming the family and the reason, for families that are known not to split exactly or not known to.
    """
    name, family, n_layers = header.architecture, _family(header), layer_count(header)
    if n_layers in family.refused_counts:
        raise FamilyRefused(
            f"{name} with {n_layers} layers cannot be split: llama.cpp derives its arithmetic from the number of layers, which a shard changes"
        )
    _refuse_special(header)
    period = _period(header, family)
    fits = _range_test(header, family)
    cuts = []
    before = 0
    for cut in range(period, n_layers, period):
        if fits(before, cut) and fits(cut, n_layers):
            cuts.append(cut)
            before = cut
    reason = "" if cuts else f"{name}: {_why_no_cut(n_layers, period, family)}"
    return CutRules(tuple(cuts), reason, _forbidden_lengths(header, family))


def shard_metadata(header: GgufHeader, layers: LayerRange) -> Overrides:
    """The metadata of one shard where it must differ from the model's, beyond what every family needs.

    Returns: full keys with their new values; None drops a key. Values given here win over `split.py`'s own cutting of arrays.
    Raises: FamilyRefused if this very range cannot be made exact.
    """
    name, family = header.architecture, _family(header)
    if len(layers) in _forbidden_lengths(header, family) and len(layers) != layer_count(header):
        raise FamilyRefused(
            f"{name}: a shard of {len(layers)} layers would be taken for a smaller model by llama.cpp; cut so that no shard has as many"
        )
    changes: Overrides = {}

    def put(suffix: str, value: GgufValue | None) -> None:
        changes[f"{name}.{suffix}"] = value

    for suffix in NOT_PER_LAYER:
        field = header.fields.get(f"{name}.{suffix}")
        if field is not None:
            put(suffix, GgufValue(field.type, header.arch(suffix), field.element))
    for suffix in COUNTED_FROM_ZERO:
        if isinstance(count := header.arch(suffix), int):
            put(suffix, u32_value(min(max(count - layers.first, 0), len(layers))))
    for suffix in DROPPED:
        if header.arch(suffix) is not None:
            put(suffix, u32_value(0))
    if family.unscaled and layers.first > 0:
        put("embedding_scale", _f32(1.0))
    if layers.first > 0 and header.arch("n_deepstack_layers") is not None:
        put("n_deepstack_layers", u32_value(0))  # pictures enter with the tokens, in the first shard
    if family.windows is not None and _has_windows(header, family.windows):
        _put_windows(header, family.windows, layers, put)
    if family.hybrid is not None and family.hybrid.interval and header.arch("full_attention_interval") is None:
        put("full_attention_interval", u32_value(family.hybrid.interval))
    _put_special(header, layers, put)
    return changes


def shard_tensor_plan(header: GgufHeader, layers: LayerRange) -> dict[str, str]:
    """Tensors whose data a shard replaces.

    Returns: tensor name -> "zero" for zeros of the same shape and type.
    """
    family = _family(header)
    if layers.first == 0:
        return {}
    present = {tensor.name for tensor in header.tensors}
    return {name: "zero" for name in family.zeroed if name in present}


def _family(header: GgufHeader) -> Family:
    name = header.architecture
    if name in REFUSED:
        raise FamilyRefused(f"{name} cannot be split: {REFUSED[name]}")
    if name not in PROVED:
        raise FamilyRefused(f"{name} is not known to split exactly; docs/families.md lists the families that are")
    return PROVED[name]


def _period(header: GgufHeader, family: Family) -> int:
    if _is_smallthinker_without_windows(header):
        return 1
    return lcm(family.period, int(header.arch(family.period_key, 1)) or 1) if family.period_key else family.period


def _forbidden_lengths(header: GgufHeader, family: Family) -> frozenset[int]:
    is_lite = header.architecture == "deepseek2" and _is_lite(header)
    return frozenset() if is_lite or _is_smallthinker_without_windows(header) else family.sizes_by_count


def _is_smallthinker_without_windows(header: GgufHeader) -> bool:
    """Returns: is it the SmallThinker that uses rope in every layer, so that no layer differs from another?"""
    return header.architecture == "smallthinker" and not header.arch("attention.sliding_window")


def _f32(value: float) -> GgufValue:
    return GgufValue(ValueType.FLOAT32, unpack("<f", pack("<f", value))[0])


# -- which ranges hold together ------------------------------------------------------------------------------------------------------------


def _range_test(header: GgufHeader, family: Family) -> Callable[[int, int], bool]:
    """Returns: does llama.cpp accept a file with just the layers [first, end)? True for a range whenever it is true for a part of it."""
    windows, hybrid = family.windows, family.hybrid
    if windows is not None and windows.without == "cut" and _has_windows(header, windows):
        windowed = windowed_layers(header, windows)
        wanted_flags = {True, False} if windows.needs_full else {True}
        return lambda first, end: wanted_flags <= set(windowed[first:end])
    if hybrid is not None:
        kinds = layer_kinds(header, family)
        wanted = set(kinds) - {"ffn"}
        return lambda first, end: wanted <= set(kinds[first:end])
    return lambda first, end: True


def _why_no_cut(n_layers: int, period: int, family: Family) -> str:
    if n_layers == 1:
        return "a model of one layer cannot be cut"
    if family.hybrid is not None:
        return "every shard needs both recurrent and attention layers, and these layers cannot be divided so"
    if family.windows is not None and family.windows.without == "cut":
        return "every shard needs a layer with a sliding window, and these layers cannot be divided so"
    return f"its layers follow a pattern of {period}, and it has only {n_layers}"


def _has_windows(header: GgufHeader, windows: Windows) -> bool:
    return bool(header.arch("attention.sliding_window", 0 if windows.optional else 1))


def windowed_layers(header: GgufHeader, windows: Windows) -> list[bool]:
    """Returns: for each layer whether it sees only a sliding window, as llama.cpp's `load_swa_pattern` decides it."""
    pattern = header.arch("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return [bool(flag) for flag in pattern[: header.n_layers]]
    period = windows.period if pattern is None else int(pattern)
    if period == 0:
        return [True] * header.n_layers
    full = 0 if windows.full_first else period - 1
    return [layer % period != full for layer in range(header.n_layers)]


def layer_kinds(header: GgufHeader, family: Family) -> list[str]:
    """Returns: "recurrent", "attention" or "ffn" for each layer of a hybrid family."""
    hybrid, n_layers = family.hybrid, layer_count(header)
    if hybrid is None:
        return ["attention"] * n_layers
    explicit = header.arch("attention.recurrent_layers")
    if isinstance(explicit, list):
        return ["recurrent" if flag else "attention" for flag in explicit[:n_layers]]
    if hybrid.interval:
        every = int(header.arch("full_attention_interval", hybrid.interval))
        return ["attention" if (layer + 1) % every == 0 else "recurrent" for layer in range(n_layers)]
    heads, widths = (_per_layer(header, key) for key in ("attention.head_count_kv", "feed_forward_length"))
    return [
        "attention" if heads[layer] else "ffn" if hybrid.ffn_layers and widths[layer] else "recurrent"
        for layer in range(n_layers)
    ]


def _per_layer(header: GgufHeader, suffix: str) -> list[int]:
    value = header.arch(suffix, 0)
    return list(value) if isinstance(value, list) else [int(value)] * header.n_layers


# -- metadata ------------------------------------------------------------------------------------------------------------------------------


def _put_windows(
    header: GgufHeader, windows: Windows, layers: LayerRange, put: Callable[[str, GgufValue | None], None]
) -> None:
    flags = windowed_layers(header, windows)[layers.first : layers.end]
    if any(flags) or windows.without == "cut":
        put("attention.sliding_window_pattern", _flags(flags))
    elif windows.without == "drop":
        put("attention.sliding_window", None)
        put("attention.sliding_window_pattern", None)
    else:
        put("attention.sliding_window", u32_value(ENDLESS_WINDOW))
        put("attention.sliding_window_pattern", _flags([True] * len(layers)))
        put("rope.freq_base_swa", _f32(float(header.arch("rope.freq_base", 10000.0))))


def _flags(flags: list[bool]) -> GgufValue:
    return GgufValue(ValueType.ARRAY, flags, ValueType.BOOL)


def _refuse_special(header: GgufHeader) -> None:
    """Models of a proved family that llama.cpp runs in a way of their own. Raises: FamilyRefused."""
    name = header.architecture
    if name == "gemma4" and (
        header.arch("embedding_length_per_layer_input") or header.arch("attention.shared_kv_layers")
    ):
        raise FamilyRefused(
            "gemma4 of this size cannot be split: its layers read the tokens themselves or the KV cache of earlier layers, "
            "and a later stage has only hidden states"
        )
    if name == "llama4" and header.arch("attention.sliding_window") == 0:
        raise FamilyRefused(
            "llama4 without sliding windows cannot be split: llama.cpp treats the last layer of each file differently"
        )


def _put_special(header: GgufHeader, layers: LayerRange, put: Callable[[str, GgufValue | None], None]) -> None:
    """What one family alone needs."""
    match header.architecture:
        case "minicpm" if header.arch("residual_scale") is None:
            put(
                "residual_scale", _f32(float(np.float32(1.4) / np.sqrt(np.float32(header.n_layers))))
            )  # llama.cpp's default, from the number of layers
        case "deepseek2":
            if _is_lite(header):
                put(
                    "attention.q_lora_rank", u32_value(0)
                )  # the small ones have none and are known by their number of layers
            if header.arch("expert_gating_func") is None:
                is_glm = header.n_layers in (47, 48) and vocabulary_size(header) == GLM_VOCABULARY
                put("expert_gating_func", u32_value(SIGMOID if is_glm else SOFTMAX))
        case _:
            pass


def _is_lite(header: GgufHeader) -> bool:
    """Returns: is it a DeepSeek-2 without a low-rank query?"""
    return any(tensor.name == "blk.0.attn_q.weight" for tensor in header.tensors)


def carries_state(architecture: str) -> bool:
    """Returns: whether a sequence of such a model has a state, beside or in place of KV, that is of its last token alone: no beginning is left."""
    family = PROVED.get(architecture)
    return architecture in STATEFUL or (family is not None and family.hybrid is not None)
