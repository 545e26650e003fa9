"""ggml's kernels for rows of weights: to float32 and from it, by ctypes out of the library that llama-cpp-python ships.

They let go of the interpreter's lock while they compute, so threads run them side by side. Knows addresses and counts; refuses to know tensors
and files.

Source: ggml.h of the ggml that llama-cpp-python 0.3.36 carries: `ggml_quantize_chunk`, `ggml_validate_row_data`, `struct ggml_type_traits`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from shardnet.errors import EngineError, GgufError
from shardnet.inference.gguf.element_types import GGML_F32, GGML_TYPES

QUANTISATION_VERSION = 2
"""Of the blocks' layout: `GGML_QNT_VERSION`."""

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
ToFloat = Callable[[int, int, int], None]
"""`(address of blocks, address of float32s, number of weights)`."""


class _TypeTraits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def _library() -> Any:
    from llama_cpp._ggml import libggml

    number, size, address = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    count = ctypes.c_int64
    libggml.ggml_quantize_chunk.restype = size
    libggml.ggml_quantize_chunk.argtypes = [number, address, address, count, count, count, address]
    libggml.ggml_validate_row_data.restype = ctypes.c_bool
    libggml.ggml_validate_row_data.argtypes = [number, address, size]
    libggml.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    libggml.ggml_get_type_traits.argtypes = [number]
    return libggml


def _copy_floats(source: int, target: int, n_weights: int) -> None:
    ctypes.memmove(target, source, 4 * n_weights)


@cache
def to_float(ggml_type: int) -> ToFloat:
    """Returns: the kernel that makes float32 of a type's blocks.

    Raises: GgufError if ggml has none for this type; EngineError if this ggml is not the one that the code was written for.
    """
    kind = GGML_TYPES[ggml_type]
    if ggml_type == GGML_F32:
        return _copy_floats
    traits = _library().ggml_get_type_traits(ggml_type).contents
    if (traits.blck_size, traits.type_size) != (kind.block, kind.block_bytes):
        raise EngineError(
            f"this ggml keeps {kind.name} otherwise than expected; install the llama-cpp-python that shardnet asks for"
        )
    if not traits.to_float or (kind.block == 1 and kind.name not in ("F16", "BF16")):
        raise GgufError(f"weights of type {kind.name} cannot be made into another type")
    kernel: ToFloat = _TO_FLOAT(traits.to_float)
    return kernel


def quantise_rows(
    ggml_type: int, source: int, target: int, n_rows: int, row_length: int, importance: int | None = None
) -> int:
    """Make blocks of float32 rows.

    Args:
        source: address of `n_rows` rows of `row_length` float32s.
        target: address of the room for the blocks.
        importance: address of `row_length` float32s, how much each column matters.

    Returns: bytes written.
    """
    return int(_library().ggml_quantize_chunk(ggml_type, source, target, 0, n_rows, row_length, importance))


def is_sound(ggml_type: int, data: int, nbytes: int) -> bool:
    """Returns: whether no scale among the blocks, and no weight of a float type, is infinite or not a number."""
    return bool(_library().ggml_validate_row_data(ggml_type, data, nbytes))
