"""What each shard of a model will hold: decided with plain data before the first byte is written.

The recipe is re-proved on every split by `verify`: a shard is a complete GGUF whose layers are renumbered from 0; what it does not need of
vocabulary and head is left out; family-specific keys come from `families`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

from shardnet.errors import FamilyRefused, GgufError, UsageError
from shardnet.inference.gguf.element_types import GGML_F32, GGML_TYPES
from shardnet.inference.gguf.header import GgufField, GgufHeader, GgufTensor, GgufValue, ValueType
from shardnet.inference.gguf.layout import (
    Layout,
    layer_of,
    layout_of,
    read_model,
    step_bytes,
    tensors_by_name,
    vocabulary_size,
)
from shardnet.inference.gguf.writer import OutTensor, header_bytes, string_value, total_bytes, u32_value
from shardnet.inference.splitting import families
from shardnet.inference.splitting.cuts import Weights, balanced_cuts, checked_cuts, cuts_by_size, ranges
from shardnet.inference.splitting.manifest_file import MANIFEST, SHARDS
from shardnet.manifest import BLANK_MODEL_ID, LONGEST_NAME
from shardnet.shards import LayerRange

MODEL_ID_KEY = "shardnet.model_id"
TOKENIZER_FILE = "tokenizer.gguf"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
STUB_TYPES = (41, 42, 34, 2, GGML_F32)
"""Q1_0 (0.14 bytes a weight, rows in multiples of 128), Q2_0 (of 64), TQ1_0 (of 256), Q4_0 (of 32), F32 (any)."""

HEAD_FROM_EMBEDDING = frozenset(
    (
        "afmoe", "arcee", "command-r", "cohere2", "deepseek", "deepseek2", "ernie4_5", "exaone", "exaone4", "falcon", "glm4", "glm4moe", "gpt2",
        "granite", "granitemoe", "granitehybrid", "hunyuan-dense", "hunyuan-moe", "jamba", "lfm2", "lfm2moe", "llama", "llama4", "minicpm",
        "minicpm3", "mistral3", "mpt", "nemotron_h", "olmo", "phi3", "qwen2", "qwen2vl", "qwen3", "qwen3moe", "qwen3next", "qwen3vl", "qwen3vlmoe",
        "qwen35", "qwen35moe", "seed_oss", "smallthinker", "smollm3", "starcoder2",
    )
)  # fmt: skip
"""Architectures for which llama.cpp takes the embedding as head when a file has no `output.weight` (src/models/*.cpp: TENSOR_NOT_REQUIRED).
There the last shard of an untied model stores its head under the embedding's name, and the first none at all; elsewhere zeros of the smallest
type stand in."""

Fields = dict[str, GgufValue | GgufField]


Balance = Literal["speed", "memory"]
"""What a cut into so many shards makes even: what a step costs, so that no stage keeps the others waiting; or bytes stored."""
BALANCES: tuple[Balance, ...] = get_args(Balance)


@dataclass(frozen=True)
class CutRequest:
    """How the user wants the model cut: exactly one of the first three, two shards if there is none.

    Attributes:
        balance: of `n_shards`; the other two leave it nothing to decide.
    """

    n_shards: int | None = None
    max_shard_bytes: int | None = None
    cuts: tuple[int, ...] | None = None
    balance: Balance = "speed"


@dataclass(frozen=True)
class FilePlan:
    """One file to be written."""

    name: str
    fields: Fields
    tensors: tuple[OutTensor, ...]

    @cached_property
    def nbytes(self) -> int:
        """Returns: its size when written."""
        return total_bytes(header_bytes(self.fields, self.tensors, MODEL_ID_KEY)[0], self.tensors)


@dataclass(frozen=True)
class SplitPlan:
    """Everything that will be written, decided before the first byte."""

    header: GgufHeader
    layout: Layout
    name: str
    layers: tuple[LayerRange, ...]
    shards: tuple[FilePlan, ...]
    tokenizer: FilePlan

    @property
    def nbytes(self) -> int:
        """Returns: bytes of all files."""
        return sum(plan.nbytes for plan in (*self.shards, self.tokenizer))

    @cached_property
    def step_bytes(self) -> tuple[int, ...]:
        """Returns: of each shard, as `shared_step_bytes`."""
        return shared_step_bytes(self.header, self.layers)


def plan_split(path: Path, request: CutRequest, name: str | None = None) -> SplitPlan:
    """Read a GGUF's header and decide what each shard will hold. Raises: as `read_model` and `plan_model`."""
    refuse_shards(path)
    return plan_model(read_model(path), request, name)


def refuse_shards(path: Path) -> None:
    """Raises: UsageError if a folder holds what shardnet wrote, and no model to be split."""
    if path.is_dir() and (
        (path / MANIFEST).exists() or (not any(path.glob("*.gguf")) and any(path.glob(f"{SHARDS}/*")))
    ):
        raise UsageError(f"{path} holds shards already (`shardnet inspect` shows them); name the unsplit model")


def plan_model(header: GgufHeader, request: CutRequest, name: str | None = None) -> SplitPlan:
    """Decide what each shard of a model will hold; nothing is read or made for it.

    Raises: UsageError, GgufError, FamilyRefused (the family cannot be split, or has no legal cut for more than one shard).
    """
    if MODEL_ID_KEY in header.fields:
        raise UsageError(f"{header.path} is a shard already; split the whole model")
    for key in ("embedding_length", "context_length"):
        value = header.arch(key)
        if not isinstance(value, int) or value <= 0:
            raise GgufError(f"{header.path} has no usable {header.architecture}.{key}: it cannot be split")
    if vocabulary_size(header) <= 0:
        raise GgufError(f"{header.path} has no vocabulary: it cannot be split")
    layout = layout_of(header)
    title, most = model_name(header, name), request.max_shard_bytes
    on_top = 0  # cuts are chosen by weights: what stands for others' ends, small tensors of no layer, and headers come on top
    while True:
        asked = request if most is None else replace(request, max_shard_bytes=most - on_top)
        layers = ranges(choose_cuts(header, layout, asked), families.layer_count(header))
        shards = tuple(_plan_shard(header, index, layers, title) for index in range(len(layers)))
        excess = 0 if most is None else max(file.nbytes for file in shards) - most
        if excess <= 0:
            return SplitPlan(header, layout, title, layers, shards, _plan_tokenizer(header))
        on_top += excess


def choose_cuts(header: GgufHeader, layout: Layout, request: CutRequest) -> tuple[int, ...]:
    """Returns: the cuts that a request means for this model. Raises: as `plan_split`."""
    rules = families.rules_for(header)
    wants_several = bool(request.cuts) or (request.n_shards or 2) > 1 or request.max_shard_bytes is not None
    weights = stored_weights(header, layout)
    if request.max_shard_bytes is not None and weights.of(0, len(weights.layers)) <= request.max_shard_bytes:
        return ()
    if wants_several and not rules.legal_cuts:
        raise FamilyRefused(rules.reason or f"{header.architecture} models of {header.n_layers} layers cannot be cut")
    if request.cuts is not None:
        return checked_cuts(request.cuts, rules.legal_cuts, len(weights.layers))
    if request.max_shard_bytes is not None:
        return cuts_by_size(weights, rules.legal_cuts, request.max_shard_bytes, rules.forbidden_lengths)
    if request.balance == "speed":
        weights = step_weights(header)
    return balanced_cuts(
        weights, rules.legal_cuts, 2 if request.n_shards is None else request.n_shards, rules.forbidden_lengths
    )


def step_weights(header: GgufHeader) -> Weights:
    """Returns: what a step costs: of each layer, and of the head; of the embedding table it only looks up a row.

    Each weight has to be read, and multiplied with every row of a batch: its bytes count, and one more for the multiplying. Bytes alone would make
    a head of a large type too dear, numbers of weights alone too cheap: over eight types this told times best with llama.cpp's CPU kernels, in five
    of six cases of one to eight rows and one or two threads (docs/performance.md).
    """
    return _through_layers(header, lambda tensor: tensor.nbytes + tensor.n_elements)


def shared_step_bytes(header: GgufHeader, layers: Sequence[LayerRange]) -> tuple[int, ...]:
    """Returns: the bytes of weights that a step of one token reads in the whole model, shared out over its shards by what these cost."""
    read, cost = _through_layers(header, lambda tensor: tensor.nbytes), step_weights(header)
    n_layers = layers[-1].end
    all_read, all_cost = read.of(0, n_layers), max(1, cost.of(0, n_layers))
    return tuple(all_read * cost.of(part.first, part.end) // all_cost for part in layers)


def _through_layers(header: GgufHeader, size: Callable[[GgufTensor], int]) -> Weights:
    """Returns: of each layer, and of the head, the size of what a step goes through."""
    layers: list[list[tuple[str, int]]] = [[] for _ in range(header.n_layers)]
    others: list[tuple[str, int]] = []
    for tensor in header.tensors:
        layer = layer_of(tensor.name)
        (others if layer is None else layers[layer]).append((tensor.name, size(tensor)))
    used = [step_bytes(header, tensors, has_head=False) for tensors in layers[: families.layer_count(header)]]
    return Weights(tuple(used), last=step_bytes(header, others, has_head=True))


def stored_weights(header: GgufHeader, layout: Layout) -> Weights:
    """Returns: bytes that are stored: each layer, and what first and last shard carry besides: vocabulary, embedding, head."""
    tensors = tensors_by_name(header)
    embedding = tensors[EMBEDDING].nbytes if EMBEDDING in tensors else 0
    head = tensors[HEAD].nbytes if HEAD in tensors else embedding
    vocabulary = sum(field.end - field.start for key, field in header.fields.items() if key.startswith("tokenizer."))
    layers = layout.layer_bytes[: families.layer_count(header)]
    return Weights(layers, first=embedding + vocabulary, last=head + vocabulary)


def model_name(header: GgufHeader, wanted: str | None) -> str:
    """Returns: a name that fits the manifest: the user's, else the model's own with its quantisation.

    Raises: UsageError if the user's cannot be used.
    """
    if wanted is not None:
        if len(wanted) > LONGEST_NAME or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]*", wanted):
            raise UsageError(
                f"{wanted!r} cannot be a model name: use letters, digits, dots, dashes and underscores, at most {LONGEST_NAME}"
            )
        return wanted
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", header.path.name.removesuffix(".gguf"))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:LONGEST_NAME] or "model"


def _plan_shard(header: GgufHeader, index: int, layers: Sequence[LayerRange], title: str) -> FilePlan:
    part = layers[index]
    ends = _Ends(header, is_first=index == 0, is_last=index == len(layers) - 1)
    replaced = families.shard_tensor_plan(header, part)
    tensors: list[OutTensor] = []
    for tensor in header.tensors:
        layer = layer_of(tensor.name)
        if layer is None:
            tensors += ends.tensor(tensor, replaced)
        elif part.first <= layer < part.end:
            own = f"blk.{layer - part.first}." + tensor.name.split(".", 2)[2]
            tensors.append(_copy(tensor, own, replaced))
    return FilePlan(f"shard-{index}.gguf", _shard_fields(header, index, layers, title), tuple(tensors))


def _copy(tensor: GgufTensor, name: str, replaced: dict[str, str]) -> OutTensor:
    source = None if replaced.get(tensor.name) == "zero" else tensor
    return OutTensor(name, tensor.shape, tensor.ggml_type, tensor.nbytes, source)


class _Ends:
    """What a shard keeps of embedding and head, the tensors of no layer that it may not need. All others are copied.

    llama.cpp does not open a file without `token_embd`, though a shard that is fed hidden states never reads it; nor, for many architectures,
    one without `output`, though only the last shard computes logits. Both have a row for each token of the file's vocabulary: one in a middle shard.
    """

    def __init__(self, header: GgufHeader, *, is_first: bool, is_last: bool) -> None:
        tensors = tensors_by_name(header)
        self._head = tensors.get(HEAD)
        self._is_first, self._is_last = is_first, is_last
        embedding = tensors.get(EMBEDDING)
        self._one_name = (
            self._head is not None
            and embedding is not None
            and embedding.shape == self._head.shape
            and header.architecture in HEAD_FROM_EMBEDDING
        )

    def tensor(self, tensor: GgufTensor, replaced: dict[str, str]) -> list[OutTensor]:
        """Returns: what stands for one of the model's tensors of no layer; nothing if it can be left out."""
        whole = self._is_first and self._is_last
        if whole or not (tensor.name == EMBEDDING or tensor.name.startswith("output.")):
            return [_copy(tensor, tensor.name, replaced)]
        if tensor.name == EMBEDDING:
            if self._is_first or (self._is_last and self._head is None):
                return [_copy(tensor, EMBEDDING, replaced)]
            if self._is_last and self._one_name and self._head is not None:
                return [_copy(self._head, EMBEDDING, replaced)]
            return [self._stub(tensor)]
        if self._one_name and tensor.name == HEAD:
            return []
        return [_copy(tensor, tensor.name, replaced) if self._is_last else self._stub(tensor)]

    def _stub(self, tensor: GgufTensor) -> OutTensor:
        """Zeros for a tensor that is not read, one row for each token of the file's vocabulary, in the smallest type that the row length allows."""
        *row, n_vocab = tensor.shape
        shape = (*row, n_vocab if self._is_first or self._is_last else 1)
        is_small = not row or shape[-1] == 1
        kind = GGML_F32 if is_small else next(kind for kind in STUB_TYPES if shape[0] % GGML_TYPES[kind].block == 0)
        nbytes = prod(shape) // GGML_TYPES[kind].block * GGML_TYPES[kind].block_bytes
        return OutTensor(tensor.name, shape, kind, nbytes, None)


def _shard_fields(header: GgufHeader, index: int, layers: Sequence[LayerRange], title: str) -> Fields:
    part, arch = layers[index], header.architecture
    is_middle = 0 < index < len(layers) - 1
    fields: Fields = {
        "general.architecture": string_value(arch),
        MODEL_ID_KEY: string_value(BLANK_MODEL_ID),
        "shardnet.name": string_value(title),
        "shardnet.shard_id": u32_value(index),
        "shardnet.n_shards": u32_value(len(layers)),
        "shardnet.layer_first": u32_value(part.first),
        "shardnet.layer_end": u32_value(part.end),
        "shardnet.n_layers": u32_value(layers[-1].end),
    }
    for key, field in header.fields.items():
        if key == "general.architecture" or key == "general.alignment" or key.startswith(("split.", "shardnet.")):
            continue
        if is_middle and (key.startswith("tokenizer.") or key == f"{arch}.vocab_size"):
            continue
        fields[key] = _cut_array(field, part, header) if key.startswith(f"{arch}.") else field
    fields[f"{arch}.block_count"] = u32_value(len(part))
    if is_middle:
        fields["tokenizer.ggml.model"] = string_value("no_vocab")
        fields[f"{arch}.vocab_size"] = u32_value(1)
    for key, value in families.shard_metadata(header, part).items():
        if value is None:
            fields.pop(key, None)
        else:
            fields[key] = value
    return fields


def _cut_array(field: GgufField, part: LayerRange, header: GgufHeader) -> GgufValue | GgufField:
    """An array of the architecture's with one entry a layer is cut to the range."""
    if field.type != ValueType.ARRAY or field.count != header.n_layers:
        return field
    values: list[Any] = header.get(field.key)
    return GgufValue(ValueType.ARRAY, values[part.first : part.end], field.element)


def _plan_tokenizer(header: GgufHeader) -> FilePlan:
    """The vocabulary and the chat template by themselves, for a coordinator that holds no weights."""
    keep = ("general.", "tokenizer.", f"{header.architecture}.")
    fields: Fields = {
        key: field for key, field in header.fields.items() if key.startswith(keep) and key != "general.alignment"
    }
    fields["general.architecture"] = string_value(header.architecture)
    return FilePlan(TOKENIZER_FILE, fields, ())
