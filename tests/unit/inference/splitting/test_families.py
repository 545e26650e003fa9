"""Where models may be cut, and what a shard's metadata must say: decided from headers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardnet.errors import FamilyRefused
from shardnet.inference.gguf.header import GgufHeader, read_gguf_header
from shardnet.inference.splitting.families import (
    ENDLESS_WINDOW,
    layer_count,
    rules_for,
    shard_metadata,
    shard_tensor_plan,
)
from shardnet.inference.splitting.family_table import PROVED, REFUSED
from shardnet.shards import LayerRange
from tests.support.random_families import RECIPES, Value
from tests.support.random_models import TensorShape, write_model


def header_of(folder: Path, architecture: str, *tensors: str, **keys: Value) -> GgufHeader:
    """A GGUF without weights, or with some of one element. Double underscores in `keys` stand for dots."""
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    shapes = [TensorShape(name, (1,)) for name in tensors]
    path = write_model(folder / "header.gguf", architecture, metadata, shapes, quantisation="F32", seed=0)
    return read_gguf_header(path)


def changes(header: GgufHeader, first: int, end: int) -> dict[str, object]:
    """What a shard's metadata says differently, without the architecture's name."""
    found = shard_metadata(header, LayerRange(first=first, end=end))
    return {key.split(".", 1)[1]: None if value is None else value.value for key, value in found.items()}


def test_every_family_that_may_be_cut_has_a_random_model_to_prove_it_on() -> None:
    assert set(PROVED) <= {recipe.architecture for recipe in RECIPES.values()}
    assert not set(PROVED) & set(REFUSED)


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma2", "gemma3", "gpt-oss", "phi3", "glm4", "granite", "olmo2", "deepseek2", "qwen3next"],
)  # fmt: skip
def test_the_families_that_must_be_supported_from_the_start_are(family: str) -> None:
    assert family in PROVED


def test_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FamilyRefused, match=r"bert cannot be split: it is an encoder") as refusal:
        rules_for(header_of(tmp_path, "bert", block_count=4))
    assert refusal.value.exit_code == 3


def test_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FamilyRefused, match=r"mystery-9 is not known to split exactly"):
        rules_for(header_of(tmp_path, "mystery-9", block_count=4))


def test_a_plain_family_is_cut_anywhere(tmp_path: Path) -> None:
    assert rules_for(header_of(tmp_path, "llama", block_count=5)).legal_cuts == (1, 2, 3, 4)


def test_a_model_of_one_layer_says_why_it_cannot_be_cut(tmp_path: Path) -> None:
    rules = rules_for(header_of(tmp_path, "llama", block_count=1))
    assert rules.legal_cuts == ()
    assert rules.reason == "llama: a model of one layer cannot be cut"


def test_rules_by_layer_number_are_cut_on_their_period(tmp_path: Path) -> None:
    assert rules_for(header_of(tmp_path, "smollm3", block_count=12)).legal_cuts == (4, 8)
    steps = header_of(tmp_path, "llama4", block_count=24, interleave_moe_layer_step=3)
    assert rules_for(steps).legal_cuts == (12,)


def test_recurrent_families_keep_both_kinds_of_layers_in_every_shard(tmp_path: Path) -> None:
    assert rules_for(header_of(tmp_path, "qwen3next", block_count=12)).legal_cuts == (4, 8)
    by_heads = header_of(
        tmp_path, "jamba", block_count=8, attention__head_count_kv=[0, 2, 2, 0, 0, 0, 2, 0], feed_forward_length=96
    )
    assert rules_for(by_heads).legal_cuts == (2, 4)
    only = rules_for(header_of(tmp_path, "qwen3next", block_count=4))
    assert "every shard needs both recurrent and attention layers" in only.reason


def test_a_window_pattern_becomes_an_explicit_list_cut_to_the_range(tmp_path: Path) -> None:
    header = header_of(tmp_path, "gemma3", block_count=12, attention__sliding_window=512)
    assert changes(header, 4, 8)["attention.sliding_window_pattern"] == [True, False, True, True]


def test_a_listed_window_pattern_is_believed(tmp_path: Path) -> None:
    pattern: Value = [False, True, True, False]
    header = header_of(
        tmp_path, "mimo2", block_count=4, attention__sliding_window=128, attention__sliding_window_pattern=pattern
    )
    assert changes(header, 2, 4)["attention.sliding_window_pattern"] == [True, False]


def test_a_range_without_windows_leaves_the_keys_out_or_gets_an_endless_one(tmp_path: Path) -> None:
    dropped = changes(header_of(tmp_path, "gemma3", block_count=12, attention__sliding_window=512), 5, 6)
    assert dropped["attention.sliding_window"] is None
    assert dropped["attention.sliding_window_pattern"] is None
    widened = changes(
        header_of(tmp_path, "gpt-oss", block_count=4, attention__sliding_window=128, rope__freq_base=150000.0), 1, 2
    )
    assert widened["attention.sliding_window"] == ENDLESS_WINDOW
    assert widened["attention.sliding_window_pattern"] == [True]
    assert widened["rope.freq_base_swa"] == 150000.0


def test_where_the_window_decides_more_than_the_mask_every_shard_has_one(tmp_path: Path) -> None:
    header = header_of(tmp_path, "cohere2", block_count=8, attention__sliding_window=4096)
    assert rules_for(header).legal_cuts == (1, 2, 3, 5, 6)


def test_the_input_scale_is_one_in_later_shards_only(tmp_path: Path) -> None:
    header = header_of(tmp_path, "granite", block_count=4, embedding_scale=12.0)
    assert "embedding_scale" not in changes(header, 0, 2)
    assert changes(header, 2, 4)["embedding_scale"] == 1.0


def test_learned_positions_are_zero_in_later_shards_only(tmp_path: Path) -> None:
    header = header_of(tmp_path, "gpt2", "position_embd.weight", block_count=4)
    assert shard_tensor_plan(header, LayerRange(first=0, end=2)) == {}
    assert shard_tensor_plan(header, LayerRange(first=2, end=4)) == {"position_embd.weight": "zero"}


def test_leading_dense_layers_are_counted_from_the_range(tmp_path: Path) -> None:
    header = header_of(tmp_path, "glm4moe", block_count=6, leading_dense_block_count=3)
    assert [changes(header, a, b)["leading_dense_block_count"] for a, b in ((0, 2), (2, 4), (4, 6))] == [2, 1, 0]


def test_layers_for_multi_token_prediction_are_no_layers(tmp_path: Path) -> None:
    header = header_of(tmp_path, "glm4moe", block_count=7, nextn_predict_layers=1)
    assert layer_count(header) == 6
    assert rules_for(header).legal_cuts == (1, 2, 3, 4, 5)
    assert changes(header, 0, 3)["nextn_predict_layers"] == 0


def test_rope_sections_are_no_list_of_layers(tmp_path: Path) -> None:
    header = header_of(tmp_path, "qwen2vl", block_count=4, rope__dimension_sections=[2, 3, 3, 0])
    assert changes(header, 0, 2)["rope.dimension_sections"] == [2, 3, 3, 0]


def test_a_small_deepseek_stays_one_whatever_its_number_of_layers(tmp_path: Path) -> None:
    lite = header_of(tmp_path, "deepseek2", "blk.0.attn_q.weight", block_count=27)
    assert changes(lite, 0, 9)["attention.q_lora_rank"] == 0
    assert rules_for(lite).forbidden_lengths == frozenset()
    large = header_of(tmp_path, "deepseek2", block_count=61, attention__q_lora_rank=1536)
    assert "attention.q_lora_rank" not in changes(large, 0, 9)
    assert rules_for(large).forbidden_lengths == {26, 27}
    with pytest.raises(FamilyRefused, match="a shard of 27 layers would be taken for a smaller model"):
        changes(large, 0, 27)


@pytest.mark.parametrize(("family", "n_layers"), [("gemma2", 46), ("gemma3", 62), ("exaone4", 64), ("command-r", 64)])
def test_models_whose_arithmetic_follows_from_their_size_are_refused(
    tmp_path: Path, family: str, n_layers: int
) -> None:
    with pytest.raises(FamilyRefused, match=f"{family} with {n_layers} layers cannot be split"):
        rules_for(header_of(tmp_path, family, block_count=n_layers))


def test_gemma4_is_refused_where_its_layers_read_the_tokens_themselves(tmp_path: Path) -> None:
    keys: dict[str, Value] = {"attention__sliding_window_pattern": [True, True, False] * 2}
    with pytest.raises(FamilyRefused, match="gemma4 of this size cannot be split"):
        rules_for(header_of(tmp_path, "gemma4", block_count=6, embedding_length_per_layer_input=256, **keys))
    header = header_of(tmp_path, "gemma4", block_count=6, embedding_length_per_layer_input=0, **keys)
    assert rules_for(header).legal_cuts == (3,)
