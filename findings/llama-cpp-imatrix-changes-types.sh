#!/usr/bin/env bash
# llama.cpp: an importance matrix changes not only the numbers of a quantised model but the types of its tensors: a "Q4_0" file then holds Q4_1.
#
# One would guess that an importance matrix tells the kernels which columns matter, and that type and size of every tensor stay. But Q4_0 and Q5_0 give
# the down-projections of the first eighth of the layers another type as soon as there is a matrix, whatever it says (here: nothing but ones), and
# IQ4_NL and IQ4_XS give them fewer bits. So a program that predicts sizes, or quantises tensor by tensor, must know whether a matrix was given.
#
#   seen: types of ffn_down, layer by layer, of a llama of 8 layers
#   seen: Q4_0    without: Q4_0 Q4_0 Q4_0 ...   with: Q4_1 Q4_0 Q4_0 ...   (Q5_0 likewise: Q5_1)
#   seen: IQ4_NL  without: Q5_1 IQ4_NL ...      with: IQ4_NL IQ4_NL ...    (Q5_K, were the rows multiples of 256)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 numpy==2.4.6 gguf==0.19.0 # compiles llama.cpp: minutes
"$folder/venv/bin/python" - "$folder" <<'EOF'
import ctypes, sys
import gguf, numpy as np, llama_cpp as L

quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
print("llama-cpp-python", L.__version__)
source, out, WIDTH, LAYERS = sys.argv[1] + "/model.gguf", sys.argv[1] + "/out.gguf", 64, 8
writer, random = gguf.GGUFWriter(source, "llama"), np.random.default_rng(1)
writer.add_block_count(LAYERS), writer.add_context_length(64), writer.add_embedding_length(WIDTH), writer.add_feed_forward_length(WIDTH)
writer.add_head_count(4), writer.add_layer_norm_rms_eps(1e-5), writer.add_vocab_size(32), writer.add_tokenizer_model("no_vocab")
names = ["token_embd", *(f"blk.{i}.{part}" for i in range(LAYERS) for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"))]
for name in names:
    writer.add_tensor(name + ".weight", random.standard_normal((32 if name == "token_embd" else WIDTH, WIDTH), np.float32))
writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()

ones = np.ones(WIDTH, np.float32)
matrix = (L.llama_model_imatrix_data * (len(names) + 1))()
for entry, name in zip(matrix, names):
    entry.name, entry.size, entry.data = f"{name}.weight".encode(), WIDTH, ones.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

def down_types(kind, with_matrix):
    """Returns: types of the eight ffn_down after quantising."""
    how = L.llama_model_quantize_default_params()
    how.ftype, how.nthread = kind, 1
    if with_matrix:
        how.imatrix = matrix
    assert L.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(how)) == 0
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    return [types[f"blk.{i}.ffn_down.weight"] for i in range(LAYERS)]

for name, kind, without, given in (
    ("Q4_0", L.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_0", "Q4_1"),
    ("Q5_0", L.LLAMA_FTYPE_MOSTLY_Q5_0, "Q5_0", "Q5_1"),
    ("IQ4_NL", L.LLAMA_FTYPE_MOSTLY_IQ4_NL, "Q5_1", "IQ4_NL"),
):
    before, after = down_types(kind, False), down_types(kind, True)
    print(f"{name:7} without: {' '.join(before)}\n{'':7} with:    {' '.join(after)}")
    assert before[1:] == after[1:] == [name] * 7, "layers behind the first eighth changed too"
    assert (before[0], after[0]) == (without, given), "the matrix does not change the first layer's type like this any more"
EOF
