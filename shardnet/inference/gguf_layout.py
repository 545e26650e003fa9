"""What a GGUF's tensors are for: which layer each belongs to, how many bytes a layer takes, and how much KV cache a token costs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from shardnet.errors import GgufError
from shardnet.inference.gguf_file import GgufHeader, GgufTensor, read_gguf_header

_LAYER = re.compile(r"^blk\.(\d+)\.")
_PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")

F16_BYTES = 2

LLAMA_FTYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M",
    32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""`general.file_type` -> name. Source: enum llama_ftype in llama.h."""


def layer_of(name: str) -> int | None:
    """Returns: the layer that a tensor belongs to, None for a global one."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def read_model(path: Path) -> GgufHeader:
    """Read a GGUF, or all files of a model that llama.cpp split by size (`-00001-of-0000N.gguf`), whichever of them is named.

    Raises: UsageError, GgufError as `read_gguf_header`; GgufError if a part is missing or of another model.
    """
    header = read_gguf_header(path)
    count = header.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        _check_layers(header)
        return header
    match = _PART.match(path.name)
    if match is None or int(match["count"]) != count:
        raise GgufError(
            f"{path} says it is one of {count} parts, but its name does not end in -00001-of-{count:05d}.gguf"
        )
    paths = [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise GgufError(
            f"{path} is one of {count} parts, of which {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
        )
    parts = [read_gguf_header(part) for part in paths]
    for number, part in enumerate(parts):
        if part.get("split.no") != number or part.get("split.count") != count:
            raise GgufError(f"{part.path} is not part {number + 1} of {count} of this model")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    total = parts[0].get("split.tensors.count", len(tensors))
    if len({tensor.name for tensor in tensors}) != len(tensors) or total != len(tensors):
        raise GgufError(f"the {count} parts of {path} hold {len(tensors)} tensors where {total} are announced")
    fields = {key: field for key, field in parts[0].fields.items() if not key.startswith("split.")}
    whole = GgufHeader(
        paths[0], parts[0].version, fields, tensors, sum(part.file_bytes for part in parts), tuple(paths)
    )
    _check_layers(whole)
    return whole


def _check_layers(header: GgufHeader) -> None:
    """A layer number beyond the announced ones would be lost by a split without a word."""
    if "general.architecture" not in header.fields or header.arch("block_count") is None:
        return
    beyond = {
        layer for tensor in header.tensors if (layer := layer_of(tensor.name)) is not None and layer >= header.n_layers
    }
    if beyond:
        raise GgufError(f"{header.path} announces {header.n_layers} layers but has tensors of layer {max(beyond)}")


@dataclass(frozen=True)
class Layout:
    """Bytes by layer and by type, and the KV cache that a token costs."""

    layer_bytes: tuple[int, ...]
    global_bytes: int
    type_bytes: dict[str, int]
    kv_bytes_per_layer: tuple[int, ...]
    n_params: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Returns: bytes of f16 KV cache of one token over all layers."""
        return sum(self.kv_bytes_per_layer)


def layout_of(header: GgufHeader) -> Layout:
    """Returns: where a model's bytes are. Raises: GgufError if the header names no layers."""
    layer_bytes = [0] * header.n_layers
    global_bytes = 0
    types: Counter[str] = Counter()
    for tensor in header.tensors:
        types[tensor.type_name] += tensor.nbytes
        layer = layer_of(tensor.name)
        if layer is None:
            global_bytes += tensor.nbytes
        else:
            layer_bytes[layer] += tensor.nbytes
    kv = tuple(kv_bytes(header, layer) for layer in range(header.n_layers))
    n_params = sum(tensor.n_elements for tensor in header.tensors)
    return Layout(tuple(layer_bytes), global_bytes, dict(types.most_common()), kv, n_params)


def kv_bytes(header: GgufHeader, layer: int) -> int:
    """Returns: bytes of f16 KV cache that one token takes in one layer; 0 for a recurrent layer, whose state does not grow.

    Source: llama-hparams.cpp, `n_embd_k_gqa` and `n_embd_v_gqa`; MLA as in deepseek2 caches one latent row.
    """
    if _is_recurrent_layer(header, layer):
        return 0
    n_head = _per_layer(header.arch("attention.head_count", 0), layer)
    n_head_kv = _per_layer(header.arch("attention.head_count_kv", n_head), layer)
    if header.arch("attention.key_length_mla") is not None:
        return F16_BYTES * int(header.arch("attention.key_length", 0))
    n_embd = int(header.arch("embedding_length", 0))
    default = n_embd // n_head if n_head else 0
    key = int(header.arch("attention.key_length", default))
    value = int(header.arch("attention.value_length", default))
    return F16_BYTES * n_head_kv * (key + value)


def _is_recurrent_layer(header: GgufHeader, layer: int) -> bool:
    interval = header.arch("full_attention_interval")
    if isinstance(interval, int) and interval > 0:
        return (layer + 1) % interval != 0
    return False


def _per_layer(value: object, layer: int) -> int:
    if isinstance(value, list):
        return int(value[layer]) if layer < len(value) else 0
    return int(value) if isinstance(value, int) else 0


def quantisation_of(header: GgufHeader) -> str:
    """Returns: the file type as llama.cpp names it, else the type that holds most bytes."""
    kind = header.get("general.file_type")
    if isinstance(kind, int) and (name := LLAMA_FTYPES.get(kind & 0x3FF)):
        return name
    types: Counter[str] = Counter()
    for tensor in header.tensors:
        types[tensor.type_name] += tensor.nbytes
    return types.most_common(1)[0][0] if types else "unknown"


def vocabulary_size(header: GgufHeader) -> int:
    """Returns: number of tokens in the vocabulary, from the tokenizer, else from the embedding's rows."""
    field = header.fields.get("tokenizer.ggml.tokens")
    if field is not None:
        return field.count
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    return embedding.shape[1] if embedding is not None and len(embedding.shape) > 1 else 0


def tensors_by_name(header: GgufHeader) -> dict[str, GgufTensor]:
    """Returns: the tensors, by name."""
    return {tensor.name: tensor for tensor in header.tensors}
