#!/usr/bin/env bash
# transformers: a chat template may make a list but not append to it, and Kimi-K2's own template does.
#
# One would guess that what the hub carries as a model's chat template is what transformers renders. Its sandbox takes every change of a list or a dict for
# an attack on the caller's data, also of a list that the template has just made and nobody else can see; `ns.items = ns.items + [x]`, the same in another
# spelling, is fine. Kimi-K2's template collects the ids of calls with `append` and hands them out with `pop`: a conversation with a tool call ends in an
# error, one without renders, since the line is only reached there.
#
#   seen: append: SecurityError: access to attribute 'append' of 'list' object is unsafe.   pop: the same   `+ [x]`: renders
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 jinja2==3.1.6
"$folder/venv/bin/python" - 2>"$folder/warnings" <<'EOF2'
from importlib.metadata import version

from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

print("transformers", version("transformers"), "jinja2", version("jinja2"))
SPELLINGS = {
    "append": ("{% set _ = ns.ids.append(m.content) %}", False),
    "pop": ("{% set ns.ids = ['x'] %}{% set _ = ns.ids.pop(0) %}", False),
    "+ [x]": ("{% set ns.ids = ns.ids + [m.content] %}", True),
}
for name, (line, expected) in SPELLINGS.items():
    source = "{% set ns = namespace(ids=[]) %}{% for m in messages %}" + line + "{% endfor %}{{ ns.ids | join(',') }}"
    try:
        texts, _ = render_jinja_template([[{"role": "user", "content": "a"}]], chat_template=source)
        renders, seen = True, texts[0]
    except SecurityError as error:
        renders, seen = False, f"SecurityError: {error}"
    print(f"{name:8} {seen}")
    if renders != expected:
        raise SystemExit("this changed")
EOF2
