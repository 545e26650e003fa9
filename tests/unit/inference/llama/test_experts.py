"""Experts of a mixture: those chosen are read, those used most stay, and no budget is exceeded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardnet.inference.gguf.layout import read_model
from shardnet.inference.llama.batch import single_sequence_rows
from shardnet.inference.llama.capture import LayerWatch
from shardnet.inference.llama.experts import ExpertCache, LayerExperts
from shardnet.inference.llama.model import LlamaContext, LlamaModel
from shardnet.inference.llama.residency import Extent
from shardnet.inference.llama.stages import experts_of, stages_of
from tests.support.random_models import build_random_model, tiny_llama

PATH = Path("weights")
LAYER = LayerExperts((Extent(PATH, 100, 80), Extent(PATH, 500, 40)), 4)


def test_the_parts_of_an_expert_are_one_of_each_tensor() -> None:
    assert LAYER.nbytes == 120
    assert LAYER.parts(2) == (Extent(PATH, 140, 20), Extent(PATH, 520, 10))


def test_what_is_here_is_not_read_again_and_what_is_used_least_goes_first() -> None:
    cache = ExpertCache({0: LAYER, 1: LAYER}, 120)
    assert cache.choose(0, [1, 2]) == ([], [(0, 1), (0, 2)])
    assert cache.choose(1, [0, 3]) == ([], [(1, 0), (1, 3)])
    assert cache.choose(0, [2]) == ([], [])
    assert cache.choose(1, [0, 3]) == ([], [])
    assert cache.choose(1, [1]) == ([(0, 1)], [(1, 1)])
    assert cache.used_bytes == 120


def test_a_long_batch_uses_all_experts_of_a_layer_in_place_of_everything_else() -> None:
    cache = ExpertCache({0: LAYER, 1: LAYER}, 120)
    cache.choose(0, [0, 1, 2])
    gone, missing = cache.choose(1, [0, 1, 2, 3])
    assert gone == [(0, 0), (0, 1), (0, 2)]
    assert len(missing) == 4


@pytest.mark.parametrize("seed", range(5))
def test_no_budget_is_exceeded_and_favourites_are_seldom_read(seed: int) -> None:
    chance, cache = (
        random.Random(seed),
        ExpertCache(dict.fromkeys(range(6), LayerExperts((Extent(PATH, 0, 160),), 16)), 400),
    )
    read = 0
    for _ in range(200):
        for layer in range(6):
            _, missing = cache.choose(layer, [layer, chance.randrange(16)])  # one favourite, one that nobody foresees
            read += sum(expert == layer for _, expert in missing)
            assert cache.used_bytes <= 400
    assert read < 30


def test_the_routers_choice_is_told_before_each_layer_of_a_mixture(tmp_path: Path) -> None:
    path = build_random_model(tmp_path / "moe.gguf", "qwen3moe", n_layers=4)
    found = experts_of(read_model(path))
    assert sorted(found) == [0, 1, 2, 3]
    assert {one.count for one in found.values()} == {4}
    assert {len(one.tensors) for one in found.values()} == {3}
    assert all(
        set(found[layer].tensors) <= set(stage)
        for layer, stage in enumerate(stages_of(read_model(path), has_head=False))
    )
    told: list[tuple[int, tuple[int, ...]]] = []

    def on_experts(layer: int, experts: Sequence[int]) -> None:
        told.append((layer, tuple(experts)))

    with LlamaModel(path, repack=False) as model:
        watch = LayerWatch(4, lambda layer: told.append((layer, ())), model.architecture, on_experts)
        with LlamaContext(model, n_ctx=64, n_seq=1, n_batch=32, threads=1, watch=watch) as context:
            context.decode(single_sequence_rows(0, 1, tokens=[5], outputs=[0]))
            one = list(told)
            told.clear()
            context.decode(single_sequence_rows(1, 20, tokens=list(range(20)), outputs=[19]))
    assert [layer for layer, _ in one] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(len(experts) == 2 and set(experts) < set(range(4)) for _, experts in one[::2])
    assert all(len(experts) >= 2 for _, experts in told[::2])


def test_a_dense_model_has_no_experts(tmp_path: Path) -> None:
    assert experts_of(read_model(tiny_llama(tmp_path / "tiny.gguf"))) == {}
