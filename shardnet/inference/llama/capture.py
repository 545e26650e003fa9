"""Reading a shard's raw output, `l_out-{n_layer - 1}`, out of llama.cpp's graph, and where needed putting its raw input in.

llama.cpp's own "embeddings" come after the final norm and are useless between stages. The eval callback sees every graph node by name; it copies the
wanted one and stops the graph there. `native/capture.c` is the fast form of it, built with the package where a C compiler is; without it
the same logic runs in Python, about a microsecond a node slower.

A few families treat whatever comes in as embeddings of tokens: Gemma 2 scales it by sqrt(n_embd), which no input can undo bit by bit. For these
the callback overwrites the node that leaves that step (`INPUT_NODES`) with the predecessor's output, before anything reads it.

Source: ggml's `ggml_backend_sched_set_eval_callback` in ggml-backend.h.
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from shardnet.errors import EngineError

MAX_NAME = 64  # GGML_MAX_NAME

_tensor_name = libggml.ggml_get_name
_tensor_name.restype, _tensor_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
_tensor_bytes = libggml.ggml_nbytes
_tensor_bytes.restype, _tensor_bytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
_tensor_read = libggml.ggml_backend_tensor_get
_tensor_read.restype = None
_tensor_read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
_tensor_write = libggml.ggml_backend_tensor_set
_tensor_write.restype = None
_tensor_write.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

INPUT_NODES = {
    "afmoe": "inp_embd_scaled",
    "bloom": "inp_norm-0",
    "cogvlm": "embd",
    "gemma": "inp_scaled",
    "gemma2": "inp_scaled",
    "glm4": "embd",
    "glm4moe": "embd",
    "muse-glimmer": "embd_norm",
}
"""Architecture -> the node that holds the first layer's input after scaling or norm. Source: llama.cpp's src/models/*.cpp."""

FED_AS_TOKENS = frozenset({"cogvlm", "glm4", "glm4moe"})
"""Families that take hidden states for pictures, or refuse them: they are given token 0 for each row, and the row itself in `INPUT_NODES`."""

OUTPUT_NODES = {
    "nemotron_h": "nemotron_h_block_out",
    "nemotron_h_moe": "nemotron_h_block_out",
}
"""Architecture -> what it calls a layer's output, where that is not `l_out`."""

NEVER = b"\n"
"""A name that no node has."""

OnLayer = Callable[[int], None]
"""Called with the index of a layer, within its file, when it was computed; in the middle of a graph, so it must be quick."""


class CaptureState(ctypes.Structure):
    """Mirrors `struct capture_state` of native/capture.c."""

    _fields_ = (
        ("name_of", ctypes.c_void_p),
        ("bytes_of", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("capacity", ctypes.c_size_t),
        ("used", ctypes.c_size_t),
        ("overflow", ctypes.c_int),
        ("write", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("input_bytes", ctypes.c_size_t),
        ("input_used", ctypes.c_size_t),
        ("wanted", ctypes.c_char * MAX_NAME),
        ("input_node", ctypes.c_char * MAX_NAME),
    )


def native_functions(*names: str) -> tuple[Any, ...] | None:
    """Returns: functions of `native/*.c`; None where the package was built without a compiler, or from sources without one of them."""
    library = Path(__file__).with_name(f"_capture{sysconfig.get_config_var('EXT_SUFFIX') or '.so'}")
    if not library.exists():
        return None
    try:
        loaded = ctypes.CDLL(str(library))
        return tuple([getattr(loaded, name) for name in names])
    except (OSError, AttributeError):
        return None


def _native_callback() -> Any | None:
    """Returns: the compiled callback, if there is one."""
    found = native_functions("shardnet_capture_2")
    return None if found is None else ctypes.cast(found[0], llama_cpp.ggml_backend_sched_eval_callback)


NATIVE_CALLBACK = _native_callback()


def output_node(architecture: str, layer: int) -> bytes:
    """Returns: the name of the node with a layer's raw output."""
    return f"{OUTPUT_NODES.get(architecture, 'l_out')}-{layer}".encode()


OnExperts = Callable[[int, Sequence[int]], None]
"""Called with a layer and the experts that its router chose for the rows of a batch, before any of them is computed."""


class LayerWatch:
    """Sees each layer of a graph end, and what its router chose. The graph is computed in as many pieces for it, which changes no number."""

    def __init__(
        self, n_layers: int, on_layer: OnLayer, architecture: str = "", on_experts: OnExperts | None = None
    ) -> None:
        self._layers = {output_node(architecture, layer): layer for layer in range(n_layers)}
        self._on_layer = on_layer
        self._on_experts = on_experts
        self._routers = {f"ffn_moe_topk-{layer}".encode(): layer for layer in range(n_layers) if on_experts}

    def wants(self, name: bytes) -> bool:
        """True for the node that ends a layer, and that with its router's choice."""
        return name in self._layers or name in self._routers

    def see(self, name: bytes, tensor: int) -> None:
        """A node was computed."""
        if self._on_experts is not None and (layer := self._routers.get(name)) is not None:
            self._on_experts(layer, _numbers_in(tensor))
        if (layer := self._layers.get(name)) is not None:
            self._on_layer(layer)


def _numbers_in(tensor: int) -> list[int]:
    """Returns: the different numbers of an int32 matrix, whose rows may lie apart. Source: `struct ggml_tensor` in ggml.h: type, buffer, ne, nb."""
    sizes = (ctypes.c_int64 * 4).from_address(tensor + 16)
    strides = (ctypes.c_size_t * 4).from_address(tensor + 48)
    data = np.empty(_tensor_bytes(tensor), dtype=np.uint8)
    _tensor_read(tensor, data.ctypes.data, 0, data.nbytes)
    rows = np.lib.stride_tricks.as_strided(
        data.view(np.int32), (sizes[1], sizes[0]), (strides[1], strides[0]), writeable=False
    )
    return [int(number) for number in np.unique(rows)]


class OutputCapture:
    """Collects the rows of one named graph node and ends the graph there; puts rows in place of another.

    Args:
        layer: index, within the shard, of its last layer; None for a shard that gives logits, which has no rows to collect.
        n_embd: width of a hidden state.
        max_rows: most rows of one llama.cpp batch.
        native: use the compiled callback if there is one.
        architecture: `general.architecture`, since the names of nodes differ.
        takes_input: there will be rows for `replace_input`.
        watch: told of every layer that was computed; only the callback in Python does that.
    """

    def __init__(
        self,
        layer: int | None,
        n_embd: int,
        max_rows: int,
        *,
        native: bool = True,
        architecture: str = "",
        takes_input: bool = False,
        watch: LayerWatch | None = None,
    ) -> None:
        self._rows: NDArray[np.float32] = np.empty((max_rows if layer is not None else 0, n_embd), dtype=np.float32)
        self._input: NDArray[np.float32] | None = None
        self._state = CaptureState(
            name_of=ctypes.cast(_tensor_name, ctypes.c_void_p),
            bytes_of=ctypes.cast(_tensor_bytes, ctypes.c_void_p),
            read=ctypes.cast(_tensor_read, ctypes.c_void_p),
            rows=self._rows.ctypes.data,
            capacity=self._rows.nbytes,
            write=ctypes.cast(_tensor_write, ctypes.c_void_p),
            wanted=NEVER if layer is None else output_node(architecture, layer),
            input_node=INPUT_NODES[architecture].encode() if takes_input else NEVER,
        )
        self.takes_input = takes_input
        self._watch = watch or LayerWatch(0, lambda _layer: None)
        self.is_native = native and watch is None and NATIVE_CALLBACK is not None
        self.callback = (
            NATIVE_CALLBACK if self.is_native else llama_cpp.ggml_backend_sched_eval_callback(self._in_python)
        )
        self.user_data = ctypes.cast(ctypes.pointer(self._state), ctypes.c_void_p)

    def _in_python(self, tensor: int, ask: bool, _user_data: int | None) -> bool:
        state = self._state
        name = _tensor_name(tensor)
        replaced = state.input_bytes > 0 and name == state.input_node
        if ask:
            return replaced or name == state.wanted or self._watch.wants(name)
        count = _tensor_bytes(tensor)
        if replaced:
            if count > state.input_bytes - state.input_used:
                return False
            _tensor_write(tensor, state.input + state.input_used, 0, count)
            state.input_used += count
            return True
        self._watch.see(name, tensor)
        if name != state.wanted:
            return True
        if count > state.capacity - state.used:
            state.overflow = 1
            return False
        _tensor_read(tensor, state.rows + state.used, 0, count)
        state.used += count
        return False

    def reset(self) -> None:
        """Forget the rows of the last batch, both ways."""
        self._state.used = 0
        self._state.overflow = 0
        self._state.input_used = 0
        self._state.input_bytes = 0
        self._input = None

    def replace_input(self, rows: NDArray[np.float32]) -> None:
        """Let the next batch compute with these rows, float32 (n_tokens, n_embd), as the first layer's input."""
        self._input = np.ascontiguousarray(rows, dtype=np.float32)  # kept alive over the call
        self._state.input = self._input.ctypes.data
        self._state.input_bytes = self._input.nbytes

    def check_input(self) -> None:
        """Raises: EngineError if the rows of the last batch did not all get into the node they were meant for."""
        if self._state.input_used != self._state.input_bytes:
            raise EngineError(f"llama.cpp's node {self._state.input_node.decode()} is not what shardnet takes it for")

    @property
    def address(self) -> int:
        """Returns: where the `struct capture_state` is."""
        return ctypes.addressof(self._state)

    def first_row(self) -> memoryview:
        """Returns: the bytes of the first row, float32 (n_embd,), a view that each batch overwrites."""
        return self._rows[:1].data.cast("B")

    def rows(self, n_tokens: int) -> NDArray[np.float32]:
        """Returns: float32 (n_tokens, n_embd), a view that the next batch overwrites.

        Raises: EngineError if the graph did not give exactly these rows: the family names its layer output differently.
        """
        wanted = n_tokens * self._rows.shape[1] * 4
        if self._state.overflow or self._state.used != wanted:
            raise EngineError(
                f"this model family does not offer its layer output to shardnet ({self._state.used} of {wanted} bytes of "
                f"{self._state.wanted.decode()}): it cannot be split"
            )
        return self._rows[:n_tokens]


class LayerProbe:
    """Collects the outputs of several layers and lets the graph go on: for comparing a full model with its shards.

    Args:
        layers: whose outputs are collected.
        watch: told of every layer that was computed.
    """

    def __init__(self, layers: set[int], architecture: str = "", watch: LayerWatch | None = None) -> None:
        self._wanted = {output_node(architecture, layer): layer for layer in layers}
        self._watch = watch or LayerWatch(0, lambda _layer: None)
        self.outputs: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_node)
        self.user_data = None

    def _on_node(self, tensor: int, ask: bool, _user_data: int | None) -> bool:
        name = _tensor_name(tensor)
        layer = self._wanted.get(name)
        if ask:
            return layer is not None or self._watch.wants(name)
        self._watch.see(name, tensor)
        if layer is None:
            return True
        data: NDArray[np.float32] = np.empty(_tensor_bytes(tensor) // 4, dtype=np.float32)
        _tensor_read(tensor, data.ctypes.data, 0, data.nbytes)
        self.outputs[layer].append(data)
        return True
