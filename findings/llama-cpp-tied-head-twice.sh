#!/usr/bin/env bash
# llama.cpp on a processor: a model whose head is its embedding table has that table in memory twice, if it is of a type that is laid out anew (Q4_0), and once otherwise (Q4_1).
#
# "Tied" says that there is one matrix, the file has one, and one would reckon with one. But rows are looked up in a table as it lies in the file, and multiplied with one that was laid out for
# the quick kernels; so llama.cpp makes a tensor for each, in a buffer of its own. Mapped files hide it: of the table only those pages are read that hold tokens in use. Without a mapping both are
# memory that cannot be given back, and of a model with a large vocabulary that is much. Telling llama.cpp to put the table on the processor (a buffer type override, what `-ot` does)
# changes nothing: there it chooses the layout again.
#
#   seen, a table of 4,096 x 256 and one layer, no mapping: Q4_0 the file's weights and the table once more; the same with the table on "CPU" by an override; without the extra buffer types the
#   file's weights; Q4_1 the file's weights
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 gguf==0.19.0
"$folder/venv/bin/python" - "$folder" 2>"$folder/warnings" <<'EOF2'
import ctypes
import re
import sys
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

WIDTH, FF, TOKENS = 256, 512, 4096


class Override(ctypes.Structure):
    """struct llama_model_tensor_buft_override, llama.h"""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def model(kind: GGMLQuantizationType) -> tuple[str, int, int]:
    """Write a small random model. Returns: its path, bytes of all weights and of the table."""
    path, values = f"{sys.argv[1]}/{kind.name}.gguf", np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("no_vocab")
    square, up = (WIDTH, WIDTH), (FF, WIDTH)
    shapes = {"token_embd": (TOKENS, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.attn_{part}": square for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    shapes |= {"blk.0.ffn_gate": up, "blk.0.ffn_up": up, "blk.0.ffn_down": (WIDTH, FF)}
    for name, shape in shapes.items():
        numbers = values.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", numbers)
        else:
            writer.add_tensor(f"{name}.weight", quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return path, sum(sizes.values()), sizes["token_embd.weight"]


said: list[str] = []
listener = llama_cpp.llama_log_callback(lambda _level, text, _data: said.append(text.decode()))
llama_cpp.llama_log_set(listener, None)
llama_cpp.llama_backend_init()
ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"))
ggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p


def taken(path: str, *, extra: bool = True, on_cpu: bool = False) -> float:
    """Returns: bytes of all buffers with weights, as llama.cpp tells them, in hundredths of a MiB."""
    params = llama_cpp.llama_model_default_params()
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = extra
    rows = (Override * 2)(Override(rb"^token_embd\.weight$", ggml.ggml_backend_cpu_buffer_type()), Override(None, None))
    if on_cpu:
        params.tensor_buft_overrides = ctypes.cast(rows, ctypes.c_void_p)
    said.clear()
    loaded = llama_cpp.llama_model_load_from_file(path.encode(), params)
    assert loaded
    llama_cpp.llama_model_free(loaded)
    return sum(float(mib) for mib in re.findall(r"model buffer size =\s*([\d.]+) MiB", "".join(said))) * 2**20


print("llama-cpp-python", version("llama-cpp-python"))
wrong = 0
anew, table = model(GGMLQuantizationType.Q4_0), model(GGMLQuantizationType.Q4_1)
for name, (path, weights, embeddings), options, tables in (
    ("Q4_0", anew, {}, 1),
    ("Q4_0, table on CPU by an override", anew, {"on_cpu": True}, 1),
    ("Q4_0, no extra buffer types", anew, {"extra": False}, 0),
    ("Q4_1", table, {}, 0),
):
    more = taken(path, **options) - weights
    wrong += abs(more / embeddings - tables) > 0.1
    print(f"  {name}: weights in the file {weights:,} bytes, in memory {more / embeddings:+.2f} tables more")
sys.exit(wrong)
EOF2
