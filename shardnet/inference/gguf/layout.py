"""What a GGUF's tensors are for: which layer each belongs to, how many bytes a layer takes, and how much KV cache a token costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardnet.errors import GgufError
from shardnet.inference.gguf.element_types import FILE_TYPES
from shardnet.inference.gguf.folders import PART, model_in
from shardnet.inference.gguf.header import GgufHeader, GgufTensor, read_gguf_header

_LAYER = re.compile(r"^blk\.(\d+)\.")

F16_BYTES = 2

FTYPE_GUESSED = 1024  # a flag that llama.cpp adds when it chose the type itself

PURE_RECURRENT = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))
"""Architectures without any KV cache. Source: `llm_arch_is_recurrent`."""
DEFAULT_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""`full_attention_interval` where the file does not say: every n-th layer is attention, the others are recurrent. Source: src/models/*.cpp."""


def layer_of(name: str) -> int | None:
    """Returns: the layer that a tensor belongs to, None for a global one."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def read_model(path: Path) -> GgufHeader:
    """Read a GGUF, or all files of a model that llama.cpp split by size (`-00001-of-0000N.gguf`): any of them, or the folder that they are in.

    Raises: UsageError, GgufError as `read_gguf_header`; UsageError if the folder holds none or several models; GgufError if a part is missing
        or of another model.
    """
    if path.is_dir():
        path = model_in(path)
    header = read_gguf_header(path)
    names = part_names(header, path.name)
    if not names:
        check_layers(header)
        return header
    paths = [path.with_name(name) for name in names]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise GgufError(
            f"{path} is one of {len(paths)} parts, but {', '.join(missing[:3])}{more} cannot be found beside it"
        )
    return join_parts([read_gguf_header(part) for part in paths])


def part_names(header: GgufHeader, name: str) -> list[str]:
    """Returns: the file names of all parts of a model that llama.cpp split by size, one of which is called `name`; [] if it is in one file.

    Raises: GgufError if the name is not that of a part.
    """
    count = header.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return []
    match = PART.match(name)
    if match is None or int(match["count"]) != count:
        raise GgufError(
            f"{header.path} says it is one of {count} parts, but its name does not end in -00001-of-{count:05d}.gguf"
        )
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def join_parts(parts: Sequence[GgufHeader]) -> GgufHeader:
    """Returns: the header of the model whose files these are. Raises: GgufError if one is of another model, or not in its place."""
    count = len(parts)
    for number, part in enumerate(parts):
        if part.get("split.no") != number or part.get("split.count") != count:
            raise GgufError(f"{part.path} is not part {number + 1} of {count} of this model")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    total = parts[0].get("split.tensors.count", len(tensors))
    if len({tensor.name for tensor in tensors}) != len(tensors) or total != len(tensors):
        raise GgufError(f"the {count} parts of {parts[0].path} hold {len(tensors)} tensors where {total} are announced")
    fields = {key: field for key, field in parts[0].fields.items() if not key.startswith("split.")}
    n_bytes = sum(part.file_bytes for part in parts)
    whole = GgufHeader(parts[0].path, parts[0].version, fields, tensors, n_bytes, tuple(part.path for part in parts))
    check_layers(whole)
    return whole


def check_layers(header: GgufHeader) -> None:
    """A layer beyond the announced ones, or one without tensors, would make a shard that is not what it says. Raises: GgufError."""
    if "general.architecture" not in header.fields or header.arch("block_count") is None or not header.tensors:
        return
    extra = header.arch("nextn_predict_layers", 0)
    if not isinstance(extra, int) or not 0 <= extra < header.n_layers:
        raise GgufError(
            f"{header.path} announces {extra!r} layers for multi-token prediction of {header.n_layers} in all"
        )
    found = {layer for tensor in header.tensors if (layer := layer_of(tensor.name)) is not None}
    if found and max(found) >= header.n_layers:
        raise GgufError(f"{header.path} announces {header.n_layers} layers but has tensors of layer {max(found)}")
    if missing := set(range(header.n_layers - extra)) - found:  # converters may leave those for prediction out
        raise GgufError(f"{header.path} announces {header.n_layers} layers but has no tensors of layer {min(missing)}")


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


LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")
"""Tables of which a token reads one row."""


def step_bytes(header: GgufHeader, tensors: Iterable[tuple[str, int]], *, has_head: bool) -> int:
    """How much of a shard one decode step of one token reads.

    Args:
        header: of the whole model.
        tensors: (name, bytes) of what the shard holds.
        has_head: it is the last one. Where it has no head of its own, the embedding table is the head.

    Returns: bytes of weights: all but the tables that are only looked up, and of a layer's experts those that a token is sent to.
    """
    used, count = _count(header, "expert_used_count"), _count(header, "expert_count")
    sizes = dict(tensors)
    total = 0
    for name, nbytes in sizes.items():
        is_tied_head = has_head and name == "token_embd.weight" and "output.weight" not in sizes
        if name in LOOKED_UP and not is_tied_head:
            continue
        total += nbytes * used // count if "_exps." in name and 0 < used <= count else nbytes
    return total


def kv_bytes(header: GgufHeader, layer: int) -> int:
    """Returns: bytes of f16 KV cache that one token takes in one layer; 0 for a layer that keeps none or a state that does not grow.

    Source: llama-hparams.cpp, `n_embd_k_gqa`, `n_embd_v_gqa`, `has_kv`; with MLA one latent row stands for keys and values.
    """
    if not _attends(header, layer) or layer >= header.n_layers - _count(header, "attention.shared_kv_layers"):
        return 0
    n_head = _count(header, "attention.head_count", layer)
    n_head_kv = _count(header, "attention.head_count_kv", layer, n_head)
    n_head_first = _count(header, "attention.head_count", 0)
    width = _count(header, "embedding_length") // n_head_first if n_head_first else 0
    key, value = (_count(header, f"attention.{part}_length", layer, width) for part in ("key", "value"))
    if _is_windowed(header, layer):
        key, value = (
            _count(header, f"attention.{part}_length_swa", layer, size)
            for part, size in (("key", key), ("value", value))
        )
    if header.arch("attention.key_length_mla") is not None:
        value = 0
    return F16_BYTES * n_head_kv * (key + value)


def _attends(header: GgufHeader, layer: int) -> bool:
    if header.architecture in PURE_RECURRENT:
        return False
    recurrent = header.arch("attention.recurrent_layers")
    if isinstance(recurrent, list):
        return layer < len(recurrent) and not recurrent[layer]
    interval = header.arch("full_attention_interval", DEFAULT_INTERVAL.get(header.architecture, 0))
    return not isinstance(interval, int) or interval <= 0 or (layer + 1) % interval == 0


def _is_windowed(header: GgufHeader, layer: int) -> bool:
    pattern = header.arch("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return layer < len(pattern) and bool(pattern[layer])
    return isinstance(pattern, int) and pattern > 0 and layer % pattern < pattern - 1


def _count(header: GgufHeader, suffix: str, layer: int = 0, default: int = 0) -> int:
    """Returns: a number of the architecture's, one layer's where the file gives a list."""
    value = header.arch(suffix, default)
    if isinstance(value, list):
        value = value[layer] if layer < len(value) else 0
    return value if isinstance(value, int) and value >= 0 else 0


def quantisation_of(header: GgufHeader) -> str:
    """Returns: the file type as llama.cpp names it, else the type that holds most bytes."""
    kind = header.get("general.file_type")
    if isinstance(kind, int) and (name := FILE_TYPES.get(kind & ~FTYPE_GUESSED)):
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
