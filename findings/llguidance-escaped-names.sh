#!/usr/bin/env bash
# llguidance: by its default options an object's name that is spelled with an escape passes for another name than the one that the schema types.
#
# {"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}} does not permit {"a":1}, and permits {"\u0061":1}, which every
# JSON reader takes for the same object. The listed names are excluded from additionalProperties as they are spelled, and the text of such a name may
# have escapes. A string that is a value may not be spelled so. With json_allowed_escapes without "u" it is closed; control characters that have no
# short escape cannot be written then. And minProperties counts names, not different names: {"a":1,"a":2} is permitted for 2.
#
#   seen: {"a":1} False, {"\u0061":1} True, without \u False; minProperties 2 of {"a":1,"a":2} True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q llguidance==1.9.1
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import json
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


class Bytes:
    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]

    def __call__(self, text):
        return list(text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()))
TYPED = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}}


def permits(schema, text, **options):
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()


print("llguidance", version("llguidance"))
found = {
    '{"a":1}': permits(TYPED, '{"a":1}'),
    r'{"\u0061":1}': permits(TYPED, r'{"\u0061":1}'),
    r'{"\u0061":1} without \u': permits(TYPED, r'{"\u0061":1}', json_allowed_escapes='nrbtf\\"'),
    "minProperties 2": permits({"type": "object", "minProperties": 2}, '{"a":1,"a":2}'),
}
for what, permitted in found.items():
    print(f"{what}: {permitted}")
assert json.loads(r'{"\u0061":1}') == {"a": 1}
assert list(found.values()) == [False, True, False, True], "it behaves otherwise now"
EOF
