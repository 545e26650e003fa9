#!/usr/bin/env bash
# llama.cpp: after one decode with a thread pool that has a processor mask, the thread that called it stays on that mask, also when pool and context are gone; with one thread the mask
# does nothing.
#
# One would guess that a pool's mask (`ggml_threadpool_params.cpumask`, what `--cpu-mask` sets) is for the pool's own threads, however many compute: it is given to the pool, and the pool
# can be detached and freed. But whoever calls `llama_decode` is the pool's first worker: its own affinity is set before it computes, and not put back. What it starts from then on inherits
# it: threads and processes that have nothing to do with llama.cpp share those processors. And in a build with OpenMP, which is what pip makes, nobody is put on the mask where one thread
# computes. With one processor there is nothing to see.
#
#   seen, on a machine with processors 0 and 1: before {0, 1}; after a decode with two threads and a pool without a mask {0, 1}; with a pool on processor 0 and one thread {0, 1}, with two
#   threads {0}; pool detached and freed, context freed {0}; a process started then {0}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 gguf==0.19.0
"$folder/venv/bin/python" - "$folder" 2>"$folder/warnings" <<'EOF2'
import ctypes
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFWriter

WIDTH, FF, TOKENS = 64, 96, 32
COUNT = "import os; print(sorted(os.sched_getaffinity(0)))"


class PoolParams(ctypes.Structure):
    """struct ggml_threadpool_params, ggml.h"""

    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def model() -> str:
    """A small random model."""
    path, values = f"{sys.argv[1]}/model.gguf", np.random.default_rng(1)
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
    shapes = {"token_embd": (TOKENS, WIDTH), "output": (TOKENS, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.attn_{part}": square for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    shapes |= {"blk.0.ffn_gate": up, "blk.0.ffn_up": up, "blk.0.ffn_down": (WIDTH, FF)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", values.standard_normal(shape, dtype=np.float32) / np.float32(8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


processors = os.sched_getaffinity(0)
if len(processors) < 2:
    sys.exit("this machine has one processor: nothing can be seen")
libraries = Path(llama_cpp.__file__).parent / "lib"
ggml, llama = ctypes.CDLL(str(libraries / "libggml-cpu.so")), ctypes.CDLL(str(libraries / "libllama.so"))
ggml.ggml_threadpool_new.restype = ctypes.c_void_p
ggml.ggml_threadpool_free.argtypes = (ctypes.c_void_p,)
llama.llama_attach_threadpool.argtypes = (ctypes.c_void_p,) * 3
llama.llama_detach_threadpool.argtypes = (ctypes.c_void_p,)

llama_cpp.llama_backend_init()
loaded = llama_cpp.llama_model_load_from_file(model().encode(), llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = 64, 2, 2
context = llama_cpp.llama_init_from_model(loaded, params)
first = min(processors)
seen = [("before", sorted(processors))]
CASES = (("no mask, two threads", (), 2), (f"processor {first}, one thread", (first,), 1), (f"processor {first}, two threads", (first,), 2))
for name, mask, threads in CASES:
    llama_cpp.llama_set_n_threads(context, threads, threads)
    asked = PoolParams(n_threads=2, poll=50)
    for one in mask:
        asked.cpumask[one] = True
    pool = ggml.ggml_threadpool_new(ctypes.byref(asked))
    llama.llama_attach_threadpool(context, pool, pool)
    tokens = (ctypes.c_int32 * 2)(3, 4)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 2)) == 0
    seen.append((name, sorted(os.sched_getaffinity(0))))
    llama.llama_detach_threadpool(context)
    ggml.ggml_threadpool_free(pool)
llama_cpp.llama_free(context)
seen.append(("pool and context freed", sorted(os.sched_getaffinity(0))))
started = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout.strip()
seen.append(("a process started then", [int(word) for word in started.strip("[]").split(",")]))
print("llama-cpp-python", version("llama-cpp-python"))
for name, found in seen:
    print(f"  {name}: {found}")
everywhere, here = sorted(processors), [first]
sys.exit([found for _, found in seen] != [everywhere, everywhere, everywhere, here, here, here])
EOF2
