"""Small random checkpoints, saved and run by transformers: python -m tests.bench.make_checkpoints FOLDER [--only NAME]

Runs in an environment of its own (`pip install torch==2.13.0 transformers==5.24.0`), without shardnet, in the repository's folder. Writes
FOLDER/NAME/ (the checkpoint with its tokenizer) and FOLDER/NAME.npz: token ids, logits in float32, and texts with the ids that its tokenizer gives
them. `checkpoint_parity.py` then runs the same over shards.

A case's name ends in `-v4` where config.json is written as version 4 of transformers wrote it, in `-files` where the weights are in many files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.whole_checkpoints import LLAMA3, LLAMA3_ROPE, QWEN2, as_version_4

N_TOKENS, N_VOCAB, FP8_BLOCK = 48, 512, 32
TEXTS = (
    "The lighthouse keeper counted the waves every evening.",
    "def f(x):\n    return x  +  1234567\n\n\n\treturn",
    "Der Fluß fließt schneller, als man denkt; 你好, мир! I'll we've DON'T",
    "<|im_start|>user\nHi<|im_end|>",
    "  spaces   and\ttabs \n",
    "<|im_start|>  user<|im_end|> \n there</s> the end",
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_OTHER, _ENGLISH = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"{_OTHER}[{_UPPER}]*[{_LOWER}]+{_ENGLISH}|{_OTHER}[{_UPPER}]+[{_LOWER}]*{_ENGLISH}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [*TEXTS, *Path(__file__).read_text(encoding="utf-8").splitlines()] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(*cuts: Any, ignore_merges: bool = False, bos: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 8,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def split(expression: str) -> Any:
    return pre_tokenizers.Split(Regex(expression), "isolated")


def plain_bytes() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def llama3_tokenizer() -> Tokenizer:
    return byte_level(split(LLAMA3), plain_bytes(), ignore_merges=True, bos="<s>")


def qwen2_tokenizer() -> Tokenizer:
    tokenizer = byte_level(split(QWEN2), plain_bytes())
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def gpt4o_tokenizer() -> Tokenizer:
    return byte_level(split(GPT4O), plain_bytes())


def starcoder_tokenizer() -> Tokenizer:
    return byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))


def pieces(*, adds_space: bool, strips: bool = False) -> Tokenizer:
    """As SentencePiece's vocabularies look in tokenizer.json: pairs over characters, bytes for what is unknown. `strips`: as Phi-3's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if adds_space else steps)
    special = [*SPECIAL, "<|endoftext|>"] if strips else SPECIAL
    fixed = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 8, special_tokens=fixed, limit_alphabet=60, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    for token in content["added_tokens"]:
        token["rstrip"] = strips and token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [content["model"]["vocab"]["<s>"]], "tokens": ["<s>"]}},
    }
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    return Tokenizer.from_str(json.dumps(content))


@dataclass(frozen=True)
class Case:
    """One checkpoint. `config`: beside the common sizes; `many`: in several files; `v4`: config.json as version 4 wrote it.

    `images`: with a tower for pictures, which is not converted; `fp8`: blocks of F8_E4M3.
    """

    family: str
    tokenizer: Callable[[], Tokenizer]
    config: dict[str, Any] = field(default_factory=dict)
    many: bool = False
    v4: bool = False
    dtype: torch.dtype = torch.float32
    fp8: bool = False
    images: bool = False


