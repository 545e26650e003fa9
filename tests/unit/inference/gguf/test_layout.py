"""Where a model's bytes are, what a token costs, and models that llama.cpp has split by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from shardnet.errors import GgufError
from shardnet.inference.gguf.header import GgufHeader, read_gguf_header
from shardnet.inference.gguf.layout import (
    kv_bytes,
    layer_of,
    layout_of,
    quantisation_of,
    read_model,
    step_bytes,
    vocabulary_size,
)
from tests.support.gguf_parts import parts_of
from tests.support.random_models import add_value, tiny_llama


def test_tensors_are_mapped_to_their_layers() -> None:
    assert layer_of("blk.12.attn_q.weight") == 12
    assert layer_of("token_embd.weight") is None
    assert layer_of("enc.blk.0.attn_q.weight") is None


def test_bytes_by_layer_and_type_add_up_to_all_tensors(tmp_path: Path) -> None:
    header = read_model(tiny_llama(tmp_path / "m.gguf", n_layers=3, quantisation="Q8_0"))
    layout = layout_of(header)
    total = sum(tensor.nbytes for tensor in header.tensors)
    assert sum(layout.layer_bytes) + layout.global_bytes == total == sum(layout.type_bytes.values())
    assert len(set(layout.layer_bytes)) == 1
    assert list(layout.type_bytes) == ["Q8_0", "F32"]
    assert (quantisation_of(header), vocabulary_size(header)) == ("Q8_0", 288)
    assert layout.kv_bytes_per_token == 3 * 2 * 2 * 16 * 2  # layers, K and V, heads, width, f16


def test_a_step_reads_all_but_tables_and_idle_experts(tmp_path: Path) -> None:
    header = header_of(tmp_path / "e.gguf", "llama", **BASE, expert_count=8, expert_used_count=2)
    layer = [("blk.0.attn_q.weight", 100), ("blk.0.ffn_up_exps.weight", 800)]
    first, tied = [("token_embd.weight", 5000), *layer], [*layer, ("token_embd.weight", 5000)]
    assert step_bytes(header, first, has_head=False) == 300
    assert step_bytes(header, tied, has_head=True) == 5300, "the table is the head"
    assert step_bytes(header, [*first, ("output.weight", 7000)], has_head=True) == 7300


def header_of(path: Path, architecture: str, **facts: Any) -> GgufHeader:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in facts.items():
        add_value(writer, f"{architecture}.{key.replace('__', '.')}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf_header(path)


BASE = {"block_count": 4, "embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}


@pytest.mark.parametrize(
    ("architecture", "facts", "expected"),
    [
        ("llama", {}, [128] * 4),  # f16, two heads, 16 + 16 wide
        ("llama", {"attention__head_count_kv": [1, 2, 4, 0]}, [64, 128, 256, 0]),
        ("llama", {"attention__key_length": 32, "attention__value_length": 8}, [160] * 4),
        ("gemma4", {"attention__key_length": 32, "attention__key_length_swa": 16, "attention__value_length": 16,
                    "attention__sliding_window_pattern": [True, True, True, False]}, [128, 128, 128, 192]),
        ("gemma4", {"attention__shared_kv_layers": 2}, [128, 128, 0, 0]),
        ("deepseek2", {"attention__head_count_kv": 1, "attention__key_length": 576, "attention__value_length": 512,
                       "attention__key_length_mla": 192, "attention__value_length_mla": 128}, [1152] * 4),
        ("qwen3next", {}, [0, 0, 0, 128]),
        ("qwen3next", {"full_attention_interval": 2}, [0, 128, 0, 128]),
        ("qwen35", {"attention__recurrent_layers": [False, True, True, False]}, [128, 0, 0, 128]),
        ("mamba", {}, [0] * 4),
    ],
)  # fmt: skip
def test_a_tokens_cache_follows_each_layers_own_heads(
    tmp_path: Path, architecture: str, facts: dict[str, Any], expected: list[int]
) -> None:
    header = header_of(tmp_path / "m.gguf", architecture, **(BASE | facts))
    assert [kv_bytes(header, layer) for layer in range(4)] == expected


def test_a_layer_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", n_layers=3, extra={"llama.block_count": 2})
    with pytest.raises(GgufError, match="announces 2 layers but has tensors of layer 2"):
        read_model(path)
    path = tiny_llama(tmp_path / "n.gguf", n_layers=3, extra={"llama.block_count": 5})
    with pytest.raises(GgufError, match="announces 5 layers but has no tensors of layer 3"):
        read_model(path)
    path = tiny_llama(tmp_path / "o.gguf", n_layers=3, extra={"llama.nextn_predict_layers": 3})
    with pytest.raises(GgufError, match="multi-token prediction"):
        read_model(path)


# -- llama.cpp's own multi-file models -----------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "whole.gguf", n_layers=3)


@pytest.mark.parametrize("named", [0, 1, 2])
def test_whichever_part_is_named_the_whole_model_is_read(tmp_path: Path, whole: Path, named: int) -> None:
    paths = parts_of(whole, tmp_path, 3)
    header, expected = read_model(paths[named]), read_model(whole)
    assert header.paths == tuple(paths)
    assert [(t.name, t.nbytes) for t in header.tensors] == [(t.name, t.nbytes) for t in expected.tensors]
    assert {t.path for t in header.tensors} == set(paths)
    assert layout_of(header) == layout_of(expected)
    assert not any(key.startswith("split.") for key in header.fields)


def test_a_missing_or_foreign_part_is_named(tmp_path: Path, whole: Path) -> None:
    paths = parts_of(whole, tmp_path, 3)
    content = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(GgufError, match=r"one of 3 parts, but big-00002-of-00003.gguf cannot be found"):
        read_model(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(GgufError, match="is not part 2 of 3"):
        read_model(paths[0])
    paths[1].write_bytes(content)
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(GgufError, match="its name does not end in"):
        read_model(renamed)
