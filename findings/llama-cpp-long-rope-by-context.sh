#!/usr/bin/env bash
# llama.cpp: with "longrope" the same few tokens get other logits in a larger context, however short the text; and small contexts are not small.
#
# Models with longrope (Phi-3 128k, Phi-4-mini) have two sets of frequency factors: short ones for texts up to the original length, long ones beyond.
# transformers goes by the length of the text. llama.cpp goes by the size of the context (src/llama-model.cpp, get_rope_factors), so that "hello" is
# computed otherwise with -c 4096 than with -c 8192. And since it rounds contexts up to a multiple of 256, a model whose original length is
# 128 gets long factors even where a context of 128 was asked for. Seen on a random Phi-3 of two layers, eight tokens, CPU.
#
#   seen: original length 256: n_ctx 256 and 512 differ; 300 gives the numbers of 512
#   seen: original length 128: n_ctx 128 and 512 do not differ: both take the long factors
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import ctypes
from importlib.metadata import version

import llama_cpp
import numpy as np
from gguf import GGUFWriter, RopeScalingType

quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
WIDTH, FF, VOCAB, TOKENS = 64, 96, 100, [3, 14, 15, 92, 65, 35, 89, 79]


def phi3(path, original):
    """A random Phi-3 without a vocabulary: two layers, two heads of 32, factors that differ a lot."""
    random = np.random.RandomState(1)
    writer = GGUFWriter(path, "phi3")
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(original)
    shapes = {"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_qkv": (3 * WIDTH, WIDTH),
            f"blk.{layer}.attn_output": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_up": (2 * FF, WIDTH),
            f"blk.{layer}.ffn_down": (WIDTH, FF),
        }
    tensors = {name: (random.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm"):
        tensors[name] = np.ones(WIDTH, np.float32)
    tensors["rope_factors_short"] = np.ones(16, np.float32)
    tensors["rope_factors_long"] = np.linspace(1, 30, 16, dtype=np.float32)
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path, n_ctx):
    """Logits of the last of the same eight tokens."""
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = n_ctx, 1, 1
    context = llama_cpp.llama_init_from_model(model, params)
    tokens = (llama_cpp.llama_token * len(TOKENS))(*TOKENS)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(TOKENS))) == 0
    found = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (VOCAB,)).copy()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


print("llama-cpp-python", version("llama-cpp-python"), "gguf", version("gguf"))
differs = {}
for original, pairs in ((256, ((256, 512), (300, 512))), (128, ((128, 512),))):
    path = f"{original}.gguf"
    phi3(path, original)
    for one, other in pairs:
        difference = float(np.abs(logits(path, one) - logits(path, other)).max())
        print(f"original length {original}, {len(TOKENS)} tokens: n_ctx {one} and {other} differ by {difference:.3g}")
        differs[original, one] = difference > 1e-2
assert differs == {(256, 256): True, (256, 300): False, (128, 128): False}, "the factors are chosen in another way now"
EOF