COMMON = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 256,
    "short_factor": [1.0 + 0.02 * i for i in range(8)],
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
}
PHI_LONG = {"rope_parameters": LONG, "original_max_position_embeddings": 256, "max_position_embeddings": 1024}
EXPERTS = {
    "head_dim": 32,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
GEMMA = {
    "num_hidden_layers": 6,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
    "logits_scaling": 8.0,
    "attention_bias": True,
}

CASES: dict[str, Case] = {
    "llama": Case("llama", llama3_tokenizer, {"rope_parameters": LLAMA3_ROPE}),
    "llama-v4-files": Case("llama", llama3_tokenizer, {"rope_parameters": LLAMA3_ROPE}, many=True, v4=True),
    "llama-tied-bf16": Case("llama", llama3_tokenizer, {"tie_word_embeddings": True}, dtype=torch.bfloat16),
    "llama-f16": Case("llama", llama3_tokenizer, dtype=torch.float16),
    "llama-pieces": Case("llama", lambda: pieces(adds_space=True)),
    "llama-bias": Case("llama", llama3_tokenizer, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": Case(
        "llama", llama3_tokenizer, {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}
    ),
    "llama-yarn": Case("llama", llama3_tokenizer, {"rope_parameters": YARN}),
    "llama-yarn-length": Case("llama", llama3_tokenizer, {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "llama-heads": Case("llama", llama3_tokenizer, {"head_dim": 32, "num_key_value_heads": 4}),
    "llama-longrope": Case(
        "llama", llama3_tokenizer, {"rope_parameters": LONG | {"factor": 4.0}, "max_position_embeddings": 1024}
    ),
    "mistral": Case("mistral", lambda: pieces(adds_space=True), {"sliding_window": None, "head_dim": 32}),
    "mistral-v4-files": Case("mistral", lambda: pieces(adds_space=True), {"sliding_window": 64}, many=True, v4=True),
    "qwen2": Case("qwen2", qwen2_tokenizer, {"tie_word_embeddings": True}),
    "qwen2-v4-files": Case("qwen2", qwen2_tokenizer, {"rope_parameters": YARN}, many=True, v4=True),
    "qwen3": Case("qwen3", qwen2_tokenizer, {"head_dim": 32}),
    "qwen3-v4-files": Case("qwen3", qwen2_tokenizer, {"head_dim": 32, "tie_word_embeddings": True}, many=True, v4=True),
    "qwen3-fp8": Case("qwen3", qwen2_tokenizer, {"head_dim": 32}, fp8=True),
    "qwen3moe": Case("qwen3_moe", qwen2_tokenizer, EXPERTS),
    "qwen3moe-v4-files": Case("qwen3_moe", qwen2_tokenizer, EXPERTS, many=True, v4=True),
    "gemma3": Case("gemma3_text", lambda: pieces(adds_space=False), GEMMA),
    "gemma3-v4-files": Case("gemma3_text", lambda: pieces(adds_space=False), GEMMA, many=True, v4=True),
    "gemma3-scaled": Case(
        "gemma3_text",
        lambda: pieces(adds_space=False),
        GEMMA
        | {
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 30.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma3-images": Case("gemma3", lambda: pieces(adds_space=False), {}, images=True),
    "phi3": Case("phi3", gpt4o_tokenizer, {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.75}}),
    "phi3-v4-files": Case("phi3", lambda: pieces(adds_space=True, strips=True), PHI_LONG, many=True, v4=True),
    "phi3-long": Case("phi3", gpt4o_tokenizer, PHI_LONG | {"original_max_position_embeddings": 16}),
    "smollm3": Case("smollm3", llama3_tokenizer, {"num_hidden_layers": 8}),
    "smollm3-v4-files": Case(
        "smollm3", llama3_tokenizer, {"num_hidden_layers": 8, "rope_parameters": YARN}, many=True, v4=True
    ),
    "granite": Case("granite", starcoder_tokenizer, GRANITE),
    "granite-v4-files": Case(
        "granite", starcoder_tokenizer, GRANITE | {"tie_word_embeddings": True}, many=True, v4=True
    ),
}


def randomised(model: Any) -> None:
    """Weights that make logits worth comparing: norms, biases and positions are all at work."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            if weight.ndim == 1 and "bias" not in name:
                weight.add_((0.2 * noise).to(weight.dtype))
            else:
                scale = 0.2 if weight.ndim == 1 else 2.0 / weight.shape[-1] ** 0.5
                weight.copy_((scale * noise).to(weight.dtype))


def as_fp8(target: Path, model: Any) -> None:
    """Put blocks of F8 with their scales into a saved checkpoint, and into the model what they stand for, in BF16."""
    path = target / "model.safetensors"
    arrays, named = {}, dict(model.named_parameters())
    for name, weight in named.items():
        if not name.endswith("_proj.weight"):
            arrays[name] = weight.detach().contiguous()
            continue
        rows, columns = weight.shape
        scales = torch.empty(-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
        stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        for row, column in np.ndindex(*scales.shape):
            block = (
                slice(row * FP8_BLOCK, (row + 1) * FP8_BLOCK),
                slice(column * FP8_BLOCK, (column + 1) * FP8_BLOCK),
            )
            scales[row, column] = weight[block].abs().max() / 448
            stored[block] = (weight[block] / scales[row, column]).to(torch.float8_e4m3fn)
            with torch.no_grad():
                weight[block] = (stored[block].float() * scales[row, column]).to(torch.bfloat16).float()
        arrays[name], arrays[f"{name}_scale_inv"] = stored, scales
    safetensors.torch.save_file(arrays, path, {"format": "pt"})
    config = target / "config.json"
    method = {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK], "activation_scheme": "dynamic"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": method}))


def make(name: str, case: Case, folder: Path) -> None:
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    keys = {"text_config": COMMON | GEMMA, "vision_config": TOWER} if case.images else COMMON | case.config
    config = transformers.AutoConfig.for_model(case.family, **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomised(model)
    model = model.to(case.dtype)
    model.save_pretrained(target, max_shard_size="100KB" if case.many else "1GB")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=case.tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(target)
    path = target / "config.json"
    if case.v4:
        path.write_text(json.dumps(as_version_4(json.loads(path.read_text())), indent=2))
    if case.fp8:
        as_fp8(target, model)
    reader = transformers.AutoModelForCausalLM
    read_back = model if case.fp8 else reader.from_pretrained(target, dtype=torch.float32, attn_implementation="eager")
    read_back = read_back.eval()
    tokens = np.random.default_rng(3).integers(260, N_VOCAB - 8, N_TOKENS)
    with torch.no_grad():
        logits = read_back(torch.tensor(tokens[None])).logits[0].numpy()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    np.savez(folder / f"{name}.npz", tokens=tokens, logits=logits, texts=json.dumps([TEXTS, ids]))
    files = len(list(target.glob("*.safetensors")))
    sys.stdout.write(f"{name}: {files} files, logits {logits.min():.3f} to {logits.max():.3f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="names that begin with this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, case in CASES.items():
        if name.startswith(arguments.only or ""):
            make(name, case, arguments.folder)


if __name__ == "__main__":
    main()
