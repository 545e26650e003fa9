#!/usr/bin/env bash
# llama.cpp: a model's name decides what tokens a text becomes, and whether the file opens at all.
#
# One would guess that `general.name` is for people to read. llama.cpp looks for "phi-3" or "phi3" in it (src/llama-vocab.cpp): if it is there, special
# tokens swallow the spaces behind them, since a GGUF has no place for that flag of a tokenizer; and a vocabulary without all of Phi-3's own special tokens
# is not opened. So a fine-tune that somebody calls "my-phi3-killer" may fail to load, and Phi-3 under another name gets other tokens than it was
# trained on. Here: one vocabulary of pieces, written under several names, with nothing else changed.
#
#   seen: general.name "plain": "</s>  a" becomes [2, 259, 259, 260]
#   seen: general.name "Phi-3-mini": "</s>  a" becomes [2, 260]
#   seen: general.name "my-phi3-killer", no <|endoftext|> in the vocabulary: not opened; "my-killer": opened
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llama-cpp-python==0.3.36 gguf==0.19.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import ctypes
from importlib.metadata import version

import llama_cpp
from gguf import GGUFWriter, TokenType

quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def written(name, last):
    """A file with a vocabulary and nothing else: three special tokens, all bytes, a space, a letter, one more special token."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", last]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256, TokenType.NORMAL, TokenType.NORMAL, TokenType.CONTROL]
    writer = GGUFWriter("name.gguf", "llama")
    writer.add_name(name)
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens_of(name, last="<|endoftext|>", text=b"</s>  a"):
    """What the text becomes, special tokens in it found; None if the file is not opened."""
    written(name, last)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(b"name.gguf", params)
    if not model:
        return None
    buffer = (llama_cpp.llama_token * 32)()
    count = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), text, len(text), buffer, 32, False, True)
    llama_cpp.llama_model_free(model)
    return list(buffer[:count])


print("llama-cpp-python", version("llama-cpp-python"), "gguf", version("gguf"))
found = {name: tokens_of(name) for name in ("plain", "Phi-3-mini")}
print(found)
opened = {name: tokens_of(name, last="<|end|>") is not None for name in ("my-killer", "my-phi3-killer")}
print("without <|endoftext|>, opened:", opened)
assert found == {"plain": [2, 259, 259, 260], "Phi-3-mini": [2, 260]}, "the name does not decide any more"
assert opened == {"my-killer": True, "my-phi3-killer": False}, "a name does not keep a file from opening any more"
EOF
