"""ggml's devices by name, for llama.cpp's loader: which GPUs in which order, what share each gets, and tensors that go elsewhere.

The arrays must live as long as the load does: keep the `Placing` until then. Source: llama.h (`llama_model_params`), ggml-backend.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp

from shardnet.errors import EngineError

PLAIN = "CPU, plain"
"""Names main memory in which weights lie as they do in their file, where "CPU" leaves it to llama.cpp to lay them out anew."""
_ALIGNMENT = 64
"""Of memory that ggml wraps, at least: TENSOR_ALIGNMENT in ggml-impl.h is 32."""


class _Override(ctypes.Structure):
    """`llama_model_tensor_buft_override`: the last one of an array holds nothing."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Placing:
    """Where a model's layers go, as llama.cpp is told.

    Attributes:
        n_gpu_layers: so many of the last, the head counted. 0: the processor alone computes, where llama.cpp would have a GPU do large batches.
        devices: GPUs in the order in which they are given layers; none: all that there are.
        tensor_split: each device's share; none: by free memory.
        overrides: (regular expression of tensor names, device), the first that fits counts.
    """

    n_gpu_layers: int = 0
    devices: Sequence[str] = ()
    tensor_split: Sequence[float] = ()
    overrides: Sequence[tuple[str, str]] = ()

    def put_into(self, params: Any) -> list[Any]:
        """Fill `llama_model_params`. Returns: arrays that must outlive the load. Raises: EngineError if a device is not there."""
        kept: list[Any] = []
        params.n_gpu_layers = self.n_gpu_layers
        if self.devices or not self.n_gpu_layers:
            array = (ctypes.c_void_p * (len(self.devices) + 1))(*(_device(name) for name in self.devices), None)
            params.devices = ctypes.cast(array, ctypes.c_void_p)
            kept.append(array)
        if self.tensor_split:
            shares = (ctypes.c_float * llama_cpp.llama_max_devices())(*self.tensor_split)
            params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
            kept.append(shares)
        if self.overrides:
            rows = [_Override(pattern.encode(), _buffer_type(name)) for pattern, name in self.overrides]
            overrides = (_Override * (len(rows) + 1))(*rows, _Override(None, None))
            params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
            kept.append(overrides)
        return kept


def _function(name: str, *arguments: Any) -> Any:
    """The functions live in libggml, which finds those of libggml-base."""
    from llama_cpp._ggml import libggml

    function = getattr(libggml, name)
    function.restype, function.argtypes = ctypes.c_void_p, list(arguments)
    return function


def _device(name: str) -> int:
    found = _function("ggml_backend_dev_by_name", ctypes.c_char_p)(name.encode())
    if not found:
        raise EngineError(f"llama.cpp has no device {name}")
    return int(found)


def _buffer_type(name: str) -> int:
    """Returns: the type of a device's own buffers; of main memory for the processor."""
    if name == "CPU":
        return int(_function("ggml_backend_cpu_buffer_type")())
    if name == PLAIN:
        return _plain_buffer_type()
    return int(_function("ggml_backend_dev_buffer_type", ctypes.c_void_p)(_device(name)))


def _plain_buffer_type() -> int:
    """Returns: the type that a buffer around somebody's memory has: main memory, but not the type at which llama.cpp chooses a layout itself."""
    memory = (ctypes.c_char * (2 * _ALIGNMENT))()
    address = -(-ctypes.addressof(memory) // _ALIGNMENT) * _ALIGNMENT
    buffer = _function("ggml_backend_cpu_buffer_from_ptr", ctypes.c_void_p, ctypes.c_size_t)(address, _ALIGNMENT)
    found = _function("ggml_backend_buffer_get_type", ctypes.c_void_p)(buffer)
    _function("ggml_backend_buffer_free", ctypes.c_void_p)(buffer)
    return int(found)
