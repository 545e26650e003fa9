"""Layers over described devices: GPUs of any number and size, caps, experts. No GPU is needed to check it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shardnet.errors import UsageError
from shardnet.inference.engine.device_map import CPU, DevicePlan, Space, Wish, plan_devices
from shardnet.inference.engine.memory import (
    GPU_HEADROOM_BYTES,
    TOKEN_BYTES,
    ShardCost,
    attention_bytes,
    bytes_beside_gpus,
    need_of,
)
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.messages import ShardOptions

GB = 1 << 30
OPTIONS = ShardOptions(n_ctx=1024, n_seq=2, n_batch=128)
HEAD = GB // 2
COST = ShardCost((GB,) * 8, GB, kv_bytes_per_token=8 * 1024, n_embd=4096, n_ff=11008, n_vocab=32000, head_bytes=HEAD)
LAYER = GB + 1024 * 2 * 1024
COMPUTE = need_of(COST, OPTIONS).compute - bytes_beside_gpus(COST, OPTIONS)
MIXTURE = ShardCost(
    (10 * GB,) * 4,
    GB,
    kv_bytes_per_token=4 * 1024,
    n_embd=2048,
    n_ff=2048,
    n_vocab=32000,
    head_bytes=HEAD,
    expert_bytes=(9 * GB,) * 4,
)


def gpu(number: int, layers: float, *, head: bool = False, used: int = 0) -> Space:
    """A GPU with room for so many layers."""
    room = int(layers * LAYER) + (HEAD if head else 0)
    return Space(f"CUDA{number}", GPU_HEADROOM_BYTES + COMPUTE + room, used)


def plan(*gpus: Space, cost: ShardCost = COST, **wish: object) -> DevicePlan:
    return plan_devices(cost, OPTIONS, gpus, Wish(**wish))  # type: ignore[arg-type]


def runs(found: DevicePlan) -> list[tuple[str, int]]:
    return [(name, len(list(group))) for name, group in groupby(found.devices)]


def test_without_a_gpu_everything_is_on_the_processor() -> None:
    for wanted in ("auto", -1, 5):
        found = plan(n_gpu_layers=wanted)
        assert (found.n_gpu_layers, found.gpus, found.tensor_split, found.overrides) == (0, (), (), ())


def test_a_large_gpu_takes_all_layers_and_the_head() -> None:
    found = plan(gpu(0, 50))
    assert runs(found) == [("CUDA0", 9)]
    assert found.bytes_on == {"CUDA0": 8 * LAYER + HEAD + COMPUTE}


def test_what_does_not_fit_stays_on_the_processor_and_the_head_goes_first() -> None:
    assert runs(plan(gpu(0, 3, head=True))) == [(CPU, 5), ("CUDA0", 4)]
    assert runs(plan(gpu(0, 2.99, head=True))) == [(CPU, 6), ("CUDA0", 3)]
    assert runs(plan(gpu(0, 0.4))) == [(CPU, 9)]


def test_auto_takes_as_few_gpus_as_will_do_the_roomiest_first() -> None:
    assert runs(plan(gpu(0, 3), gpu(1, 50))) == [("CUDA1", 9)]
    found = plan(gpu(0, 3), gpu(1, 5, head=True))
    assert runs(found) == [("CUDA0", 3), ("CUDA1", 6)]
    assert (found.gpus, found.tensor_split) == (("CUDA0", "CUDA1"), (3.0, 6.0))


def test_balanced_gives_each_gpu_a_share_by_its_free_memory() -> None:
    assert runs(plan(gpu(0, 30), gpu(1, 10), mode="balanced")) == [("CUDA0", 6), ("CUDA1", 3)]
    assert runs(plan(gpu(0, 2), gpu(1, 4, head=True), mode="balanced")) == [(CPU, 2), ("CUDA0", 2), ("CUDA1", 5)]


def test_round_robin_takes_turns_by_overriding_where_layers_would_lie() -> None:
    found = plan(gpu(0, 50), gpu(1, 50), mode="round-robin")
    assert found.devices == ("CUDA0", "CUDA1") * 4 + ("CUDA1",)
    assert (found.n_gpu_layers, found.tensor_split) == (9, (4.0, 5.0))
    assert found.overrides == ((r"blk\.(4|6)\.", "CUDA0"), (r"blk\.(1|3)\.", "CUDA1"))


def test_an_explicit_map_is_obeyed_and_the_head_follows_the_last_layer() -> None:
    found = plan(gpu(0, 1), gpu(1, 1), mode="CPU=2,CUDA1=4,CUDA0=2")
    assert runs(found) == [(CPU, 2), ("CUDA1", 4), ("CUDA0", 3)]
    assert (found.gpus, found.tensor_split, found.overrides) == (("CUDA1", "CUDA0"), (4.0, 3.0), ())


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("CUDA7=8", "there are CPU, CUDA0"),
        ("CUDA0=3", "places 3 layers, and the shard has 8"),
        ("CPU=2,CUDA0=7", "9 layers"),
    ],
)
def test_an_explicit_map_that_does_not_fit_the_shard_is_refused(mode: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan(gpu(0, 50), mode=mode)


@pytest.mark.parametrize(("wanted", "count"), [(0, 0), (3, 3), (8, 8), (50, 9), (-1, 9)])
def test_a_number_of_layers_is_obeyed_whether_it_fits_or_not(wanted: int, count: int) -> None:
    assert plan(gpu(0, 1), n_gpu_layers=wanted).n_gpu_layers == count


def test_a_cap_of_one_device_counts_what_other_shards_have_there() -> None:
    cap = COMPUTE + HEAD + 4 * LAYER
    assert runs(plan(gpu(0, 50), caps={"CUDA0": cap})) == [(CPU, 4), ("CUDA0", 5)]
    assert runs(plan(gpu(0, 50, used=2 * LAYER), caps={"CUDA0": cap})) == [(CPU, 6), ("CUDA0", 3)]
    assert runs(plan(gpu(0, 50), gpu(1, 50), caps={"CUDA0": 1})) == [("CUDA1", 9)]


def test_a_cap_of_all_gpus_together_counts_all_of_them() -> None:
    assert runs(plan(gpu(0, 50), gpu_bytes=COMPUTE + HEAD + 4 * LAYER)) == [(CPU, 4), ("CUDA0", 5)]
    assert plan(gpu(0, 50, used=GB), gpu_bytes=GB).n_gpu_layers == 0


def test_experts_stay_in_main_memory_as_far_as_not_everything_fits() -> None:
    room = Space("CUDA0", GPU_HEADROOM_BYTES + 28 * GB)
    found = plan(room, cost=MIXTURE)
    assert runs(found) == [("CUDA0", 5)]
    assert found.experts_in_ram == 2
    ((pattern, device),) = found.overrides
    assert device == CPU
    names = [
        f"blk.{layer}.{kind}.weight"
        for layer in range(4)
        for kind in ("ffn_gate_exps", "ffn_gate_inp", "attn_q", "ffn_down_shexp")
    ]
    assert [name for name in names if re.search(pattern, name)] == [
        "blk.0.ffn_gate_exps.weight",
        "blk.1.ffn_gate_exps.weight",
    ]


def test_experts_are_kept_or_not_as_the_user_says() -> None:
    room = Space("CUDA0", GPU_HEADROOM_BYTES + 28 * GB)
    assert runs(plan(room, cost=MIXTURE, experts="gpu")) == [(CPU, 2), ("CUDA0", 3)]
    roomy = Space("CUDA0", 100 * GB)
    assert plan(roomy, cost=MIXTURE, experts="ram").experts_in_ram == 4
    assert plan(roomy, cost=MIXTURE).experts_in_ram == 0
    assert plan(roomy, experts="ram").overrides == ()


def test_a_gpu_too_small_for_all_layers_even_without_experts_takes_what_it_can() -> None:
    found = plan(Space("CUDA0", GPU_HEADROOM_BYTES + 3 * GB), cost=MIXTURE)
    assert (runs(found), found.experts_in_ram) == ([(CPU, 2), ("CUDA0", 3)], 4)


def test_the_plan_is_told_in_sentences() -> None:
    told = plan(Space("CUDA0", GPU_HEADROOM_BYTES + 28 * GB), cost=MIXTURE).sentences(MIXTURE)
    assert told[0] == "CUDA0: layers [0, 4) and the head"
    assert told[1].startswith("experts of layers [0, 2) stay in main memory (19.3 GB)")
    assert plan(gpu(0, 3, head=True)).sentences(COST)[0] == "CPU: layers [0, 5)"


def test_settings_that_are_no_map_and_no_cap_are_refused_at_once() -> None:
    for wrong in (
        {"device_map": "fast"},
        {"device_map": "CUDA0"},
        {"device_map": "CUDA0=2,CPU=3"},
        {"device_memory_bytes": ("CUDA0",)},
        {"device_memory_bytes": ("CUDA0=much",)},
    ):
        with pytest.raises(ValidationError):
            InferenceSettings(**wrong)
    wish = InferenceSettings(device_map="CPU=2,CUDA0=6", device_memory_bytes=("CUDA0=8_000",)).wish
    assert (wish.mode, wish.caps) == ("CPU=2,CUDA0=6", {"CUDA0": 8000})


@given(
    st.lists(st.integers(0, 12 * GB), max_size=4),
    st.lists(st.integers(1, 2 * GB), min_size=1, max_size=12),
    st.sampled_from(["auto", "balanced", "round-robin"]),
)
def test_no_gpu_is_ever_given_more_than_it_has(rooms: list[int], layers: list[int], mode: str) -> None:
    cost = ShardCost(tuple(layers), GB, kv_bytes_per_token=4096, n_embd=1024, n_ff=4096, n_vocab=1000, head_bytes=HEAD)
    gpus = [Space(f"CUDA{number}", free) for number, free in enumerate(rooms)]
    found = plan(*gpus, cost=cost, mode=mode)
    assert len(found.devices) == len(layers) + 1
    for space in gpus:
        assert found.bytes_on.get(space.name, 0) <= max(0, space.free_bytes - GPU_HEADROOM_BYTES)
    on_cpu = [name == CPU for name in found.devices]
    assert on_cpu == sorted(on_cpu, reverse=True)
    assert sum(found.tensor_split) == found.n_gpu_layers


def test_scores_are_needed_on_no_gpu_and_not_beside_one_and_texts_stay_in_main_memory() -> None:
    long = ShardOptions(n_ctx=32_768, n_seq=1, n_batch=512)
    with_heads = replace(COST, n_head=32)
    need, without = need_of(with_heads, long), need_of(COST, long)
    scores = need.compute - without.compute
    assert scores + attention_bytes(long, 0) == attention_bytes(long, 32) > GB // 2
    roomy = [Space(f"CUDA{number}", 6 * GB) for number in range(2)]
    found, unscored = plan_devices(with_heads, long, roomy, Wish()), plan_devices(COST, long, roomy, Wish())
    assert found.devices == unscored.devices
    assert found.bytes_on == unscored.bytes_on
    assert set(found.gpus) == {"CUDA0", "CUDA1"}
    # what main memory needs beside its layers: a graph's buffers once, and the texts
    layers = found.devices[:-1].count("CPU")
    beside = need.compute - attention_bytes(long, 32)
    left = layers * (GB + need.kv // 8) + COST.other_bytes - COST.head_bytes * (found.devices[-1] != "CPU")
    assert need.total - found.spared_bytes == left + beside
    assert beside >= TOKEN_BYTES * COST.n_vocab


def test_without_a_gpu_main_memory_is_spared_nothing() -> None:
    assert plan_devices(replace(COST, n_head=32), OPTIONS, [], Wish()).spared_bytes == 0
