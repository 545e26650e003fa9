"""A model in other types: a GGUF that is nowhere yet, made of another one.

Knows what `llama-quantize` makes of a whole model, and promises the same bytes: types, order of tensors, metadata. Refuses to know how it is cut.
"""

from __future__ import annotations

import os
from dataclasses import replace

from shardnet.errors import GgufError
from shardnet.inference.gguf.element_types import GGML_TYPES
from shardnet.inference.gguf.header import GgufField, GgufHeader, GgufTensor, ValueType
from shardnet.inference.gguf.writer import encode_value, u32_value
from shardnet.inference.quantising.importance import ImportanceMatrix
from shardnet.inference.quantising.kernels import QUANTISATION_VERSION, to_float
from shardnet.inference.quantising.losses import LossReport, TensorLoss
from shardnet.inference.quantising.mixtures import FILE_TYPE, checked_kind, choose_types, in_llama_order
from shardnet.inference.quantising.rows import QuantisedData


def quantise(header: GgufHeader, kind: str, imatrix: ImportanceMatrix | None = None, *, threads: int = 0) -> GgufHeader:
    """Turn a whole model into one whose weights have other types. Nothing is read yet but the header.

    Args:
        header: of a whole model: on disk, in parts, or nowhere yet.
        kind: `mixtures.KINDS`: q8_0, q4_k_m, ...
        imatrix: how much each column matters.
        threads: how many compute; 0 for all cores that this process may use.

    Returns: a header whose tensors' `data` make their bytes; those that keep their type are the source's. Written whole, it is what
        `llama_model_quantize` writes.

    Raises: UsageError (no such kind), GgufError (the importance matrix is of another model; a type that cannot be made into another).
    """
    kind = checked_kind(kind)
    n_threads = threads or usable_cores()
    types = choose_types(header, kind, has_importance=imatrix is not None)
    tensors = tuple(
        _changed(tensor, types[tensor.name], imatrix, n_threads) for tensor in in_llama_order(header.tensors)
    )
    fields = dict(header.fields)
    for key, number in (
        ("general.quantization_version", QUANTISATION_VERSION),
        ("general.file_type", FILE_TYPE[kind]),
    ):
        fields.pop(key, None)  # to the end, where llama.cpp puts what it sets
        fields[key] = _u32_field(header, key, number)
    recipe = ", ".join(
        part
        for part in (header.recipe, f"quantised to {kind}", f"importance {imatrix.sha256}" if imatrix else "")
        if part
    )
    return replace(
        header, fields=fields, tensors=tensors, recipe=recipe, file_bytes=sum(tensor.nbytes for tensor in tensors)
    )


def usable_cores() -> int:
    """Returns: processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _changed(tensor: GgufTensor, ggml_type: int, imatrix: ImportanceMatrix | None, n_threads: int) -> GgufTensor:
    if ggml_type == tensor.ggml_type:
        return tensor
    try:
        to_float(tensor.ggml_type)
    except GgufError as error:
        raise GgufError(f"{tensor.path}, tensor {tensor.name!r}: {error}") from error
    kind = GGML_TYPES[ggml_type]
    data = QuantisedData(tensor, imatrix.of(tensor) if imatrix else None, n_threads)
    nbytes = tensor.n_elements // kind.block * kind.block_bytes
    return replace(tensor, ggml_type=ggml_type, offset=0, nbytes=nbytes, data=data)


def _u32_field(header: GgufHeader, key: str, number: int) -> GgufField:
    raw = encode_value(u32_value(number))[4:]
    return GgufField(key, ValueType.UINT32, 0, len(raw), None, 1, header.path, raw)


def losses_of(header: GgufHeader) -> LossReport | None:
    """Returns: what each tensor lost that `quantise` changed and that has been written since; None for a model that was not quantised."""
    losses = []
    before = after = 0
    for tensor in header.tensors:
        data = tensor.data
        source = data.source if isinstance(data, QuantisedData) else tensor
        before, after = before + source.nbytes, after + tensor.nbytes
        if isinstance(data, QuantisedData):
            losses.append(
                TensorLoss(tensor.name, source.type_name, tensor.type_name, source.nbytes, tensor.nbytes, data.sums)
            )
    is_quantised = losses or "quantised to" in header.recipe
    return LossReport(tuple(losses), before, after) if is_quantised else None
