"""Which type each tensor gets: llama.cpp's own mixtures, by the whole model's layer numbers.

`Q4_K_M` and its like are not one type but a rule: some layers' values and down-projections get more bits, the head most of all. A shard by itself
would get other types than the same layers of the whole model, so this looks at whole models only. Pure: knows names, shapes and metadata, no weights.

Source: llama.cpp of llama-cpp-python 0.3.36, src/llama-quant.cpp, `llama_tensor_get_type` and `tensor_allows_quantization`;
`tests/unit/inference/quantising/test_quantised_bytes.py` compares with what that llama.cpp writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from shardnet.errors import GgufError, UsageError
from shardnet.inference.gguf.element_types import FILE_TYPES, GGML_TYPES
from shardnet.inference.gguf.header import GgufHeader, GgufTensor
from shardnet.inference.gguf.layout import layer_of

NUMBER = {kind.name: number for number, kind in GGML_TYPES.items()}
FILE_TYPE = {name.lower(): number for number, name in FILE_TYPES.items()}

KINDS: dict[str, str] = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1",
    "q2_k": "Q2_K", "q3_k_s": "Q3_K", "q3_k_m": "Q3_K", "q3_k_l": "Q3_K", "q4_k_s": "Q4_K", "q4_k_m": "Q4_K", "q5_k_s": "Q5_K", "q5_k_m": "Q5_K",
    "q6_k": "Q6_K", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS",
}  # fmt: skip
"""What a user may ask for -> the type that most tensors get."""
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
FLOATS = frozenset(("F32", "F16", "BF16"))

FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""For rows that do not divide by 256; for those that do not divide by 32 either, F16."""

LEFT_ALONE = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.",
    "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd", "time_mix_lerp_fused.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
)  # fmt: skip
"""Parts of names of small or sensitive tensors, which keep the type that they have."""
LEFT_ALONE_IN = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape", "ssm_f_a.weight",
        "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    )
}  # fmt: skip
LEAST_Q8_0_IN = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
LEFT_ALONE_WHOLE = ("position_embd.weight", "token_types.weight")

SEVENTY_B_LAYERS = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
"""Architectures of which a model of so many layers counts as a "70B", whose few heads for values get more bits."""


class Part(Enum):
    """What a tensor is in the eyes of a mixture."""

    EMBEDDING = auto()
    HEAD = auto()
    VALUES = auto()
    KEYS = auto()
    ATTENTION_OUTPUT = auto()
    DOWN = auto()
    OTHER = auto()


