"""The arithmetic of memory: what a shard needs, and what is free for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shardnet.errors import NoRoomError
from shardnet.inference.engine.memory import (
    CHUNK_ROWS,
    MASK_BYTES,
    SCORE_BYTES,
    ShardCost,
    attention_bytes,
    need_of,
    refuse_if_too_large,
)
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.shard_cost import cost_of
from shardnet.inference.llama.devices import cpu_device, main_memory, usable_threads
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.limits.memory import Bound, Room
from shardnet.messages import ShardOptions
from tests.support.random_models import tiny_llama

GB = 1 << 30
OPTIONS = ShardOptions(n_ctx=1024, n_seq=2, n_batch=128)
COST = ShardCost((GB,) * 8, 2 * GB, kv_bytes_per_token=8 * 1024, n_embd=4096, n_ff=11008, n_vocab=32000)


def test_kv_is_counted_for_every_sequence_in_whole_blocks() -> None:
    assert need_of(COST, OPTIONS).kv == 1024 * 2 * 8 * 1024
    assert need_of(COST, ShardOptions(n_ctx=1000, n_seq=2, n_batch=128)).kv == 1024 * 2 * 8 * 1024
    assert need_of(COST, OPTIONS).weights == 10 * GB


def test_the_scores_of_a_chunk_grow_with_the_context_and_the_heads() -> None:
    chunk = CHUNK_ROWS * 16384 * (SCORE_BYTES * 32 + MASK_BYTES)
    long, short = (ShardOptions(n_ctx=n_ctx, n_seq=1, n_batch=512) for n_ctx in (16_000 + 300, 256))
    with_heads = replace(COST, n_head=32)
    grown = need_of(with_heads, long).compute - need_of(with_heads, short).compute
    assert grown == chunk - chunk * 256 // 16384
    assert need_of(COST, long).compute < need_of(with_heads, long).compute
    # more rows than a chunk has cost their hidden states, no scores
    assert attention_bytes(long, 32) == attention_bytes(long.model_copy(update={"n_batch": CHUNK_ROWS}), 32) == chunk


def test_a_chunk_needs_what_llama_cpp_reserves_for_it(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf")
    with LlamaModel(path) as model:
        for n_ctx in (512, 8192):
            options = ShardOptions(n_ctx=n_ctx, n_seq=1, n_batch=CHUNK_ROWS)
            need = need_of(cost_of(path), options)
            with LlamaContext(model, n_ctx=n_ctx, n_batch=CHUNK_ROWS, threads=1) as context:
                reserved = context.buffers
            assert reserved["CPU KV"] == pytest.approx(need.kv, rel=0.03)  # llama.cpp says it in MiB
            assert reserved["CPU compute"] < need.compute < 3 * reserved["CPU compute"]


def test_too_little_memory_is_one_sentence_with_the_numbers() -> None:
    refuse_if_too_large("shard 3", 100, Room(200, 100), used_bytes=0, limit_bytes=0)
    with pytest.raises(NoRoomError, match=r"shard 3 needs 101 B of memory, and 100 B are free: ") as error:
        refuse_if_too_large("shard 3", 101, Room(200, 100), used_bytes=0, limit_bytes=0)
    assert error.value.facts == {"needed_bytes": 101, "free_bytes": 100, "limit": ""}


def test_the_refusal_names_the_limit_that_leaves_so_little() -> None:
    room = Room(300, 100, Bound(300, 100, "memory.max of cgroup /one"))
    with pytest.raises(NoRoomError, match=r"100 B are free within the limit of 300 B by memory.max of cgroup /one: "):
        refuse_if_too_large("shard 3", 101, room, used_bytes=0, limit_bytes=1000)
    with pytest.raises(NoRoomError, match=r"40 B are free within the limit of 90 B by inference.memory_limit_bytes: "):
        refuse_if_too_large("shard 3", 41, room, used_bytes=50, limit_bytes=90)


def test_the_limit_counts_what_is_loaded_already() -> None:
    room = Room(2000, 1000)
    refuse_if_too_large("shard 3", 40, room, used_bytes=60, limit_bytes=100)
    with pytest.raises(NoRoomError, match="limit") as error:
        refuse_if_too_large("shard 3", 41, room, used_bytes=60, limit_bytes=100)
    assert error.value.facts["free_bytes"] == 40


def test_weights_that_are_read_from_the_mapped_file_are_not_free() -> None:
    free = main_memory().free_bytes
    assert main_memory(10 * free).free_bytes == 0
    assert cpu_device(10 * free).free_bytes == 0


def test_the_processor_is_a_device() -> None:
    device = cpu_device()
    assert device.name == "CPU"
    assert 0 < device.free_bytes <= device.total_bytes
    assert usable_threads() >= 1


def test_streaming_wants_mapped_files() -> None:
    for mode in ("streamed", "auto"):
        with pytest.raises(ValueError, match="leave use_mmap true"):
            InferenceSettings.model_validate({"memory_mode": mode, "use_mmap": False})
    assert not InferenceSettings(memory_mode="resident", use_mmap=False).use_mmap
