#!/usr/bin/env bash
# Jinja: where escaping is off, the filter `safe` switches it on for the text beside it.
#
# One would guess that `safe` says "this text needs no escapes" and so does nothing at all where nothing is ever escaped. But it makes a Markup, and a
# Markup that is joined by `+` escapes the other side, whatever the environment says. Joined by `~`, or written on its own, nothing is escaped. So a chat
# template with "'...'|safe + description" shows its model `&lt;`, `&#39;` and `&amp;`, as one of functionary's does with each tool's description.
#
#   seen: autoescape off: 'a|safe + x' -> a&lt;b&gt; &amp; it&#39;s   'a|safe ~ x' -> a<b> & it's   'x + a|safe' -> &lt;b&gt; &amp; it&#39;sa
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jinja2==3.1.6 markupsafe==3.0.4
"$folder/venv/bin/python" - <<'EOF2'
from importlib.metadata import version

from jinja2 import Environment

print("jinja2", version("jinja2"), "markupsafe", version("markupsafe"))
environment = Environment(autoescape=False)
text, escaped = "<b> & it's", "&lt;b&gt; &amp; it&#39;s"
for source, expected in (
    ("{{ x }}", text),
    ("{{ x | safe }}", text),
    ("{{ 'a' + x }}", "a" + text),
    ("{{ 'a'|safe ~ x }}", "a" + text),
    ("{{ 'a'|safe + x }}", "a" + escaped),
    ("{{ x + 'a'|safe }}", escaped + "a"),
):
    seen = environment.from_string(source).render(x=text)
    print(f"{source:22} -> {seen}")
    if seen != expected:
        raise SystemExit(f"expected {expected}")
EOF2
