#!/usr/bin/env bash
# llama.cpp: a model of exactly eight experts is quantised by other rules than one of four, seven or sixteen.
#
# One would guess that the mixture "Q4_K_M" depends on the layer and on what a tensor is for. It also looks whether `expert_count` is 8, as in Mixtral:
# then all attn_k and attn_v become Q8_0, in every kind (Q2_K too), and attn_output Q5_K in most. A model of 7 or 16 experts, else the same, gets none
# of that. So the size of a mixture cannot be predicted from the sizes of its tensors alone, and pruning one expert changes types all over.
#
#   seen: attn_k, attn_v and attn_output of layer 2 of a qwen3moe of 8 layers to Q2_K and Q4_K_M (rows of 256)
#   seen: 7 or 16 experts: Q2_K Q4_K Q3_K and Q4_K Q4_K Q4_K    8 experts: Q8_0 Q8_0 Q5_K twice
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
source, out, WIDTH, LAYERS, FF = sys.argv[1] + "/model.gguf", sys.argv[1] + "/out.gguf", 256, 8, 256
PARTS = ("attn_k", "attn_v", "attn_output")

def types(n_experts, kind):
    """Returns: types of layer 2's attn_k, attn_v, attn_output in a quantised model of so many experts."""
    writer, random = gguf.GGUFWriter(source, "qwen3moe"), np.random.default_rng(1)
    writer.add_block_count(LAYERS), writer.add_context_length(64), writer.add_embedding_length(WIDTH), writer.add_feed_forward_length(FF)
    writer.add_head_count(4), writer.add_head_count_kv(1), writer.add_layer_norm_rms_eps(1e-5), writer.add_vocab_size(32)
    writer.add_expert_count(n_experts), writer.add_expert_used_count(2), writer.add_tokenizer_model("no_vocab")
    shapes = {"token_embd": (32, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_q": (WIDTH, WIDTH), f"blk.{i}.attn_k": (64, WIDTH), f"blk.{i}.attn_v": (64, WIDTH), f"blk.{i}.attn_output": (WIDTH, WIDTH)}
        shapes |= {f"blk.{i}.ffn_{part}_exps": (n_experts, 16, WIDTH) for part in ("gate", "up", "down")}
    for name, shape in shapes.items():
        writer.add_tensor(name + ".weight", random.standard_normal(shape, np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    how = L.llama_model_quantize_default_params()
    how.ftype = kind
    assert L.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(how)) == 0
    found = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    return [found[f"blk.2.{part}.weight"] for part in PARTS]

for name, kind in (("Q2_K", L.LLAMA_FTYPE_MOSTLY_Q2_K), ("Q4_K_M", L.LLAMA_FTYPE_MOSTLY_Q4_K_M)):
    seen = {n: types(n, kind) for n in (7, 8, 16)}
    for n, found in seen.items():
        print(f"{name:6} {n:2} experts:", ", ".join(f"{part} {one}" for part, one in zip(PARTS, found)))
    assert seen[7] == seen[16] and "Q8_0" not in seen[7], "other numbers of experts are treated alike no more"
    assert seen[8] == ["Q8_0", "Q8_0", "Q5_K"], "eight experts have no rules of their own any more"
EOF
