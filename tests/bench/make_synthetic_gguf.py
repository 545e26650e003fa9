"""Large GGUFs without a download: right shapes, valid blocks, random weights. Written as a stream; the same seed gives the same bytes.

    python -m tests.bench.make_synthetic_gguf 7b FILE          a Llama-2-7B's shape in Q4_0: 3.8 GB
    python -m tests.bench.make_synthetic_gguf 1b FILE          a Llama-3.2-1B's shape; --type Q4_0 or Q8_0, --vocabulary-of OTHER.gguf
    python -m tests.bench.make_synthetic_gguf cache FOLDER     a models cache: 60 shards, each with a vocabulary of 128k tokens

llama.cpp runs all of them: weights have the scale of a fresh initialisation, so that activations stay finite and greedy decoding works. The text
makes no sense.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from shardnet.inference.gguf.element_types import FILE_TYPES, GGML_TYPES
from shardnet.inference.gguf.header import GgufField, GgufValue, ValueType, padded, read_gguf_header
from shardnet.inference.gguf.writer import OutTensor, header_bytes, string_value, u32_value
from shardnet.inference.splitting.cutting import CutRequest, plan_split, split_model

PIECE_BLOCKS = 1 << 18
TYPES = {kind.name: number for number, kind in GGML_TYPES.items()}
MODES = {name: number for number, name in FILE_TYPES.items()}


@dataclass(frozen=True)
class Shape:
    """A Llama."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    n_ctx: int
    rope_base: float
    tied: bool


LLAMA_2_7B = Shape(32, 4096, 11008, 32, 32, 32_000, 4096, 10_000.0, False)
LLAMA_32_1B = Shape(16, 2048, 8192, 32, 8, 128_256, 131_072, 500_000.0, True)
WIDE_VOCABULARY = Shape(60, 256, 256, 4, 4, 128_000, 4096, 10_000.0, True)

Fields = dict[str, GgufValue | GgufField]


def f32_value(number: float) -> GgufValue:
    return GgufValue(ValueType.FLOAT32, number)