_PARTS = (
    (Part.VALUES, ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")),
    (Part.KEYS, ("attn_k.weight",)),
    # Named so that a down-projection's rule does not reach them: one name holds several of these words in some families.
    (Part.OTHER, ("attn_q.weight",)),
    (Part.ATTENTION_OUTPUT, ("attn_output.weight",)),
    (Part.OTHER, ("ffn_up", "ffn_gate")),
    (Part.DOWN, ("ffn_down",)),
)


def part_of(name: str) -> Part:
    """Returns: what a tensor is."""
    if name == "output.weight":
        return Part.HEAD
    if is_embedding(name):
        return Part.EMBEDDING
    return next((part for part, words in _PARTS if any(word in name for word in words)), Part.OTHER)


def is_embedding(name: str) -> bool:
    """Returns: whether it is a table of which a token looks up a row."""
    return name in ("token_embd.weight", "per_layer_token_embd.weight")


def checked_kind(kind: str) -> str:
    """Returns: the kind by its full name, lower case. Raises: UsageError if there is none of this name."""
    name = kind.lower()
    name = ALIASES.get(name, name)
    if name not in KINDS:
        raise UsageError(f"{kind!r} is no type that can be quantised to: take one of {', '.join(KINDS)}")
    return name


def may_change(tensor: GgufTensor, architecture: str) -> bool:
    """Returns: whether llama.cpp would quantise this tensor at all: matrices and stacks of them that are weights, but for small sensitive ones."""
    shape = list(tensor.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    name = tensor.name
    if len(shape) < 2 or not name.endswith("weight") or name in LEFT_ALONE_WHOLE:
        return False
    return not any(word in name for word in (*LEFT_ALONE, *LEFT_ALONE_IN.get(architecture, ())))


def in_llama_order(tensors: Sequence[GgufTensor]) -> list[GgufTensor]:
    """Returns: the tensors in the order in which llama.cpp counts and writes them: those of no layer first, then layer by layer, each by name."""

    def place(tensor: GgufTensor) -> tuple[int, bytes]:
        layer = layer_of(tensor.name)
        return (-1 if layer is None else layer, tensor.name.encode())

    return sorted(tensors, key=place)


def choose_types(header: GgufHeader, kind: str, *, has_importance: bool) -> dict[str, int]:
    """Decide on every tensor of a whole model.

    Args:
        header: of the whole model.
        kind: a key of `KINDS`.
        has_importance: an importance matrix will be used; some rules differ with one.

    Returns: name -> ggml type. Raises: GgufError if the metadata contradict the tensors.
    """
    base = KINDS[kind]
    rule = None if base in FLOATS else _Rule(header, kind, has_importance)
    chosen = {}
    for tensor in in_llama_order(header.tensors):
        if not may_change(tensor, header.architecture):
            chosen[tensor.name] = tensor.ggml_type
        else:
            chosen[tensor.name] = NUMBER[base if rule is None else fitting(rule.type_of(tensor), tensor.shape[0])]
    return chosen


def fitting(wanted: str, row_length: int) -> str:
    """Returns: the type, or what stands in for it where rows of this length do not divide into its blocks."""
    if row_length % GGML_TYPES[NUMBER[wanted]].block == 0:
        return wanted
    other = FALLBACK.get(wanted, wanted)
    return other if row_length % GGML_TYPES[NUMBER[other]].block == 0 else "F16"


def gets_more_bits(layer: int, n_layers: int) -> bool:
    """Returns: whether a layer is among the first eighth, the last, or is every third in between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


@dataclass(frozen=True)
class _Facts:
    """What the rules ask of a model's metadata."""

    architecture: str
    n_layers: int
    n_experts: int
    heads_per_kv_head: int
    is_seventy_b: bool

    @classmethod
    def of(cls, header: GgufHeader) -> _Facts:
        n_heads = _first(header.arch("attention.head_count", 0))
        n_kv_heads = _first(header.arch("attention.head_count_kv", n_heads))
        n_experts = _first(header.arch("expert_count", 0))
        architecture, n_layers = header.architecture, header.n_layers
        counted = n_layers - _first(header.arch("nextn_predict_layers", 0))
        # llama's own: another size where every head has its own values, or where it is a mixture of eight experts.
        is_plain = architecture.startswith("llama") and (n_heads == n_kv_heads or n_experts == 8)
        return cls(
            architecture,
            n_layers,
            n_experts,
            n_heads // n_kv_heads if n_kv_heads else 0,
            SEVENTY_B_LAYERS.get(architecture) == counted and not is_plain,
        )


def _first(value: object) -> int:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and value >= 0 else 0


class _Rule:
    """One mixture, asked for the tensors of a model in llama.cpp's order: it counts those with values and those of down-projections."""

    def __init__(self, header: GgufHeader, kind: str, has_importance: bool) -> None:
        self._kind, self._base = kind, KINDS[kind]
        self._has_importance = has_importance
        self._facts = _Facts.of(header)
        self._is_falcon = self._facts.architecture == "falcon"
        parts = [part_of(tensor.name) for tensor in header.tensors]
        self._is_tied = Part.HEAD not in parts
        self._n_values = parts.count(Part.VALUES)
        self._values_seen = self._downs_seen = 0

    def type_of(self, tensor: GgufTensor) -> str:
        """Returns: the type that the mixture wants; whether the rows fit is not looked at."""
        part = part_of(tensor.name)
        if any(word in tensor.name for word in LEAST_Q8_0_IN.get(self._facts.architecture, ())):
            return "Q8_0"
        match part:
            case Part.HEAD:
                return self._head(tensor)
            case Part.EMBEDDING:
                return self._head(tensor) if self._is_tied else self._base
            case Part.VALUES:
                self._values_seen += 1
                return self._values(self._values_seen - 1)
            case Part.KEYS:
                return "Q8_0" if self._facts.n_experts == 8 else self._base
            case Part.DOWN:
                self._downs_seen += 1
                return self._down(self._layer(tensor, self._downs_seen - 1))
            case Part.ATTENTION_OUTPUT:
                return self._attention_output()
            case Part.OTHER:
                return self._base

    def _head(self, tensor: GgufTensor) -> str:
        """The embedding where that is the head too."""
        if self._is_falcon or tensor.shape[0] % GGML_TYPES[NUMBER[self._base]].block:
            return "Q8_0"
        return "Q8_0" if self._base == "Q8_0" else "Q6_K"

    def _values(self, index: int) -> str:
        if self._facts.n_experts == 8:
            return "Q8_0"
        wanted = self._values_by_kind(index)
        return "Q5_K" if self._facts.is_seventy_b and wanted in ("Q3_K", "Q4_K") else wanted

    def _values_by_kind(self, index: int) -> str:
        shares_heads = self._facts.heads_per_kv_head >= 4
        match self._kind:
            case "q2_k":
                return "Q4_K" if shares_heads else "Q3_K"
            case "q3_k_m":
                return "Q5_K" if index < 2 else "Q4_K"
            case "q3_k_l":
                return "Q5_K"
            case "iq4_nl" | "iq4_xs" if shares_heads:
                return "Q5_K"
            case "q4_k_m" | "q5_k_m" if gets_more_bits(index, self._n_values):
                return "Q6_K"
            case "q4_k_s" if index < 4:
                return "Q5_K"
        return self._base

    def _layer(self, tensor: GgufTensor, index: int) -> int:
        """Which layer a down-projection counts as: its place among them or, with experts, which have several, the layer in its name."""
        if self._facts.n_experts <= 1:
            return index
        layer = layer_of(tensor.name)
        if layer is None or layer >= self._facts.n_layers:
            raise GgufError(f"tensor {tensor.name!r} is of no layer of the model's {self._facts.n_layers}")
        return layer

    def _down(self, layer: int) -> str:
        n_layers = self._facts.n_layers
        more, is_early = gets_more_bits(layer, n_layers), layer < n_layers // 8
        match self._kind:
            case "q2_k":
                return "Q3_K"
            case "q3_k_m":
                if layer < n_layers // 16:
                    return "Q5_K"
                return "Q4_K" if more or not self._is_falcon else "Q3_K"
            case "q3_k_l":
                return "Q4_K" if self._is_falcon else "Q5_K"
            case "q4_k_m" if self._is_falcon:
                return "Q6_K" if layer < n_layers // 16 else "Q5_K" if more else "Q4_K"
            case "q4_k_m" | "q5_k_m" if more:
                return "Q6_K"
            case "q4_k_s" if is_early and not self._is_falcon:
                return "Q5_K"
            case "iq4_nl" | "iq4_xs" if is_early and not self._has_importance:
                return "Q5_K"
            case "q4_0" | "q5_0" if is_early and self._has_importance:
                return "Q4_1" if self._kind == "q4_0" else "Q5_1"
        return self._base

    def _attention_output(self) -> str:
        if self._is_falcon:
            return "Q4_K" if self._kind == "q3_k_l" else self._base
        if self._facts.n_experts == 8:
            gets_five = ("q2_k", "q3_k_s", "q3_k_m", "iq4_nl", "iq4_xs", "q4_k_s", "q4_k_m")
            return "Q5_K" if self._kind in gets_five else self._base
        return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(self._kind, self._base)
