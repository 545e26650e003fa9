"""A small model in every type that llama.cpp quantises to."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from shardnet.inference.llama.model import start_backend

QUANTISATIONS = {
    "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q2_K_S": 21, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ1_S": 24, "IQ1_M": 31, "IQ2_XXS": 19, "IQ2_XS": 20,
    "IQ2_S": 28, "IQ2_M": 29, "IQ3_XXS": 23, "IQ3_XS": 22, "IQ3_S": 26, "IQ3_M": 27, "IQ4_NL": 25, "IQ4_XS": 30, "TQ1_0": 36, "TQ2_0": 37,
    "MXFP4": 38, "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip
"""Name -> `llama_ftype` of llama.h. Mixtures (Q4_K_M) use several types at once."""
MIXTURES = frozenset({"Q2_K", "Q3_K_M", "Q3_K_L", "Q4_K_M", "Q5_K_M", "IQ2_M", "IQ3_M", "IQ3_XS"})


def quantise(source: Path, target: Path, quantisation: str) -> Path:
    """Write a float model in another type, with llama.cpp's own quantiser. Rows must be multiples of 256 for most types.

    Returns: `target`.
    """
    # The smallest types want to know which columns matter: here all of them do, equally.
    ones = {t.name: np.ones(int(t.shape[0]), dtype=np.float32) for t in GGUFReader(source).tensors if len(t.shape) > 1}
    return llama_quantise(source, target, quantisation, ones, pure=quantisation not in MIXTURES)


def llama_quantise(
    source: Path,
    target: Path,
    quantisation: str,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    *,
    pure: bool = False,
    threads: int = 1,
) -> Path:
    """Run `llama_model_quantize`; what is quantised already may be quantised again.

    Args:
        importance: tensor name -> float32, one number for each column (of each expert).
        pure: one type for all.

    Returns: `target`. Raises: ValueError if llama.cpp refuses.
    """
    start_backend()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTISATIONS[quantisation]
    params.nthread, params.pure, params.allow_requantize = threads, pure, True
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, columns) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), columns.size
            entry.data = ctypes.cast(columns.ctypes.data, ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code != 0:
        raise ValueError(f"llama.cpp does not quantise {source.name} to {quantisation} (code {code})")
    return target
