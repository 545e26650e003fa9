"""What becomes of a checkpoint's keys and tensors, and what is refused, each with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.config import CheckpointConfig
from shardnet.inference.conversion.families import family_of
from shardnet.inference.conversion.keys import put_keys, read_sizes
from shardnet.inference.conversion.metadata import collected_fields, new_writer
from shardnet.inference.conversion.weights import BLOCK_BYTES
from shardnet.inference.gguf.header import GgufHeader, GgufTensor
from shardnet.inference.opening import open_model
from tests.support.whole_checkpoints import (
    LLAMA3_ROPE,
    PLAIN_ROPE,
    Arrays,
    family_config,
    family_tensors,
    write_model,
)

F32, F16, BF16 = 0, 1, 30


def tensor(header: GgufHeader, name: str) -> GgufTensor:
    return next(one for one in header.tensors if one.name == name)


def data_of(header: GgufHeader, name: str) -> bytes:
    found = tensor(header, name)
    assert found.data is not None
    data = b"".join(bytes(piece) for piece in found.data.pieces(found))
    assert len(data) == found.nbytes
    return data


def numbers(header: GgufHeader, name: str, dtype: Any = np.float32) -> NDArray[Any]:
    return np.frombuffer(data_of(header, name), dtype).reshape(tensor(header, name).shape[::-1])


def tensors_of(family: str, **changes: Any) -> Arrays:
    return family_tensors(family, family_config(family, **changes))


def test_the_keys_are_those_of_config_json(tmp_path: Path) -> None:
    header = open_model(write_model(tmp_path / "m", "granite"))
    keys = {
        "general.architecture": "granite",
        "general.name": "m",
        "granite.block_count": 4,
        "granite.embedding_length": 32,
        "granite.attention.head_count_kv": 2,
        "granite.context_length": 256,
        "granite.embedding_scale": 12.0,
        "granite.logit_scale": 8.0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    assert {key: header.get(key) for key in keys} == keys


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float32, F32), (np.float16, F16), (ml_dtypes.bfloat16, BF16), (np.float64, F32)]
)
def test_weights_stay_what_they_are_and_norms_become_f32(tmp_path: Path, dtype: Any, kind: int) -> None:
    arrays = {name: array.astype(dtype) for name, array in tensors_of("qwen3").items()}
    header = open_model(write_model(tmp_path / "m", "qwen3", arrays=arrays))
    stored = np.float32 if kind == F32 else dtype
    assert tensor(header, "blk.0.ffn_up.weight").ggml_type == kind
    found = numbers(header, "blk.0.ffn_up.weight", stored)
    np.testing.assert_array_equal(found, arrays["model.layers.0.mlp.up_proj.weight"].astype(stored))
    norm = numbers(header, "blk.0.attn_norm.weight")
    np.testing.assert_array_equal(norm, arrays["model.layers.0.input_layernorm.weight"].astype(np.float32))


def test_rows_of_a_head_are_interleaved_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardnet.inference.conversion.weights.BLOCK_BYTES", 1)
    arrays = tensors_of("llama")
    header = open_model(write_model(tmp_path / "m", "llama", arrays=arrays))
    q = arrays["model.layers.1.self_attn.q_proj.weight"]
    order = [head * 8 + half * 4 + pair for head in range(4) for pair in range(4) for half in range(2)]
    np.testing.assert_array_equal(numbers(header, "blk.1.attn_q.weight"), q[order])
    assert BLOCK_BYTES > 1


def test_gemma_norms_get_one_and_make_up_for_another_attention_scale(tmp_path: Path) -> None:
    arrays = tensors_of("gemma3_text")
    header = open_model(write_model(tmp_path / "m", "gemma3_text", arrays=arrays))
    names = {
        "blk.0.post_attention_norm.weight": ("post_attention_layernorm", 1.0),
        "blk.0.attn_k_norm.weight": ("self_attn.k_norm", 1.0),
        "blk.0.attn_q_norm.weight": ("self_attn.q_norm", (16 / 12) ** 0.5),
    }
    for name, (stored, scale) in names.items():
        wanted = (arrays[f"model.layers.0.{stored}.weight"] + 1) * np.float32(scale)
        np.testing.assert_allclose(numbers(header, name), wanted, rtol=1e-6)
    assert header.get("gemma3.attention.sliding_window_pattern") == [True, False, True, False]


def test_experts_are_put_together_in_their_order(tmp_path: Path) -> None:
    arrays = tensors_of("qwen3_moe")
    header = open_model(write_model(tmp_path / "m", "qwen3_moe", arrays=arrays, n_files=3))
    found = numbers(header, "blk.2.ffn_down_exps.weight")
    wanted = np.stack([arrays[f"model.layers.2.mlp.experts.{expert}.down_proj.weight"] for expert in range(4)])
    np.testing.assert_array_equal(found, wanted)


def test_blocks_of_f8_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    arrays: Arrays = {}
    generator = np.random.RandomState(5)
    for name, array in tensors_of("qwen3").items():
        arrays[name] = array
        if name.endswith("_proj.weight"):
            arrays[name] = array.astype(ml_dtypes.float8_e4m3fn)
            scales = generator.rand(-(-array.shape[0] // 20), -(-array.shape[1] // 24)).astype(np.float32)
            arrays[f"{name}_scale_inv"] = scales
    method = {"quant_method": "fp8", "weight_block_size": [20, 24]}
    header = open_model(write_model(tmp_path / "m", "qwen3", arrays=arrays, quantization_config=method))
    name = "model.layers.0.mlp.up_proj.weight"
    wide = np.kron(arrays[f"{name}_scale_inv"], np.ones((20, 24), np.float32))[:48, :32]
    wanted = (arrays[name].astype(np.float32) * wide).astype(ml_dtypes.bfloat16)
    assert tensor(header, "blk.0.ffn_up.weight").ggml_type == BF16
    np.testing.assert_array_equal(numbers(header, "blk.0.ffn_up.weight", ml_dtypes.bfloat16), wanted)


def test_a_tied_head_is_left_out_even_where_it_was_saved(tmp_path: Path) -> None:
    arrays = tensors_of("llama", tie_word_embeddings=False)
    header = open_model(write_model(tmp_path / "m", arrays=arrays, tie_word_embeddings=True))
    assert "output.weight" not in {one.name for one in header.tensors}


def test_the_language_model_is_taken_out_of_one_that_sees(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "gemma3_text")
    plain = open_model(folder)
    text = json.loads((folder / "config.json").read_text())
    for prefix in ("language_model.model.", "model.language_model."):
        arrays = {name.replace("model.", prefix, 1): array for name, array in tensors_of("gemma3_text").items()}
        arrays["vision_tower.vision_model.encoder.layers.0.norm.weight"] = np.ones(4, np.float32)
        arrays["multi_modal_projector.weight"] = np.ones((2, 2), np.float32)
        seeing = write_model(tmp_path / prefix / "m", "gemma3_text", arrays=arrays)
        config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 4}}
        (seeing / "config.json").write_text(json.dumps(config))
        header = open_model(seeing)
        assert header.fields.keys() == plain.fields.keys()
        assert [(one.name, one.shape) for one in header.tensors] == [(one.name, one.shape) for one in plain.tensors]


def test_a_window_that_llama_cpp_has_not_ends_the_context(tmp_path: Path) -> None:
    lengths = {
        window: open_model(write_model(tmp_path / f"{window}", "mistral", sliding_window=window)).get(
            "llama.context_length"
        )
        for window in (None, 100, 1000)
    }
    assert lengths == {None: 256, 100: 100, 1000: 256}
    unused = write_model(tmp_path / "m", "qwen3", sliding_window=100, use_sliding_window=False)
    assert open_model(unused).get("qwen3.context_length") == 256


def test_llama3_factors_and_long_and_short_ones_are_tensors(tmp_path: Path) -> None:
    llama = open_model(write_model(tmp_path / "a", "llama"))
    factors = numbers(llama, "rope_freqs.weight")
    assert factors[0] == 1.0
    assert factors[-1] == LLAMA3_ROPE["factor"]
    phi = open_model(write_model(tmp_path / "b", "phi3"))
    assert numbers(phi, "rope_factors_long.weight").tolist() == [1.0, 2.0, 4.0]
    assert phi.get("phi3.rope.scaling.original_context_length") == 256


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "qwen3_moe",
        {"norm_topk_prob": False},
        "norm_topk_prob = False, and llama.cpp computes qwen3moe models with True",
    ),
    ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
    ("qwen3", {"attention_bias": True}, "attention_bias = True"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50\.0"),
    ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types that are not 4 times"),
    ("smollm3", {"no_rope_layer_interval": 2}, "turns other layers than all but every 4th"),
    ("qwen2", {"head_dim": 16}, "4 heads of 16 for a width of 32"),
    ("llama", {"rope_parameters": PLAIN_ROPE | {"rope_type": "proportional"}}, "the rope type 'proportional'"),
    ("qwen3", {"rope_parameters": LLAMA3_ROPE}, "'llama3', which llama.cpp does not compute for qwen3"),
    ("llama", {"rope_parameters": PLAIN_ROPE | {"rope_type": "linear"}}, "with factor = None, which is no number"),
    ("llama", {"rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor = 0\.5"),
    ("phi3", {"rope_parameters": PLAIN_ROPE | {"rope_type": "longrope", "long_factor": [1]}}, "no list of 4 numbers"),
    ("qwen3", {"head_dim": 15}, "odd"),
    ("granite", {"logits_scaling": "much"}, "logits_scaling = 'much', which is no number"),
]


@pytest.mark.parametrize(("family", "changes", "sentence"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(
    family: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "m", family)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=sentence):
        open_model(folder)


def without(name: str) -> Arrays:
    arrays = tensors_of("llama")
    del arrays[name]
    return arrays


DAMAGED: list[tuple[Arrays, str]] = [
    (without("model.layers.2.mlp.up_proj.weight"), r"no tensor for blk\.2\.ffn_up\.weight"),
    (without("model.norm.weight"), r"no tensor for output_norm\.weight"),
    (tensors_of("llama") | {"model.layers.0.oddity.weight": np.ones(4, np.float32)}, "none that llama.cpp knows"),
    (
        tensors_of("llama") | {"model.layers.0.self_attn.q_proj.weight": np.ones((32, 32), np.int8)},
        "has the dtype I8: weights have one of",
    ),
    (
        tensors_of("llama") | {"model.layers.0.mlp.up_proj.weight": np.ones((48, 32), ml_dtypes.float8_e4m3fn)},
        "and has no scales",
    ),
]


@pytest.mark.parametrize(("arrays", "sentence"), DAMAGED, ids=[sentence for _, sentence in DAMAGED])
def test_weights_that_make_no_model_are_refused(arrays: Arrays, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        open_model(write_model(tmp_path / "m", arrays=arrays))


def test_a_missing_expert_and_another_quantisation_are_refused(tmp_path: Path) -> None:
    arrays = tensors_of("qwen3_moe")
    arrays["model.layers.1.mlp.experts.2.up_proj.weight"] = np.ones((8, 32), np.float32)
    with pytest.raises(CheckpointError, match=r"4 experts of .* are not 4 of one shape"):
        open_model(write_model(tmp_path / "a", "qwen3_moe", arrays=arrays))
    with pytest.raises(CheckpointError, match="quantised by awq"):
        open_model(write_model(tmp_path / "b", quantization_config={"quant_method": "awq"}))


def test_a_file_that_changes_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    header = open_model(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="has changed since"):
        data_of(header, "blk.0.attn_q.weight")


ODD: list[Any] = [None, True, 0, -1, 10**30, float("nan"), "x", [[1]], {"a": {}}]
RARE: dict[str, Any] = {
    "layer_types": ["full_attention"] * 4,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": 2.0,
    "partial_rotary_factor": 1.0,
    "no_rope_layers": [1],
    "rope_scaling": {
        "type": "yarn",
        "factor": 2.0,
        "beta_fast": 32,
        "mscale": 1,
        "mscale_all_dim": 1,
        "truncate": True,
    },
}


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "smollm3", "qwen3_moe", "phi3"])
def test_no_value_of_config_json_is_a_traceback(family: str) -> None:
    content = family_config(family) | RARE
    del content["rope_parameters"]
    changed = [content | {key: value} for key in content for value in ODD]
    changed += [
        content | {"rope_scaling": RARE["rope_scaling"] | {key: value}} for key in RARE["rope_scaling"] for value in ODD
    ]
    refused = 0
    for config in (CheckpointConfig(Path("config.json"), one) for one in changed):
        try:
            kind = family_of(config)
            writer = new_writer(kind.architecture)
            put_keys(writer, config, kind, read_sizes(config, kind))
            collected_fields(writer, config.path)
        except CheckpointError:
            refused += 1
    assert len(changed) > refused > len(changed) // 4
