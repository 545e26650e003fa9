"""What llama.cpp's loader is told of devices, on the one that every build has."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.errors import EngineError
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.llama.placing import PLAIN, Placing
from tests.support.random_models import tiny_llama


def logits(path: Path, placing: Placing) -> NDArray[np.float32]:
    with LlamaModel(path, placing=placing) as model, LlamaContext(model, n_ctx=32, threads=1) as context:
        context.decode(single_sequence_rows(0, 3, tokens=[5, 6, 7], outputs=[2]))
        return context.logits(2).copy()


def test_arrays_end_as_llama_cpp_expects_and_hold_what_was_said() -> None:
    params = llama_cpp.llama_model_default_params()
    placing = Placing(3, ("CPU",), (1.0, 3.0), ((r"blk\.0\.", "CPU"),))
    devices, shares, overrides = placing.put_into(params)
    assert params.n_gpu_layers == 3
    assert (len(devices), devices[1]) == (2, None)
    assert list(shares[:3]) == [1.0, 3.0, 0.0]
    assert len(shares) == llama_cpp.llama_max_devices()
    assert overrides[0].pattern == rb"blk\.0\."
    assert (len(overrides), overrides[1].pattern) == (2, None)
    assert ctypes.cast(params.tensor_buft_overrides, ctypes.c_void_p).value == ctypes.addressof(overrides)


def test_without_layers_on_gpus_no_gpu_is_given_at_all() -> None:
    params = llama_cpp.llama_model_default_params()
    (devices,) = Placing().put_into(params)
    assert list(devices) == [None]
    assert params.devices == ctypes.addressof(devices)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match="no device CUDA99"):
        Placing(1, ("CUDA99",)).put_into(llama_cpp.llama_model_default_params())


def test_llama_cpp_takes_overrides_and_computes_the_same(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", tied=False)
    moved = logits(path, Placing(overrides=((r"blk\.(0|1)\.", "CPU"),)))
    assert np.array_equal(moved, logits(path, Placing()))


def test_plain_weights_are_in_memory_once_and_as_in_their_file(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", n_embd=256, quantisation="Q4_0", tied=True)
    plain = Placing(overrides=((r"\.weight$", PLAIN),))
    with LlamaModel(path, use_mmap=False, repack=False) as model:
        as_it_lies = sum(model.buffers.values())
    with LlamaModel(path, use_mmap=False, placing=plain) as model:
        assert sum(model.buffers.values()) == as_it_lies
        assert not any("REPACK" in name for name in model.buffers)
