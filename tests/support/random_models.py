"""Small random GGUFs of many model families, for tests that need structure and arithmetic rather than sense.

`build_random_model` writes a complete model that stock llama.cpp opens: the family's metadata comes from `random_families.py`, the list of its
tensors from llama.cpp itself (`llama_model_init_from_user` creates every tensor that a family may have), the values from a seeded generator.
`tiny_llama` needs no llama.cpp at all.
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from numpy.typing import NDArray

from tests.support.random_families import N_EMBD, RECIPES, Value, common_keys

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""What numpy can quantise; for the other types see `quantise` (llama.cpp does it)."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = (
    "t h",
    "h e",
    "i n",
    "e r",
    "a n",
    "Ġ t",
    "Ġ a",
    "o n",
    "r e",
    "th e",
    "Ġt he",
    "an d",
    "in g",
    "Ġa nd",
    "o r",
    "e n",
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
N_VOCAB = 288
"""256 bytes, 16 merges, 3 special tokens, and unused ones up to here."""

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6  # llama_token_type


@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor of a family: ggml's name and dimensions (fastest first)."""

    name: str
    dims: tuple[int, ...]


# -- vocabulary ----------------------------------------------------------------------------------------------------------------------------


def _byte_letters() -> list[str]:
    """Returns: the printable letter that stands for each byte in GPT-2's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(plain))
    return [letters[byte] for byte in range(256)]


def bpe_vocabulary(n_vocab: int = N_VOCAB) -> dict[str, Value]:
    """Returns: a byte-level BPE tokenizer that can encode any text, with a chat template."""
    tokens = [*_byte_letters(), *(merge.replace(" ", "") for merge in MERGES), *SPECIAL_TOKENS]
    types = [NORMAL] * (len(tokens) - len(SPECIAL_TOKENS)) + [CONTROL] * len(SPECIAL_TOKENS)
    if n_vocab < len(tokens):
        raise ValueError(f"a vocabulary of {n_vocab} tokens; {len(tokens)} is the least")
    types += [UNUSED] * (n_vocab - len(tokens))
    end = tokens.index("<|endoftext|>")
    tokens += [f"[UNUSED{index}]" for index in range(n_vocab - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end + 2,
        "tokenizer.ggml.unknown_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def spm_vocabulary(n_vocab: int = N_VOCAB) -> dict[str, Value]:
    """Returns: a SentencePiece tokenizer with byte fallback, as Llama 2 and Gemma have it."""
    letters = [*"▁etaoinshrdlu", "▁t", "th", "▁th", "he", "▁the", "in", "an", "er"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|endoftext|>", *letters]
    types = [2, CONTROL, CONTROL, *[BYTE] * 256, CONTROL, *[NORMAL] * len(letters)]
    scores = [0.0] * 260 + [-float(index + 1) for index in range(len(letters))]
    unused = n_vocab - len(tokens)
    if unused < 0:
        raise ValueError(f"a vocabulary of {n_vocab} tokens; {len(tokens)} is the least")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*tokens, *(f"[UNUSED{index}]" for index in range(unused))],
        "tokenizer.ggml.scores": [*scores, *[-1000.0] * unused],
        "tokenizer.ggml.token_type": [*types, *[UNUSED] * unused],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def with_tokens(vocabulary: Mapping[str, Any], added: Mapping[str, int]) -> dict[str, Value]:
    """Returns: the vocabulary with texts in the place of unused tokens, each with its type."""
    tokens, types = list(vocabulary["tokenizer.ggml.tokens"]), list(vocabulary["tokenizer.ggml.token_type"])
    for number, (text, kind) in enumerate(added.items()):
        tokens[-1 - number], types[-1 - number] = text, kind
    return {**vocabulary, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}


# -- values --------------------------------------------------------------------------------------------------------------------------------


def random_values(tensor: TensorShape, seed: int) -> NDArray[np.float32]:
    """Returns: float32 values of a size that keeps activations near one through any number of layers; the same for the same name and seed."""
    generator = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    shape = tuple(reversed(tensor.dims))
    values = generator.standard_normal(shape, dtype=np.float32)
    name = tensor.name
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * values
    if "ssm_a" in name:
        return -np.abs(values) - np.float32(0.05)  # a state must decay
    if name.startswith("rope_f") or ".rope_f" in name:
        return 1 + np.abs(values)
    if len(tensor.dims) == 1 or name.endswith("bias"):
        return np.float32(0.2) * values
    if name.startswith(("token_embd", "position_embd")):
        return values
    return values / np.float32(np.sqrt(tensor.dims[0]))


FLOAT_ONLY = (
    "*norm*", "*ffn_gate_inp*", "*ssm_conv1d*", "*shortconv.conv*", "position_embd*", "token_types*", "*.bias", "*time_mix_*",
    "*ssm_a*", "*ssm_d*", "*ssm_ba*", "*altup*", "*laurel*", "*cross_attn*", "*attn_kv_a*",
)  # fmt: skip
"""Tensors that llama.cpp's own quantiser leaves alone, or whose kernels want floats."""


