"""A model in other types: a GGUF that is nowhere yet, made of another one.

Knows what `llama-quantize` makes of a whole model, and promises the same bytes: types, order of tensors, metadata. Refuses to know how it is cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace

from shardnet.errors import GgufError, UsageError
from shardnet.inference.gguf.element_types import GGML_TYPES
from shardnet.inference.gguf.header import GgufHeader, GgufTensor
from shardnet.inference.gguf.writer import made_field, u32_value
from shardnet.inference.quantising.importance import ImportanceMatrix
from shardnet.inference.quantising.kernels import QUANTISATION_VERSION, to_float
from shardnet.inference.quantising.losses import LossReport, TensorLoss
from shardnet.inference.quantising.mixtures import FILE_TYPE, checked_kind, choose_types, in_llama_order
from shardnet.inference.quantising.rows import QuantisedData
from shardnet.manifest import LONGEST_NAME


def quantise(
    header: GgufHeader,
    kind: str,
    imatrix: ImportanceMatrix | None = None,
    *,
    allow_requantize: bool = False,
    threads: int = 0,
) -> GgufHeader:
    """Turn a whole model into one whose weights have other types. Nothing is read yet but the header.

    Args:
        header: of a whole model: on disk, in parts, or nowhere yet.
        kind: `mixtures.KINDS`: q8_0, q4_k_m, ...
        imatrix: how much each column matters.
        allow_requantize: weights that are quantised already may become another type; what the first quantisation lost stays lost.
        threads: how many compute; 0 for all cores that this process may use.

    Returns: a header whose tensors' `data` make their bytes; those that keep their type are the source's. Written whole, it is what
        `llama_model_quantize` writes.

    Raises: UsageError (no such kind, or quantised already), GgufError (the importance matrix is of another model; a type that cannot be made
        into another).
    """
    kind = checked_kind(kind)
    n_threads = threads or usable_cores()
    types = choose_types(header, kind, has_importance=imatrix is not None)
    if not allow_requantize:
        _refuse_quantised(header, types, kind)
    tensors = tuple(
        _changed(tensor, types[tensor.name], imatrix, n_threads) for tensor in in_llama_order(header.tensors)
    )
    if imatrix is not None and not any(tensor.name in imatrix.columns for tensor in header.tensors):
        raise GgufError(f"{imatrix.path} is not of this model: it says nothing of any of its tensors")
    fields = {key: field for key, field in header.fields.items() if not key.startswith("split.")}
    for key, number in (
        ("general.quantization_version", QUANTISATION_VERSION),
        ("general.file_type", FILE_TYPE[kind]),
    ):
        fields.pop(key, None)  # to the end, where llama.cpp puts what it sets
        fields[key] = made_field(key, u32_value(number), header.path)
    recipe = [header.recipe, f"quantised to {kind}", f"importance {imatrix.sha256}" if imatrix else ""]
    return replace(
        header,
        fields=fields,
        tensors=tensors,
        recipe=", ".join(part for part in recipe if part),
        file_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def usable_cores() -> int:
    """Returns: processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quantised_name(name: str, kind: str) -> str:
    """Returns: what a model of this name is called once it is of another kind: `Llama-3-8B-BF16` becomes `Llama-3-8B-Q4_K_M`."""
    kinds = "|".join(sorted(FILE_TYPE, key=len, reverse=True))
    stem = re.sub(rf"[-._]({kinds})$", "", name, flags=re.IGNORECASE)
    ending = f"-{checked_kind(kind).upper()}"
    return f"{stem[: LONGEST_NAME - len(ending)].rstrip('-._')}{ending}"


def is_quantised(ggml_type: int) -> bool:
    """Returns: whether weights of this type have lost something already."""
    return GGML_TYPES[ggml_type].block > 1


def _refuse_quantised(header: GgufHeader, types: dict[str, int], kind: str) -> None:
    """Source: llama_model_quantize refuses likewise unless `allow_requantize` is set; what keeps its type is copied."""
    again = [one for one in header.tensors if is_quantised(one.ggml_type) and types[one.name] != one.ggml_type]
    if again:
        found = ", ".join(sorted({tensor.type_name for tensor in again}))
        raise UsageError(
            f"{header.path} is quantised already ({found} in {len(again)} tensors): made {kind} from that, it would lose more than made from "
            "the original; fetch that, or say --allow-requantize"
        )


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


def losses_of(tensors: Iterable[GgufTensor]) -> LossReport | None:
    """What quantising lost, once it is done.

    Args:
        tensors: of a model that `quantise` made, those that have been written.

    Returns: None if none of them was quantised.
    """
    losses = []
    before = after = unmeasured = 0
    for tensor in tensors:
        data = tensor.data
        source = data.source if isinstance(data, QuantisedData) else tensor
        before, after = before + source.nbytes, after + tensor.nbytes
        if not isinstance(data, QuantisedData):
            continue
        if data.sums is None:
            unmeasured += 1
        else:
            sizes = source.nbytes, tensor.nbytes
            is_weighed = data.importance is not None
            losses.append(TensorLoss(tensor.name, source.type_name, tensor.type_name, *sizes, data.sums, is_weighed))
    return LossReport(tuple(losses), before, after, unmeasured) if losses else None
