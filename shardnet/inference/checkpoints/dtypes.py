"""The SafeTensors dtypes that are taken, and what numpy calls them.

Importing `ml_dtypes` teaches numpy BF16 and F8: without it the `safetensors` package refuses BF16. F8 it refuses in numpy anyway, so those
bytes are read by `sharded` itself. Source: safetensors, enum Dtype; ml_dtypes' README.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

UNKNOWN_TO_SAFETENSORS_NUMPY = frozenset({"F8_E4M3", "F8_E5M2"})
