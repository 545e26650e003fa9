#!/usr/bin/env bash
# langchain-core: a model that refers to itself loses its recursion as a tool, in silence; as a response format it keeps it.
#
# One would guess that a pydantic model gives the same JSON schema wherever it goes, or an error where it cannot. `convert_to_openai_tool`, which
# `bind_tools` and `with_structured_output(method="function_calling")` use, writes every `$ref` out, and where that would not end it puts `{}`: anything
# at all. `strict=True` says nothing of it either. So a server that enforces schemas to the letter lets the model write what the model's own class then
# refuses, and the error comes from pydantic on the client's side. `method="json_schema"` sends `$defs` and `$ref` as they are.
#
#   seen: the class: {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]}; the tool, strict or not: {"anyOf": [{}, {"type": "null"}]}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q langchain-openai==1.7.4 langchain-core==1.8.3 openai==3.57.0 pydantic==2.14.4
cat >"$folder/show.py" <<'EOF'
from __future__ import annotations
from importlib.metadata import version
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

class Tree(BaseModel):
    value: int
    left: Tree | None

print("langchain-core", version("langchain-core"), "pydantic", version("pydantic"))
plain = Tree.model_json_schema()
own = plain["$defs"]["Tree"]["properties"]["left"]["anyOf"]
print("the class:", own)
assert own == [{"$ref": "#/$defs/Tree"}, {"type": "null"}]
for strict in (None, True):
    tool = convert_to_openai_tool(Tree, strict=strict)["function"]["parameters"]
    print("the tool, strict", strict, tool["properties"]["left"])
    assert tool["properties"]["left"]["anyOf"] == [{}, {"type": "null"}] and "$defs" not in tool
bound = ChatOpenAI(api_key="none", model="m").with_structured_output(Tree, method="json_schema")
sent = bound.steps[0].kwargs["response_format"]
sent = sent.model_json_schema() if isinstance(sent, type) else sent["json_schema"]["schema"]
print("the response format:", sent)
assert "$defs" in sent and "$ref" in repr(sent)
EOF
LANGSMITH_TRACING=false "$folder/venv/bin/python" "$folder/show.py"
