"""What a SafeTensors header may say, and the one sentence for each thing that it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from shardnet.errors import CheckpointError, UsageError
from shardnet.inference.checkpoints.dtypes import NUMPY_DTYPES
from shardnet.inference.checkpoints.header import read_safetensors_header


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path: Path, header: Any, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_what_the_package_writes_is_read_as_it_was_meant(tmp_path: Path) -> None:
    arrays = {"a": np.zeros((3, 4), np.float32), "b": np.zeros((4, 2), ml_dtypes.bfloat16), "s": np.array(3)}
    save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    header = read_safetensors_header(tmp_path / "x.safetensors")
    assert {tensor.name: (tensor.dtype, tensor.shape, tensor.nbytes) for tensor in header.tensors} == {
        "a": ("F32", (3, 4), 48),
        "b": ("BF16", (4, 2), 16),
        "s": ("I64", (), 8),
    }
    assert header.metadata == {"format": "pt"}
    offsets = [tensor.offset for tensor in header.tensors]
    assert offsets == sorted(offsets)


def test_every_dtype_that_is_taken_has_the_size_that_the_package_gives_it(tmp_path: Path) -> None:
    arrays = {name: np.zeros((2, 3), dtype) for name, dtype in NUMPY_DTYPES.items()}
    save_file(arrays, tmp_path / "x.safetensors")
    found = {tensor.name: tensor.dtype for tensor in read_safetensors_header(tmp_path / "x.safetensors").tensors}
    assert found == {name: name for name in NUMPY_DTYPES}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"[1]", "begins with"),
        (b"{", "no usable JSON"),
        (b'{"a": "\xff"}', "no usable JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 8]}}' % (b"9" * 5000), "no usable JSON"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        ({"a": 1}, "not described by"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "not described by"),
        ({"__metadata__": {"n": 1}, "a": entry()}, "are not all text"),
        ({"a": entry(shape=[-2])}, "impossible shape"),
        ({"a": entry(shape=[True, 2])}, "impossible shape"),
        ({"a": entry(shape=[1] * 9)}, "impossible shape"),
        ({"a": entry(shape=[0, 1 << 70], offsets=[0, 0])}, "impossible shape"),
        ({"a": entry(offsets=[0])}, "impossible data_offsets"),
        ({"a": entry(offsets=[0, 4])}, "needs 8 bytes"),
        ({"a": entry(offsets=[8, 0])}, "needs 8 bytes"),
        ({"a": entry(offsets=[4, 12])}, "leave a hole"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, "overlap"),
        ({"a": entry(shape=[4], offsets=[0, 16])}, "truncated: 8 of"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "4 bytes behind its last tensor"),
        ({"a": entry("F4", [16])}, "dtype F4, which is not taken"),
        ({"a": entry("F8_E8M0", [8])}, "dtype F8_E8M0, which is not taken"),
        ({"a": entry("F33")}, "dtype F33, which is not taken"),
    ],
)
def test_a_broken_header_is_refused_in_one_sentence_that_names_the_file(
    tmp_path: Path, header: Any, words: str
) -> None:
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_safetensors_header(path)
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "only 0 bytes"),
        ((200_000_000).to_bytes(8, "little") + b"{}", "100000000 are the most"),
        ((100).to_bytes(8, "little") + b"{}", "is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no SafeTensors file"),
    ],
)
def test_a_length_is_not_believed_before_it_is_checked(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        read_safetensors_header(tmp_path / "x.safetensors")


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_safetensors_header(tmp_path / "x.safetensors")
