"""Tensors of a checkpoint as those of a GGUF: their names, types and shapes, and how their bytes are made when they are asked for.

Names come from the `gguf` package's map. Rows are read block by block, so that memory stays flat whatever the model's size.
Refuses to know keys and vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import CheckpointConfig
from shardnet.inference.conversion.families import ConvertedFamily
from shardnet.inference.conversion.keys import Sizes
from shardnet.inference.conversion.rope import Tables
from shardnet.inference.conversion.weights import BF16, Array, Weight
from shardnet.inference.gguf.header import Buffer, GgufTensor

EMBEDDING, HEAD, NORM = "token_embd.weight", "output.weight", "output_norm.weight"
F32 = np.dtype("<f4")
NUMBERS = {F32: 0, np.dtype("<f2"): 1, BF16: 30}
"""numpy dtype -> ggml type."""

_IGNORED = re.compile(r"(rotary_emb\.inv_freq|rope\.freqs|masked_bias|\.attn\.bias)$")
"""Tables that older versions of transformers saved and newer ones compute."""
_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(\w+\.weight)$")
_LANGUAGE = re.compile(r"^(model\.language_model\.|language_model\.model\.)")
_LANGUAGE_HEAD = "language_model.lm_head."
_OTHER_SENSES = re.compile(r"^(model\.)?(vision_tower|vision_model|multi_modal_projector|audio_tower|embed_vision)\.")
"""Towers of models that take pictures as well: the language model is what is converted."""
_ALWAYS_F32 = re.compile(r"(_norm|\.ffn_gate_inp)\.weight$")
"""Source: llama.cpp's converter; most of llama.cpp takes norms and routers in F32 only."""

Change = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Made:
    """`TensorData` of converted weights, one after the other. `multiple`: rows that must be changed together."""

    weights: tuple[Weight, ...]
    dtype: np.dtype[Any]
    change: Change | None = None
    multiple: int = 1

    def pieces(self, tensor: GgufTensor) -> Iterator[Buffer]:
        """Yield the bytes of `tensor`, each piece in memory of its own."""
        for weight in self.weights:
            for block in weight.blocks(self.multiple):
                changed = block if self.change is None else self.change(block)
                yield np.ascontiguousarray(changed, self.dtype).view(np.uint8).reshape(-1).data


@dataclass(frozen=True, slots=True)
class Table:
    """`TensorData` of a few numbers that are known already: float32 (n,)."""

    values: Array

    def pieces(self, tensor: GgufTensor) -> Iterator[Buffer]:
        """Yield the bytes of `tensor`."""
        yield self.values.astype(F32).tobytes()


@dataclass(frozen=True, slots=True)
class _Entry:
    """What stands for one tensor of the GGUF: `name` as the checkpoint's, `shape` in numpy's order."""

    name: str
    shape: tuple[int, ...]
    weights: tuple[Weight, ...]
    change: Change | None = None
    multiple: int = 1


def convert_tensors(
    weights: dict[str, Weight],
    config: CheckpointConfig,
    family: ConvertedFamily,
    sizes: Sizes,
    tables: Tables,
    source: Path,
) -> tuple[GgufTensor, ...]:
    """Returns: the GGUF's tensors, those of no layer first, then layer by layer.

    Args: tables: tensors that are no weights. source: the file or folder that an error names.
    Raises: CheckpointError if there is a tensor that llama.cpp does not know, one is missing, or has other sizes than config.json says.
    """
    names = gguf.get_tensor_name_map(_architecture(family), sizes.n_layers)
    found: dict[str, GgufTensor] = {name: _table(name, values, source) for name, values in tables.items()}
    is_tied = family.is_tied if config.is_tied is None else config.is_tied
    for entry in _entries(weights, is_tied, sizes):
        name = names.get_name(entry.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise CheckpointError(
                f"tensor {entry.name!r} in {entry.weights[0].stored.path} is none that llama.cpp knows of {family.architecture} models"
            )
        if name in found:
            raise CheckpointError(f"two tensors of {source} would both be {name}: {entry.name!r} is one of them")
        found[name] = _tensor(name, _changed(entry, name, family, sizes))
    _check_complete(found, sizes, source, is_tied=is_tied)
    return tuple(sorted(found.values(), key=_place))


def _architecture(family: ConvertedFamily) -> Any:
    return next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)


def _entries(weights: dict[str, Weight], is_tied: bool, sizes: Sizes) -> Iterator[_Entry]:
    """Yield what each tensor of the GGUF is made of: experts together, a tied head not at all, a tower for pictures neither.

    Raises: CheckpointError if an expert is missing, or is not like the others.
    """
    experts: dict[str, dict[int, Weight]] = {}
    for stored_name, weight in weights.items():
        if _IGNORED.search(stored_name) or _OTHER_SENSES.match(stored_name):
            continue
        name = _LANGUAGE.sub("model.", stored_name).replace(_LANGUAGE_HEAD, "lm_head.")
        if is_tied and name == "lm_head.weight":
            continue
        if match := _EXPERT.match(name):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = weight
        else:
            yield _Entry(name, weight.shape, (weight,))
    for name, by_number in experts.items():
        together = tuple(by_number[number] for number in sorted(by_number))
        shapes = {weight.shape for weight in together}
        if sorted(by_number) != list(range(sizes.n_experts)) or len(shapes) > 1:
            raise CheckpointError(
                f"the {len(by_number)} experts of {name!r} in {together[0].stored.path} are not {sizes.n_experts} of one shape: "
                "the checkpoint is incomplete"
            )
        yield _Entry(name, (sizes.n_experts, *together[0].shape), together)


