#!/usr/bin/env bash
# llama.cpp: CogVLM's logits of a prompt are those of its first token, unless those of every token are asked for.
#
# One would guess that `llama_get_logits_ith` gives the logits of the row that was asked for, in every family: whoever answers a prompt marks its last token alone and samples
# from there. CogVLM's graph does not pick out the marked rows before the head, as all others do; so what is handed out as the last row is the first one of the batch. The first
# token of each answer follows the prompt's first token; those after it come one by one and are right. With every row marked, as for perplexity, nothing is wrong.
#
#   seen: last row marked alone, apart from rows 0 to 4 of all marked: llama 2.2 1.9 1.9 1.3 0   cogvlm 0 1.0 2.7 2.6 2.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 gguf==0.19.0
"$folder/venv/bin/python" - "$folder" 2>"$folder/warnings" <<'EOF2'
import ctypes
import sys
from importlib.metadata import version

import llama_cpp
import numpy as np
from gguf import GGUFWriter

WIDTH, FF, LAYERS, TOKENS = 64, 96, 2, 32
PROMPT = [3, 4, 5, 6, 7]


def model(arch: str) -> str:
    """A small random model; CogVLM has a second set of weights, for pictures, which texts do not use."""
    path, values = f"{sys.argv[1]}/{arch}.gguf", np.random.default_rng(1)
    writer = GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("no_vocab")
    shapes = {"token_embd": (TOKENS, WIDTH), "output": (TOKENS, WIDTH), "output_norm": (WIDTH,)}
    both = {"gate": (FF, WIDTH), "up": (FF, WIDTH), "down": (WIDTH, FF)}
    for layer in range(LAYERS):
        parts = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_output": (WIDTH, WIDTH)}
        parts |= {f"ffn_{name}": shape for name, shape in both.items()}
        if arch == "cogvlm":
            parts |= {f"vis_{name}": shape for name, shape in both.items()}
            parts |= {"attn_qkv": (3 * WIDTH, WIDTH), "vis_attn_qkv": (3 * WIDTH, WIDTH), "vis_attn_output": (WIDTH, WIDTH)}
        else:
            parts |= {f"attn_{name}": (WIDTH, WIDTH) for name in "qkv"}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    for name, shape in shapes.items():
        data = values.standard_normal(shape, dtype=np.float32) / np.float32(8)
        writer.add_tensor(f"{name}.weight", 1 + data if name.endswith("norm") else data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path: str, marked: list[int]) -> list[np.ndarray]:
    """The logits of the marked rows of the prompt, in one batch."""
    loaded = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 64
    context = llama_cpp.llama_init_from_model(loaded, params)
    batch = llama_cpp.llama_batch_init(len(PROMPT), 0, 1)
    batch.n_tokens = len(PROMPT)
    for row, token in enumerate(PROMPT):
        batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, row, 1
        batch.seq_id[row][0], batch.logits[row] = 0, row in marked
    assert llama_cpp.llama_decode(context, batch) == 0
    found = []
    for row in marked:
        pointer = llama_cpp.llama_get_logits_ith(context, row)
        found.append(np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (TOKENS,)).copy())
    return found


llama_cpp.llama_backend_init()
print("llama-cpp-python", version("llama-cpp-python"))
for arch, expected in (("llama", 4), ("cogvlm", 0)):
    path = model(arch)
    [alone], rows = logits(path, [4]), logits(path, [0, 1, 2, 3, 4])
    apart = [float(np.abs(alone - row).max()) for row in rows]
    print(f"{arch:7} row 4 marked alone, apart from each row of all marked: {', '.join(f'{one:.5f}' for one in apart)}")
    if int(np.argmin(apart)) != expected or min(apart) > 1e-4:
        raise SystemExit("this changed")
EOF2
