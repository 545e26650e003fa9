#!/usr/bin/env bash
# gguf: of a checkpoint that has its chat template twice, the GGUF gets the one that transformers does not use.
#
# Older versions of transformers kept the template in tokenizer_config.json, newer ones keep it in chat_template.jinja; folders that were updated by hand
# hold both. transformers takes the file. The gguf package's SpecialVocab, by which llama.cpp's converter reads special tokens and templates, takes
# the configuration's, without a warning. And a named template in additional_chat_templates/ is a template for transformers in any case, for gguf only
# beside a chat_template.jinja. So the same checkpoint may be prompted in one way by transformers and in another after conversion.
#
#   seen: both there: transformers "of the file", gguf "of the configuration"
#   seen: additional_chat_templates/tool_use.jinja alone: transformers {'tool_use': 'of the folder'}, gguf None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gguf==0.19.0 transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'EOF' 2> >(grep -v -i pytorch >&2)
import json
from importlib.metadata import version
from pathlib import Path

from gguf import SpecialVocab
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def checkpoint(name, settings):
    folder = Path(name)
    folder.mkdir()
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | settings))
    return folder


def templates(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer.chat_template, SpecialVocab(folder).chat_template


both = checkpoint("both", {"chat_template": "of the configuration"})
(both / "chat_template.jinja").write_text("of the file")
named = checkpoint("named", {})
(named / "additional_chat_templates").mkdir()
(named / "additional_chat_templates" / "tool_use.jinja").write_text("of the folder")

print("gguf", version("gguf"), "transformers", version("transformers"))
found = {folder.name: templates(folder) for folder in (both, named)}
for name, (theirs, ours) in found.items():
    print(f"{name}: transformers {theirs!r}, gguf {ours!r}")
assert found["both"] == ("of the file", "of the configuration"), "they agree now, or differ in another way"
assert found["named"] == ({"tool_use": "of the folder"}, None), "they agree now, or differ in another way"
EOF