def stored(
    tensor: TensorShape, values: NDArray[np.float32], quantisation: str
) -> tuple[NDArray[Any], GGMLQuantizationType]:
    """Returns: the bytes as they are written, and their type: `quantisation` where the tensor's shape and kind allow it."""
    kind = GGMLQuantizationType[quantisation]
    block = 1 if quantisation in ("F32", "F16", "BF16") else 32
    kept = len(tensor.dims) < 2 or tensor.dims[0] % block or any(fnmatch.fnmatch(tensor.name, p) for p in FLOAT_ONLY)
    if kept or quantisation == "F32":
        return values, GGMLQuantizationType.F32
    return quants.quantize(values, kind), kind


# -- writing -------------------------------------------------------------------------------------------------------------------------------


def add_value(writer: GGUFWriter, key: str, value: Value) -> None:
    """Write one metadata value in the type that converters use for it: uint32, float32, and arrays of int32, float32, bool and strings."""
    if isinstance(value, list):
        sub = {
            bool: GGUFValueType.BOOL,
            int: GGUFValueType.INT32,
            float: GGUFValueType.FLOAT32,
            str: GGUFValueType.STRING,
        }
        writer.add_key_value(
            key, value, GGUFValueType.ARRAY, sub_type=sub[type(value[0])] if value else GGUFValueType.INT32
        )
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def write_model(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorShape],
    *,
    quantisation: str,
    seed: int,
) -> Path:
    """Write a GGUF whose tensors have seeded random values."""
    writer = GGUFWriter(path, architecture)
    writer.add_file_type(FILE_TYPES[quantisation])
    for key, value in metadata.items():
        if value != []:
            add_value(writer, key, value)
    for tensor in tensors:
        data, kind = stored(tensor, random_values(tensor, seed), quantisation)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_llama(
    path: Path,
    *,
    n_layers: int = 6,
    n_embd: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    n_vocab: int = N_VOCAB,
    n_ctx: int = 512,
    tied: bool = True,
    quantisation: str = "F16",
    name: str = "tiny-llama",
    seed: int = 1,
    extra: Mapping[str, Value] | None = None,
) -> Path:
    """A random Llama of about half a megabyte with a tokenizer and a chat template. llama.cpp is not needed to write it.

    Args:
        extra: more metadata, or other values for some keys.

    Returns: `path`.
    """
    n_ff, n_kv = 2 * n_embd, n_embd // n_heads * n_kv_heads
    metadata: dict[str, Value] = {
        "general.name": name,
        "llama.vocab_size": n_vocab,
        "llama.context_length": n_ctx,
        "llama.embedding_length": n_embd,
        "llama.block_count": n_layers,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_heads,
        "llama.attention.head_count_kv": n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": n_embd // n_heads,
        **bpe_vocabulary(n_vocab),
        **(extra or {}),
    }
    tensors = [TensorShape("token_embd.weight", (n_embd, n_vocab)), TensorShape("output_norm.weight", (n_embd,))]
    if not tied:
        tensors.append(TensorShape("output.weight", (n_embd, n_vocab)))
    for layer in range(n_layers):
        tensors += [
            TensorShape(f"blk.{layer}.{part}.weight", dims)
            for part, dims in (
                ("attn_norm", (n_embd,)),
                ("attn_q", (n_embd, n_embd)),
                ("attn_k", (n_embd, n_kv)),
                ("attn_v", (n_embd, n_kv)),
                ("attn_output", (n_embd, n_embd)),
                ("ffn_norm", (n_embd,)),
                ("ffn_gate", (n_embd, n_ff)),
                ("ffn_up", (n_embd, n_ff)),
                ("ffn_down", (n_ff, n_embd)),
            )
        ]
    return write_model(path, "llama", metadata, tensors, quantisation=quantisation, seed=seed)


# -- every other family --------------------------------------------------------------------------------------------------------------------


@cache
def _gguf_library() -> tuple[Any, Any]:
    import llama_cpp

    class InitParams(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    name = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))
    library = ctypes.CDLL(str(name))
    library.gguf_init_from_file.restype, library.gguf_init_from_file.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_char_p, InitParams],
    )
    library.gguf_free.restype, library.gguf_free.argtypes = None, [ctypes.c_void_p]
    library.ggml_get_name.restype, library.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return library, InitParams