def _changed(entry: _Entry, name: str, family: ConvertedFamily, sizes: Sizes) -> _Entry:
    """Returns: the entry with what its family asks for. Raises: CheckpointError if its shape is not what config.json says."""
    due = _due_shape(name, family, sizes)
    if due is not None and entry.shape != due[: len(entry.shape)]:
        raise CheckpointError(
            f"tensor {entry.name!r} has the shape {list(entry.shape)}, where config.json asks for {list(due)}: "
            "config and weights are not of one model"
        )
    if family.has_permuted_rope and (".attn_q." in name or ".attn_k." in name):
        return replace(entry, change=_Interleave(sizes.head_dim), multiple=sizes.head_dim)
    if family.norms_add_one and name.endswith("_norm.weight"):
        return replace(entry, change=_ScaledNorm(sizes.q_norm_scale if ".attn_q_norm." in name else 1.0))
    return entry


def _due_shape(name: str, family: ConvertedFamily, sizes: Sizes) -> tuple[int, ...] | None:
    """Returns: the shape that config.json asks for, in numpy's order; a bias has its first part. None where it does not say."""
    q, kv = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    n_up = sizes.n_ff * (2 if family.has_fused_parts else 1)
    due: dict[str, tuple[int, ...]] = {
        "token_embd": (sizes.n_vocab, sizes.n_embd),
        "output": (sizes.n_vocab, sizes.n_embd),
        "output_norm": (sizes.n_embd,),
        "attn_q": (q, sizes.n_embd),
        "attn_k": (kv, sizes.n_embd),
        "attn_v": (kv, sizes.n_embd),
        "attn_qkv": (q + 2 * kv, sizes.n_embd),
        "attn_output": (sizes.n_embd, q),
        "ffn_gate": (sizes.n_ff, sizes.n_embd),
        "ffn_up": (n_up, sizes.n_embd),
        "ffn_down": (sizes.n_embd, sizes.n_ff),
        "ffn_gate_exps": (sizes.n_experts, sizes.n_ff, sizes.n_embd),
        "ffn_up_exps": (sizes.n_experts, sizes.n_ff, sizes.n_embd),
        "ffn_down_exps": (sizes.n_experts, sizes.n_embd, sizes.n_ff),
        "ffn_gate_inp": (sizes.n_experts, sizes.n_embd),
    }
    return due.get(name.split(".")[-2])


@dataclass(frozen=True, slots=True)
class _Interleave:
    """Rows of each head: values j and j + d/2, which transformers turns together, become neighbours 2j and 2j + 1."""

    head_dim: int

    def __call__(self, rows: Array) -> Array:
        halves = rows.reshape(-1, 2, self.head_dim // 2, *rows.shape[1:])
        return halves.swapaxes(1, 2).reshape(rows.shape)


@dataclass(frozen=True, slots=True)
class _ScaledNorm:
    """(1 + weight) * scale."""

    scale: float

    def __call__(self, rows: Array) -> Array:
        return (rows.astype(np.float32) + 1) * np.float32(self.scale)


def _tensor(name: str, entry: _Entry) -> GgufTensor:
    is_f32 = len(entry.shape) <= 1 or _ALWAYS_F32.search(name) or not name.endswith(".weight")
    dtypes = {weight.dtype for weight in entry.weights}
    dtype = F32 if is_f32 or len(dtypes) > 1 else dtypes.pop()
    shape = tuple(reversed(entry.shape)) or (1,)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    made = Made(entry.weights, dtype, entry.change, entry.multiple)
    return GgufTensor(name, shape, NUMBERS[dtype], 0, nbytes, entry.weights[0].stored.path, made)


def _table(name: str, values: Array, source: Path) -> GgufTensor:
    return GgufTensor(name, values.shape, NUMBERS[F32], 0, 4 * values.size, source, Table(values))


def _place(tensor: GgufTensor) -> tuple[int, str]:
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    return (int(match[1]) if match else -1), tensor.name


def _check_complete(found: dict[str, GgufTensor], sizes: Sizes, source: Path, *, is_tied: bool) -> None:
    """Every layer must have what the others have, and every model an embedding, a norm behind the layers, and a head or one that is tied."""
    missing = {EMBEDDING, NORM, *(() if is_tied else (HEAD,))} - found.keys()
    parts: dict[str, set[int]] = {}
    for name in found:
        if name.startswith("blk."):
            _, layer, part = name.split(".", 2)
            parts.setdefault(part, set()).add(int(layer))
    missing |= {
        f"blk.{layer}.{part}" for part, layers in parts.items() for layer in set(range(sizes.n_layers)) - layers
    }
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{source} has no tensor for {min(missing)}{more}: the checkpoint is incomplete")
