"""Reading tensors: whole, by rows, in a stream; what the cache keeps; and what the command line makes of a checkpoint."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.errors import CheckpointError, UsageError
from shardnet.inference.checkpoints import sharded
from shardnet.inference.checkpoints.sharded import Array, ShardedSafeTensors
from tests.support.checkpoints import FILES, llama_tensors, write_sharded, write_single

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "sharded")


@pytest.fixture
def checkpoint(folder: Path) -> ShardedSafeTensors:
    return ShardedSafeTensors(folder)


def test_every_tensor_comes_back_as_it_was_saved(checkpoint: ShardedSafeTensors) -> None:
    for name, array in llama_tensors().items():
        found = checkpoint.tensor(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_a_tensor_leads_to_its_file(checkpoint: ShardedSafeTensors) -> None:
    assert checkpoint.shard_of(EMBEDDING).name == FILES[0]
    assert checkpoint.shard_of("lm_head.weight").name == FILES[1]
    assert [path.name for path in checkpoint.shard_files()] == list(FILES)
    with pytest.raises(UsageError, match="no tensor 'nothing'"):
        checkpoint.shard_of("nothing")


def test_rows_are_those_of_the_whole(checkpoint: ShardedSafeTensors) -> None:
    whole = llama_tensors()[EMBEDDING]
    np.testing.assert_array_equal(checkpoint.rows(EMBEDDING, 3, 7), whole[3:7])
    assert checkpoint.rows(EMBEDDING, 5, 5).shape == (0, 8)
    for first, end in ((-1, 2), (0, 17), (3, 2)):
        with pytest.raises(UsageError, match="has no rows"):
            checkpoint.rows(EMBEDDING, first, end)


@pytest.mark.parametrize("most_bytes", [1, 16, 50, 10_000])
def test_row_blocks_keep_their_bound_and_leave_nothing_out(checkpoint: ShardedSafeTensors, most_bytes: int) -> None:
    whole = llama_tensors()[EMBEDDING]
    blocks = list(checkpoint.row_blocks(EMBEDDING, most_bytes))
    assert all(block.nbytes <= max(most_bytes, 16) for _, block in blocks)
    assert [first for first, _ in blocks] == list(np.cumsum([0] + [len(block) for _, block in blocks])[:-1])
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_f8_is_read_although_the_package_gives_it_to_numpy_in_no_way(tmp_path: Path, dtype: type) -> None:
    whole: Array = np.arange(24, dtype=np.float32).reshape(4, 6).astype(dtype)
    save_file({"a": whole, "s": np.array(3, dtype), "z": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    checkpoint = ShardedSafeTensors(tmp_path / "x.safetensors")
    assert checkpoint.tensor("a").dtype == dtype
    np.testing.assert_array_equal(checkpoint.tensor("a").astype(np.float32), whole.astype(np.float32))
    np.testing.assert_array_equal(checkpoint.rows("a", 1, 3).astype(np.float32), whole[1:3].astype(np.float32))
    assert float(checkpoint.tensor("s")) == 3.0


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    save_file({"s": np.array(7), "e": np.zeros((0, 3), np.float16)}, tmp_path / "x.safetensors")
    checkpoint = ShardedSafeTensors(tmp_path / "x.safetensors")
    assert checkpoint.tensor("s") == 7
    assert checkpoint.tensor("e").shape == (0, 3)
    assert [(first, array.tolist()) for first, array in checkpoint.row_blocks("s", 1)] == [(0, 7)]
    assert list(checkpoint.row_blocks("e", 1)) == []
    with pytest.raises(UsageError, match="has no rows"):
        checkpoint.rows("s", 0, 1)


def test_the_cache_keeps_its_bound_and_throws_away_what_was_used_longest_ago(folder: Path) -> None:
    checkpoint = ShardedSafeTensors(folder, cache_bytes=400)  # an embedding has 256 bytes, a projection 128, a norm 16
    first = checkpoint.tensor(EMBEDDING)
    checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
    assert checkpoint.cache_memory_usage() == 384
    assert checkpoint.tensor(EMBEDDING) is first
    checkpoint.tensor("model.layers.1.self_attn.q_proj.weight")
    assert checkpoint.cache_memory_usage() == 384
    assert checkpoint.tensor(EMBEDDING) is first
    checkpoint.clear_cache()
    assert checkpoint.cache_memory_usage() == 0
    assert checkpoint.tensor(EMBEDDING) is not first


def test_a_tensor_larger_than_the_cache_is_given_and_not_kept(folder: Path) -> None:
    checkpoint = ShardedSafeTensors(folder, cache_bytes=100)
    checkpoint.tensor("model.norm.weight")
    checkpoint.tensor(EMBEDDING)
    assert checkpoint.cache_memory_usage() == 16


def test_what_the_cache_shares_cannot_be_written_to(checkpoint: ShardedSafeTensors) -> None:
    with pytest.raises(ValueError, match="read-only"):
        checkpoint.tensor(EMBEDDING)[0] = 0
    checkpoint.rows(EMBEDDING, 0, 1)[0] = 0  # the caller's own


@pytest.mark.parametrize("ahead_bytes", [0, 300, 1 << 20])
def test_a_stream_gives_everything_in_order_and_caches_nothing(
    checkpoint: ShardedSafeTensors, ahead_bytes: int
) -> None:
    found = list(checkpoint.stream(ahead_bytes=ahead_bytes))
    assert [name for name, _ in found] == checkpoint.tensor_names()
    for name, array in found:
        np.testing.assert_array_equal(array, llama_tensors()[name])
    assert checkpoint.cache_memory_usage() == 0


def test_a_stream_reads_the_next_ones_before_they_are_asked_for(
    checkpoint: ShardedSafeTensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, second = [], threading.Event()
    real = checkpoint._read

    def noted(stored: object, *rows: int) -> object:
        read.append(stored)
        if len(read) == 2:
            second.set()
        return real(stored, *rows)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "_read", noted)
    stream = checkpoint.stream([EMBEDDING, "lm_head.weight"], ahead_bytes=10_000)
    next(stream)
    assert second.wait(10), "the second tensor, of another file, was not read ahead"
    stream.close()


def test_a_stream_that_is_left_leaves_no_thread(checkpoint: ShardedSafeTensors) -> None:
    stream = checkpoint.stream()
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("safetensors")]


def test_a_mapped_file_is_let_go_before_its_pages_pile_up(
    checkpoint: ShardedSafeTensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "TOUCHED_BYTES", 300)

    def mapped() -> list[bool]:
        maps = Path("/proc/self/maps").read_text()
        return [str(path) in maps for path in checkpoint.shard_files()]

    checkpoint.rows(EMBEDDING, 0, 16)  # 256 bytes
    assert mapped() == [True, False]
    checkpoint.rows("lm_head.weight", 0, 2)
    assert mapped() == [True, True]
    checkpoint.rows("lm_head.weight", 0, 16)
    assert mapped() == [False, True]
    checkpoint.clear_cache()
    assert mapped() == [False, False]


def test_a_file_that_changes_after_opening_is_an_error(checkpoint: ShardedSafeTensors, folder: Path) -> None:
    checkpoint.tensor(EMBEDDING)
    checkpoint.clear_cache()
    os.truncate(folder / FILES[0], (folder / FILES[0]).stat().st_size - 8)
    with pytest.raises(CheckpointError, match="has changed since"):
        checkpoint.tensor(EMBEDDING)
    with pytest.raises(CheckpointError, match="has changed since"):
        list(checkpoint.stream())


def test_the_summary_says_size_files_layers_dtypes_modality_and_parameters(checkpoint: ShardedSafeTensors) -> None:
    facts = checkpoint.summary()
    n_params = sum(array.size for array in llama_tensors().values())
    assert len(facts["paths"]) == 2
    assert (facts["n_params"], facts["bytes"], facts["type_bytes"]) == (n_params, 2 * n_params, {"BF16": 2 * n_params})
    assert (facts["n_layers"], facts["layer_bytes"], facts["n_global_tensors"]) == (3, [144] * 3, 3)
    assert (facts["modality"], facts["has_head"]) == ("text", True)
    assert facts["config"]["rope_types"] == ["linear"]


def test_inspect_shows_a_checkpoint(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(folder)]).output
    assert "llama, 0.0 M weights, 960 B in 2 files" in shown
    assert "layers 0-2         144 B each\n" in shown
    facts = json.loads(CliRunner().invoke(app, ["inspect", "--json", str(folder)]).output)
    assert facts == ShardedSafeTensors(folder).summary()


def test_inspect_shows_a_bare_file_without_a_config(tmp_path: Path) -> None:
    (write_single(tmp_path / "x") / "config.json").unlink()
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "x" / "model.safetensors")])
    assert "no config.json beside it" in shown.output
