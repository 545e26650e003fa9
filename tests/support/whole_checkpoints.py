"""Small whole checkpoints of each family that is converted: weights out of a fixed stream of numbers, config.json, tokenizer, chat template.

Needs numpy and safetensors alone, so that the environment with transformers can make the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Arrays = dict[str, NDArray[Any]]
Content = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

WITH_QK_NORM = frozenset({"qwen3", "qwen3_moe", "gemma3_text"})

N_VOCAB, N_LAYERS, N_EMBD, N_FF = 288, 4, 32, 48
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _ENGLISH + _WORDS % r"\p{N}{1,3}"
QWEN2 = _ENGLISH + _WORDS % r"\p{N}"
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "e r", "o n", "Ġ a", "1 2", "12 3")

GOLDEN_TOKENS = [(37 * position) % 250 + 5 for position in range(24)]
GOLDEN_ROWS, GOLDEN_IDS = range(2, 24, 3), range(1, N_VOCAB, 26)
"""Which logits tests/golden/checkpoints.json holds: of these tokens, in these rows, for these tokens."""

BASE: Content = {
    "vocab_size": N_VOCAB,
    "hidden_size": N_EMBD,
    "intermediate_size": N_FF,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "transformers_version": "5.24.0",
}
PLAIN_ROPE: Content = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3_ROPE: Content = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Content] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rope_parameters": LLAMA3_ROPE},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "sliding_window": None,
        "head_dim": 16,
        "rope_parameters": PLAIN_ROPE,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True, "rope_parameters": PLAIN_ROPE},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "rope_parameters": PLAIN_ROPE},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "rope_parameters": PLAIN_ROPE,
    },
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "pad_token_id": 0,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 256,
            "short_factor": [1.0, 1.1, 1.2],
            "long_factor": [1.0, 2.0, 4.0],
        },
    },
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "num_hidden_layers": 8,
        "pad_token_id": 0,
        "rope_parameters": PLAIN_ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "attention_bias": True,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.1,
        "logits_scaling": 8.0,
        "rope_parameters": PLAIN_ROPE,
    },
}
"""Family -> its config.json over `BASE`, as version 5 of transformers writes it."""


def family_config(family: str, **changes: Any) -> Content:
    """Returns: a family's config.json as version 5 writes it; a change to None leaves the key out."""
    content = BASE | {"model_type": family} | FAMILIES[family] | changes
    return {key: value for key, value in content.items() if value is not None or key == "sliding_window"}


