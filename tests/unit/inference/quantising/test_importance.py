"""Importance matrices in both formats, and what is wrong with those that cannot be used."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from shardnet.errors import GgufError, UsageError
from shardnet.inference.gguf.layout import read_model
from shardnet.inference.quantising.importance import ImportanceMatrix, read_importance
from shardnet.inference.quantising.model import quantise
from shardnet.inference.quantising.rows import QuantisedData
from tests.support.random_models import tiny_llama

NAME = "blk.0.attn_q.weight"


def write_gguf(path: Path, tensors: dict[str, NDArray[np.float32]], *, with_facts: bool = True) -> Path:
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    if with_facts:
        writer.add_array("imatrix.datasets", ["text"])
        writer.add_uint32("imatrix.chunk_count", 2)
        writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_binary(path: Path, entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> Path:
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name.encode(), calls, len(values), *values)
    path.write_bytes(data + tail)
    return path


def test_a_gguf_gives_means_of_each_expert_and_ones_for_one_that_saw_no_token(tmp_path: Path) -> None:
    sums = np.array([[2, 4], [3, 9], [5, 5]], np.float32)
    counts = np.array([[2], [3], [0]], np.float32)
    path = write_gguf(tmp_path / "i.gguf", {f"{NAME}.in_sum2": sums, f"{NAME}.counts": counts})
    assert read_importance(path).columns[NAME].tolist() == [1, 2, 1, 3, 1, 1]


def test_the_older_format_gives_means_and_its_tail_is_of_no_use(tmp_path: Path) -> None:
    path = write_binary(
        tmp_path / "i.dat", {NAME: (4, [2, 8]), "other": (0, [7])}, tail=struct.pack("<ii4s", 9, 4, b"text")
    )
    columns = read_importance(path).columns
    assert (columns[NAME].tolist(), columns["other"].tolist()) == ([0.5, 2], [7])


def test_both_formats_lead_to_the_same_weights_and_to_different_recipes(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model.gguf", n_layers=2)
    values = np.linspace(1, 3, 64, dtype=np.float32)
    binary = read_importance(write_binary(tmp_path / "i.dat", {NAME: (2, (2 * values).tolist())}))
    gguf = read_importance(
        write_gguf(
            tmp_path / "i.gguf", {f"{NAME}.in_sum2": 5 * values[None], f"{NAME}.counts": np.full((1, 1), 5, np.float32)}
        )
    )
    np.testing.assert_allclose(binary.columns[NAME], gguf.columns[NAME], rtol=1e-6)
    recipes = {quantise(read_model(model), "q4_0", one).recipe for one in (binary, gguf, None)}
    assert len(recipes) == 3


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({f"{NAME}.in_sum2": np.ones((1, 4), np.float32)}, "needs sums and counts of blk.0.attn_q.weight"),
        (
            {f"{NAME}.in_sum2": np.ones((1, 4), np.float32), f"{NAME}.counts": np.ones(3, np.float32)},
            "4 sums and 3 counts of blk.0.attn_q.weight",
        ),
        (
            {f"{NAME}.in_sum2": np.full((1, 4), np.nan, np.float32), f"{NAME}.counts": np.ones(1, np.float32)},
            "blk.0.attn_q.weight is not finite",
        ),
        ({"blk.0.attn_q.weight": np.ones(4, np.float32)}, "says nothing of any tensor"),
    ],
)
def test_a_damaged_one_is_one_clear_sentence(
    tmp_path: Path, tensors: dict[str, NDArray[np.float32]], sentence: str
) -> None:
    with pytest.raises(GgufError, match=sentence):
        read_importance(write_gguf(tmp_path / "i.gguf", tensors))


def test_other_files_are_no_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_importance(tmp_path / "nothing")
    with pytest.raises(GgufError, match=r"no imatrix\.datasets"):
        read_importance(tiny_llama(tmp_path / "model.gguf", n_layers=1))
    text = tmp_path / "notes.txt"
    text.write_text("what the keeper counted")
    with pytest.raises(GgufError, match="neither a GGUF nor of the older format"):
        read_importance(text)
    whole = write_binary(tmp_path / "i.dat", {NAME: (4, [2, 8])}).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "short.dat").write_bytes(whole[:size])
        with pytest.raises(GgufError, match="no importance matrix"):
            read_importance(tmp_path / "short.dat")


def test_one_of_another_model_is_refused_by_what_does_not_fit(tmp_path: Path) -> None:
    header = read_model(tiny_llama(tmp_path / "model.gguf", n_layers=2))
    path = tmp_path / "imatrix.gguf"

    def of(name: str, size: int) -> ImportanceMatrix:
        return ImportanceMatrix(path, "", {name: np.ones(size, np.float32)})

    with pytest.raises(GgufError, match=r"says 65 numbers of blk\.0\.attn_q\.weight, which has 64 columns"):
        quantise(header, "q4_0", of(NAME, 65))
    with pytest.raises(GgufError, match="says nothing of any of its tensors"):
        quantise(header, "q4_0", of("blk.7.attn_q.weight", 64))
    columns = {NAME: np.ones(64, np.float32), "token_embd.weight": np.ones(3, np.float32)}
    made = quantise(header, "q4_0", ImportanceMatrix(path, "", columns))
    known = {one.name: one.data.importance for one in made.tensors if isinstance(one.data, QuantisedData)}
    assert [name for name, importance in known.items() if importance is not None] == [NAME], "embeddings are looked up"