def metadata(shape: Shape, quantisation: str, name: str) -> Fields:
    """Returns: everything but the vocabulary."""
    return {
        "general.architecture": string_value("llama"),
        "general.name": string_value(name),
        "general.file_type": u32_value(MODES[quantisation]),
        "general.quantization_version": u32_value(2),
        "llama.block_count": u32_value(shape.n_layers),
        "llama.context_length": u32_value(shape.n_ctx),
        "llama.embedding_length": u32_value(shape.n_embd),
        "llama.feed_forward_length": u32_value(shape.n_ff),
        "llama.attention.head_count": u32_value(shape.n_heads),
        "llama.attention.head_count_kv": u32_value(shape.n_kv_heads),
        "llama.attention.layer_norm_rms_epsilon": f32_value(1e-5),
        "llama.rope.freq_base": f32_value(shape.rope_base),
        "llama.rope.dimension_count": u32_value(shape.n_embd // shape.n_heads),
        "llama.vocab_size": u32_value(shape.n_vocab),
    }


def synthetic_vocabulary(n_vocab: int) -> Fields:
    """Returns: a SentencePiece vocabulary with byte fallback: any text can be encoded, and each token has a text."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"▁{index:x}" for index in range(n_vocab - len(tokens))]
    types = [2, 3, 3, *[6] * 256, *[1] * (n_vocab - 259)]
    return {
        "tokenizer.ggml.model": string_value("llama"),
        "tokenizer.ggml.tokens": GgufValue(ValueType.ARRAY, tokens, ValueType.STRING),
        "tokenizer.ggml.scores": GgufValue(ValueType.ARRAY, [-float(i) for i in range(n_vocab)], ValueType.FLOAT32),
        "tokenizer.ggml.token_type": GgufValue(ValueType.ARRAY, types, ValueType.INT32),
        "tokenizer.ggml.bos_token_id": u32_value(1),
        "tokenizer.ggml.eos_token_id": u32_value(2),
        "tokenizer.ggml.unknown_token_id": u32_value(0),
    }


def tensor(name: str, quantisation: str, *shape: int) -> OutTensor:
    number = TYPES["F32" if len(shape) == 1 else quantisation]
    kind = GGML_TYPES[number]
    return OutTensor(name, shape, number, prod(shape) // kind.block * kind.block_bytes, None)


def tensors_of(shape: Shape, quantisation: str) -> list[OutTensor]:
    """Returns: a Llama's tensors in the order in which converters write them."""
    n_embd, n_ff, n_kv = shape.n_embd, shape.n_ff, shape.n_embd // shape.n_heads * shape.n_kv_heads
    found = [tensor("token_embd.weight", quantisation, n_embd, shape.n_vocab)]
    parts = {
        "attn_norm": (n_embd,), "ffn_down": (n_ff, n_embd), "ffn_gate": (n_embd, n_ff), "ffn_up": (n_embd, n_ff), "ffn_norm": (n_embd,),
        "attn_k": (n_embd, n_kv), "attn_output": (n_embd, n_embd), "attn_q": (n_embd, n_embd), "attn_v": (n_embd, n_kv),
    }  # fmt: skip
    for layer in range(shape.n_layers):
        found += [tensor(f"blk.{layer}.{part}.weight", quantisation, *sides) for part, sides in parts.items()]
    found.append(tensor("output_norm.weight", quantisation, n_embd))
    if not shape.tied:
        found.append(tensor("output.weight", quantisation, n_embd, shape.n_vocab))
    return found


def values(out: OutTensor, generator: np.random.Generator) -> Iterator[bytes]:
    """Yield a tensor's bytes: ones for norms; else blocks whose scale makes weights of about 1 / sqrt(row length)."""
    if len(out.shape) == 1:
        yield np.ones(out.shape, dtype="<f4").tobytes()
        return
    kind = GGML_TYPES[out.ggml_type]
    spread = {"Q4_0": 4.6, "Q8_0": 74.0}[kind.name]  # root mean square of the random integers in a block
    size = 1.0 if out.name == "token_embd.weight" else out.shape[0] ** -0.5
    scale = np.frombuffer(np.float16(size / spread).tobytes(), dtype=np.uint8)
    left = out.nbytes // kind.block_bytes
    while left:
        count = min(left, PIECE_BLOCKS)
        blocks = np.frombuffer(generator.bytes(count * kind.block_bytes), dtype=np.uint8).reshape(count, -1).copy()
        blocks[:, :2] = scale
        yield blocks.tobytes()
        left -= count


def write_model(
    path: Path, shape: Shape, quantisation: str, *, name: str, vocabulary_of: Path | None = None, seed: int = 1
) -> Path:
    """Write a model of a shape.

    Args:
        vocabulary_of: a GGUF whose tokenizer is taken over; the model gets as many tokens as that has.

    Returns: `path`.
    """
    if vocabulary_of is not None:
        fields = read_gguf_header(vocabulary_of).fields
        vocabulary: Fields = {key: field for key, field in fields.items() if key.startswith("tokenizer.")}
        shape = Shape(**{**vars(shape), "n_vocab": fields["tokenizer.ggml.tokens"].count})
    else:
        vocabulary = synthetic_vocabulary(shape.n_vocab)
    tensors = tensors_of(shape, quantisation)
    header, _ = header_bytes(metadata(shape, quantisation, name) | vocabulary, tensors, mark="")
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(header)
        for out in tensors:
            for piece in values(out, generator):
                file.write(piece)
            file.write(bytes(padded(out.nbytes, 32) - out.nbytes))
    return path


def write_cache(folder: Path, n_models: int = 30, n_layers: int = 2) -> Path:
    """Write a models cache of `2 * n_models` shards that all carry a vocabulary of 128k tokens: only first and last ones.

    Returns: `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n_models):
        model = folder / f"wide-{index}.gguf"
        write_model(
            model, Shape(**{**vars(WIDE_VOCABULARY), "n_layers": n_layers}), "Q4_0", name=model.stem, seed=index
        )
        split_model(plan_split(model, CutRequest(n_shards=2)), folder)
        model.unlink()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("7b", "1b", "cache"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--type", choices=("Q4_0", "Q8_0"), default="Q4_0")
    parser.add_argument("--vocabulary-of", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "cache":
        write_cache(arguments.path)
    else:
        shape = LLAMA_2_7B if arguments.what == "7b" else LLAMA_32_1B
        write_model(
            arguments.path,
            shape,
            arguments.type,
            name=f"synthetic-{arguments.what}",
            vocabulary_of=arguments.vocabulary_of,
        )


if __name__ == "__main__":
    main()
