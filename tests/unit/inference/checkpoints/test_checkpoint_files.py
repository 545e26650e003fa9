"""Which files are the checkpoint, and whether index, files and config.json tell of one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shardnet.errors import CheckpointError, UsageError
from shardnet.inference.checkpoints.files import find_checkpoint, is_checkpoint
from shardnet.inference.checkpoints.sharded import ShardedSafeTensors
from tests.support.checkpoints import (
    CONFIG_4,
    FILES,
    llama_tensors,
    read_index,
    write_config,
    write_index,
    write_sharded,
    write_single,
)

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "sharded")


@pytest.mark.parametrize("name", ["", INDEX, *FILES])
def test_folder_index_and_any_part_lead_to_the_same_checkpoint(sharded: Path, name: str) -> None:
    files = find_checkpoint(sharded / name)
    assert [path.name for path in files.paths] == list(FILES)
    assert files.index == sharded / INDEX


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_single_file_needs_no_index(tmp_path: Path, name: str) -> None:
    files = find_checkpoint(write_single(tmp_path / "single") / name)
    assert [path.name for path in files.paths] == ["model.safetensors"]
    assert files.index is None


def test_strangers_in_the_folder_are_ignored_by_name(sharded: Path) -> None:
    strangers = ["adapter_model.safetensors", "consolidated.00.pth", "consolidated.safetensors", "pytorch_model.bin"]
    for name in strangers:
        (sharded / name).write_bytes(b"not read")
    checkpoint = ShardedSafeTensors(sharded)
    assert checkpoint.summary()["ignored"] == strangers
    assert checkpoint.tensor_names() == ShardedSafeTensors(sharded / FILES[0]).tensor_names()


def test_a_linked_folder_as_the_hub_keeps_it_is_read(sharded: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(tmp_path / f"blob{number}")
        (snapshot / file.name).symlink_to(tmp_path / f"blob{number}")
    assert len(ShardedSafeTensors(snapshot).tensors) == len(llama_tensors())


def test_two_checkpoints_in_one_folder_are_not_chosen_between(sharded: Path) -> None:
    shutil.copy(sharded / FILES[0], sharded / "model.safetensors")
    with pytest.raises(UsageError, match="more than one checkpoint"):
        find_checkpoint(sharded)
    assert find_checkpoint(sharded / INDEX).ignored == ("model.safetensors",)


def test_parts_without_an_index_are_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    for path in (sharded, sharded / FILES[1]):
        with pytest.raises(CheckpointError, match=r"one part of a checkpoint.*fetch the index"):
            find_checkpoint(path)


def test_pickles_alone_are_refused_and_said_to_be_unsafe(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert is_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="can run code"):
        find_checkpoint(tmp_path)


def test_a_missing_file_is_named_before_anything_is_read(sharded: Path) -> None:
    (sharded / FILES[0]).write_bytes(b"broken, and not looked at")
    (sharded / FILES[1]).unlink()
    with pytest.raises(CheckpointError, match=f"names {FILES[1]}, which is not there"):
        ShardedSafeTensors(sharded)


def test_a_tensor_that_its_file_does_not_hold_is_named(sharded: Path) -> None:
    places = read_index(sharded)
    write_index(sharded, places | {"model.extra": FILES[0]}, 1)
    with pytest.raises(CheckpointError, match=r"'model\.extra' in model-00001.*no file holds it"):
        ShardedSafeTensors(sharded)
    write_index(sharded, places | {"lm_head.weight": FILES[0]}, 1)
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' in model-00001.*model-00002.*holds it"):
        ShardedSafeTensors(sharded)


def test_a_tensor_that_the_index_does_not_name_is_named(sharded: Path) -> None:
    places = read_index(sharded)
    del places["lm_head.weight"]
    write_index(sharded, places, 1)
    with pytest.raises(CheckpointError, match=r"holds tensor 'lm_head\.weight', which .* does not name"):
        ShardedSafeTensors(sharded)


def test_a_tensor_in_two_files_is_named_with_both(sharded: Path) -> None:
    arrays = load_file(sharded / FILES[1])
    save_file(arrays | {"model.norm.weight": np.zeros(8, np.float32)}, sharded / FILES[1])
    with pytest.raises(CheckpointError, match=rf"'model\.norm\.weight' stands in two files, {FILES[0]} and {FILES[1]}"):
        ShardedSafeTensors(sharded)


def test_a_tensor_that_the_index_names_twice_is_refused(sharded: Path) -> None:
    (sharded / INDEX).write_text(f'{{"weight_map": {{"a": "{FILES[0]}", "a": "{FILES[1]}"}}}}')
    with pytest.raises(CheckpointError, match="names 'a' twice"):
        ShardedSafeTensors(sharded)


def test_an_index_that_lies_about_bytes_is_refused_with_both_numbers(sharded: Path) -> None:
    nbytes = ShardedSafeTensors(sharded).total_bytes
    write_index(sharded, read_index(sharded), nbytes + 1)
    with pytest.raises(CheckpointError, match=rf"{nbytes + 1} bytes, and they have {nbytes}\b"):
        ShardedSafeTensors(sharded)
    write_index(sharded, read_index(sharded), float(nbytes))  # older versions wrote it so
    assert ShardedSafeTensors(sharded).total_bytes == nbytes


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "model.bin", 7, "a" * 300 + ".safetensors"],
)
def test_an_index_leads_nowhere_but_to_files_beside_it(sharded: Path, name: Any) -> None:
    write_index(sharded, {"a": name}, 0)
    with pytest.raises(CheckpointError, match="no SafeTensors file beside it"):
        ShardedSafeTensors(sharded)


def test_layers_said_and_found_are_both_in_the_sentence(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "x", llama_tensors(80), num_hidden_layers=48)
    with pytest.raises(CheckpointError, match="says 48 layers, and the tensors have 80"):
        ShardedSafeTensors(folder)


def test_layers_of_pictures_are_not_counted_as_the_models(tmp_path: Path) -> None:
    arrays = llama_tensors() | {f"vision_tower.blocks.{i}.attn.{n}": np.zeros(4) for i in range(9) for n in "abcdef"}
    checkpoint = ShardedSafeTensors(write_single(tmp_path / "x", arrays, vision_config={"depth": 9}))
    facts = checkpoint.summary()
    assert (facts["n_layers"], checkpoint.modality) == (3, "text+image")


def test_layers_for_multi_token_prediction_may_follow(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "x", llama_tensors(4), num_nextn_predict_layers=1)
    assert ShardedSafeTensors(folder).summary()["n_layers"] == 4


def test_a_layer_without_tensors_is_named(tmp_path: Path) -> None:
    arrays = {name: array for name, array in llama_tensors(4).items() if ".layers.1." not in name}
    with pytest.raises(CheckpointError, match="layer 1 has no tensors"):
        ShardedSafeTensors(write_single(tmp_path / "x", arrays))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 9}, "a width of 9, and model.embed_tokens.weight has 8"),
        ({"vocab_size": 17}, "a vocabulary of 17, and model.embed_tokens.weight has 16"),
        ({"hidden_size": "8"}, "no number above zero"),
        ({"num_hidden_layers": True}, "no number above zero"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope type 'spiral', which is not known"),
        ({"rope_parameters": {"full_attention": {"rope_type": "spiral"}}}, "rope type 'spiral', which is not known"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, r"rope type \['linear'\], which is not known"),
        ({"rope_parameters": None, "rope_scaling": {"type": "spiral"}}, "rope type 'spiral', which is not known"),
    ],
)
def test_a_config_that_the_weights_contradict_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ShardedSafeTensors(write_single(tmp_path / "x", **changes))


def test_experts_are_counted_apart_and_fused(tmp_path: Path) -> None:
    apart = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": np.zeros((2, 2)) for i in range(4)}
    fused = {"model.layers.0.mlp.experts.gate_up_proj": np.zeros((4, 2, 2))}
    for arrays in (apart, fused):
        folder = write_single(tmp_path / "x", llama_tensors() | arrays, num_experts=4)
        assert ShardedSafeTensors(folder).summary()["config"]["n_experts"] == 4
        write_config(folder, num_experts=64)
        with pytest.raises(CheckpointError, match=r"experts: 64, and .* has 4"):
            ShardedSafeTensors(folder)


def test_an_untied_model_without_a_head_is_refused_and_a_tied_one_is_not(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "x", llama_tensors(has_head=False))
    with pytest.raises(CheckpointError, match=r"no tensor is a head"):
        ShardedSafeTensors(folder)
    for said in (True, None):
        write_config(folder, tie_word_embeddings=said)
        assert ShardedSafeTensors(folder).summary()["has_head"] is False


@pytest.mark.parametrize("said", ["x", "false", 1, []])
def test_tied_embeddings_are_true_or_false(tmp_path: Path, said: object) -> None:
    folder = write_single(tmp_path / "x", llama_tensors())
    write_config(folder, tie_word_embeddings=said)
    with pytest.raises(CheckpointError, match=r"says tie_word_embeddings = .*, which is neither true nor false"):
        ShardedSafeTensors(folder)


def test_versions_4_and_5_of_transformers_say_the_same(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "x")
    five = ShardedSafeTensors(folder)
    write_config(folder, CONFIG_4)
    four = ShardedSafeTensors(folder)
    assert four.summary() == five.summary()
    assert four.config is not None
    assert five.config is not None
    assert four.config.rope == five.config.rope == {"": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    assert four.config.dtype == five.config.dtype == "bfloat16"


def test_a_nested_text_config_is_found_and_the_whole_still_counts(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "gemma3", "tie_word_embeddings": False, "vision_config": {}}
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(outer | {"text_config": config | {"model_type": "gemma3_text"}}))
    found = ShardedSafeTensors(folder).config
    assert found is not None
    assert (found.model_type, found.n_layers, found.is_tied) == ("gemma3", 3, False)


def test_windows_with_a_rope_of_their_own_are_told_apart_in_both_versions(tmp_path: Path) -> None:
    folder = write_single(tmp_path / "x")
    write_config(folder, CONFIG_4, rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=1e4)
    four = ShardedSafeTensors(folder).config
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    write_config(folder, rope_parameters=kinds)
    five = ShardedSafeTensors(folder).config
    assert four is not None
    assert five is not None
    assert four.rope == five.rope == kinds