class _TensorHead(ctypes.Structure):
    """The first fields of `struct ggml_tensor` (ggml.h): all that is read here."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4))


def tensors_of(architecture: str, metadata: Mapping[str, Value], leave_out: Sequence[str] = ()) -> list[TensorShape]:
    """Returns: every tensor that llama.cpp can use for this metadata, optional ones included, but those that match a pattern of `leave_out`.

    The metadata must be whole and make sense for the family.
    """
    import llama_cpp

    from shardnet.inference.llama.model import start_backend

    start_backend()
    library, init_params = _gguf_library()
    found: dict[str, TensorShape] = {}

    def on_tensor(tensor: int, _user_data: int | None) -> None:
        name = library.ggml_get_name(tensor).decode()
        head = ctypes.cast(tensor, ctypes.POINTER(_TensorHead)).contents
        dims = list(head.ne)
        while len(dims) > 1 and dims[-1] == 1:
            dims.pop()
        found[name] = TensorShape(name, tuple(dims))

    handle, file = tempfile.mkstemp(suffix=".gguf")
    os.close(handle)
    try:
        write_model(Path(file), architecture, metadata, [], quantisation="F32", seed=0)
        header = library.gguf_init_from_file(os.fsencode(file), init_params(True, None))
    finally:
        Path(file).unlink()
    callback = llama_cpp.llama_model_set_tensor_data_t(on_tensor)
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False
    model = llama_cpp.llama_model_init_from_user(header, callback, None, params)
    library.gguf_free(header)
    if not model:
        from shardnet.inference.llama.native_log import why

        raise ValueError(f"llama.cpp cannot make a {architecture} of this metadata: {why('no reason given')}")
    llama_cpp.llama_model_free(model)
    return [
        tensor for name, tensor in found.items() if not any(fnmatch.fnmatch(name, pattern) for pattern in leave_out)
    ]


NEVER = ("*.scale", "*.input_scale", "*.rope_freqs*", "*_s", "cls*")
"""Optional tensors of special quantisations and of classifiers."""


def build_random_model(
    path: Path,
    family: str,
    *,
    n_layers: int | None = None,
    quantisation: str = "F32",
    seed: int = 1,
    extra: Mapping[str, Value] | None = None,
) -> Path:
    """Write a small random model of a family: more than one period of layers, a vocabulary that can encode any text.

    Args:
        family: a key of `random_families.RECIPES`.
        extra: more metadata, as `{architecture}.{key}` without the architecture; wins over the recipe's.

    Returns: `path`.
    """
    recipe = RECIPES[family]
    count = n_layers or recipe.n_layers
    keys = {**common_keys(count, N_VOCAB), **recipe.keys, **recipe.per_layer(count), **(extra or {})}
    metadata: dict[str, Value] = {
        key[1:] if key.startswith("=") else f"{recipe.architecture}.{key}": value for key, value in keys.items()
    }
    metadata |= {"general.name": f"random-{family}", **(spm_vocabulary() if recipe.spm else bpe_vocabulary())}
    if recipe.mtp:
        tensors = _with_prediction_layer(recipe.architecture, metadata, count, recipe.leave_out)
    else:
        tensors = tensors_of(recipe.architecture, metadata, (*NEVER, *recipe.leave_out))
    return write_model(path, recipe.architecture, metadata, tensors, quantisation=quantisation, seed=seed)


def _with_prediction_layer(
    architecture: str, metadata: Mapping[str, Value], n_layers: int, leave_out: Sequence[str]
) -> list[TensorShape]:
    """Returns: tensors of a model whose last layer predicts one token further. llama.cpp cannot list these without a file."""
    changes: dict[str, Value] = {f"{architecture}.block_count": n_layers - 1, f"{architecture}.nextn_predict_layers": 0}
    tensors = tensors_of(architecture, {**metadata, **changes}, (*NEVER, *leave_out))
    last, extra = f"blk.{n_layers - 2}.", f"blk.{n_layers - 1}."
    tensors += [TensorShape(t.name.replace(last, extra, 1), t.dims) for t in tensors if t.name.startswith(last)]
    shapes = {"eh_proj": (2 * N_EMBD, N_EMBD), "enorm": (N_EMBD,), "hnorm": (N_EMBD,), "shared_head_norm": (N_EMBD,)}
    return tensors + [TensorShape(f"{extra}nextn.{name}.weight", dims) for name, dims in shapes.items()]