def as_version_4(content: Content) -> Content:
    """Returns: config.json with the keys that version 4 of transformers wrote."""
    content = dict(content)
    rope = dict(content.pop("rope_parameters"))
    content["torch_dtype"] = content.pop("dtype")
    if "full_attention" in rope:
        content["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    content["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        content["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    content["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    content["transformers_version"] = "4.46.0"
    return content


def family_shapes(family: str, config: Content) -> Shapes:
    """Returns: name -> shape of every tensor of such a checkpoint, in the order of the layers."""
    width, ff = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        parts: Shapes = {
            "input_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (heads * head, width),
            "self_attn.k_proj.weight": (kv_heads * head, width),
            "self_attn.v_proj.weight": (kv_heads * head, width),
            "self_attn.o_proj.weight": (width, heads * head),
            "post_attention_layernorm.weight": (width,),
            "mlp.gate_proj.weight": (ff, width),
            "mlp.up_proj.weight": (ff, width),
            "mlp.down_proj.weight": (width, ff),
        }
        parts |= {f"self_attn.{name}_norm.weight": (head,) for name in "qk" if family in WITH_QK_NORM}
        biased = {"qwen2": "qkv", "granite": "qkvo"}.get(family, "")
        parts |= {f"self_attn.{name}_proj.bias": parts[f"self_attn.{name}_proj.weight"][:1] for name in biased}
        if family == "gemma3_text":
            parts |= {f"{name}_feedforward_layernorm.weight": (width,) for name in ("pre", "post")}
        if family == "phi3":
            parts = _fused(parts)
        if family == "qwen3_moe":
            parts = _with_experts(parts, config)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes


def _fused(parts: Shapes) -> Shapes:
    """Returns: q, k and v as one tensor, gate and up as another."""
    rows, width = sum(parts.pop(f"self_attn.{name}_proj.weight")[0] for name in "qkv"), parts["input_layernorm.weight"]
    ff = parts.pop("mlp.gate_proj.weight")[0] + parts.pop("mlp.up_proj.weight")[0]
    return parts | {"self_attn.qkv_proj.weight": (rows, *width), "mlp.gate_up_proj.weight": (ff, *width)}


def _with_experts(parts: Shapes, config: Content) -> Shapes:
    """Returns: the feed-forward part as a router and experts."""
    for name in ("gate", "up", "down"):
        rows, columns = parts.pop(f"mlp.{name}_proj.weight")
        shape = tuple(
            config["moe_intermediate_size"] if n == config["intermediate_size"] else n for n in (rows, columns)
        )
        parts |= {f"mlp.experts.{expert}.{name}_proj.weight": shape for expert in range(config["num_experts"])}
    return parts | {"mlp.gate.weight": (config["num_experts"], config["hidden_size"])}


def family_tensors(family: str, config: Content) -> Arrays:
    """Returns: float32 weights: norms near one, all else as large as its width allows. `RandomState` gives the same for ever."""
    stream = np.random.RandomState(11)
    arrays = {}
    for name, shape in family_shapes(family, config).items():
        noise = stream.standard_normal(shape)
        is_norm = len(shape) == 1 and "bias" not in name
        scale = 0.2 if len(shape) == 1 else 2.0 / shape[-1] ** 0.5
        arrays[name] = (scale * noise + is_norm).astype(np.float32)
    return arrays


def byte_letters() -> list[str]:
    """Returns: the letter that byte-level tokenizers write for each byte. Source: GPT-2's encoder.py."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def byte_level_tokenizer(expression: str = QWEN2, *, ignore_merges: bool = False, bos: str | None = None) -> Content:
    """Returns: a tokenizer.json that merges a few pairs over bytes."""
    texts = [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    template = [{"Sequence": {"id": "A", "type_id": 0}}]
    if bos is not None:
        template.insert(0, {"SpecialToken": {"id": bos, "type_id": 0}})
    return {
        "version": "1.0",
        "added_tokens": [added_token(number, text) for number, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {} if bos is None else {bos: {"id": bos, "ids": [SPECIAL.index(bos)], "tokens": [bos]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "byte_fallback": False,
            "vocab": {text: number for number, text in enumerate(texts)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def piece_tokenizer() -> Content:
    """Returns: a tokenizer.json as Gemma's: pairs over characters, with bytes for what is unknown."""
    merges = [merge.replace("Ġ", "\u2581") for merge in MERGES]
    letters = sorted({*"".join(merges).replace(" ", "")})
    texts = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        *(merge.replace(" ", "") for merge in merges),
    ]
    content = byte_level_tokenizer()
    content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    content["pre_tokenizer"] = split
    content["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    content["model"] |= {
        "byte_fallback": True,
        "unk_token": "<unk>",
        "vocab": {text: number for number, text in enumerate(texts)},
        "merges": [merge.split(" ") for merge in merges],
    }
    return content


def added_token(number: int, text: str, *, special: bool = True) -> Content:
    """Returns: an entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, "special": special} | flags


def write_model(
    folder: Path,
    family: str = "llama",
    *,
    n_files: int = 1,
    version: int = 5,
    tokenizer: Content | None = None,
    arrays: Arrays | None = None,
    **changes: Any,
) -> Path:
    """Write a whole checkpoint; `changes` are keys of config.json. Returns: the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = family_config(family, **changes)
    arrays = family_tensors(family, config) if arrays is None else arrays
    (folder / "config.json").write_text(json.dumps(as_version_4(config) if version == 4 else config))
    write_weights(folder, arrays, n_files)
    content = byte_level_tokenizer() if tokenizer is None else tokenizer
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_weights(folder: Path, arrays: Arrays, n_files: int = 1) -> None:
    """Write one SafeTensors file, or several and their index."""
    if n_files == 1:
        save_file(arrays, folder / "model.safetensors", {"format": "pt"})
        return
    names = [f"model-{number + 1:05}-of-{n_files:05}.safetensors" for number in range(n_files)]
    places = {name: names[n_files * number // len(arrays)] for number, name in enumerate(arrays)}
    for file in names:
        save_file({name: arrays[name] for name in arrays if places[name] == file}, folder / file, {"format": "pt"})
    total = {"total_size": sum(array.nbytes for array in arrays.values())}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": places}))
