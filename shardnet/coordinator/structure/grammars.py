"""What a client asks for as a grammar in Lark's syntax (llguidance's dialect), or GBNF as it came. Pure: text to text.

White space in JSON is bounded: one space, or a line break and up to
20 spaces or tabs, wherever JSON permits any; so no model can spend its answer on it.

Source: llguidance's docs/syntax.md and docs/json_schema.md.
"""

from __future__ import annotations

import json
import re
from typing import Any

from shardnet.coordinator.structure.patterns import read_pattern
from shardnet.coordinator.structure.schemas import read_schema
from shardnet.errors import UsageError
from shardnet.messages import LARK, MAX_GRAMMAR

HEAD = f"{LARK} {{}}\n"
"""The first line of a grammar in Lark's syntax."""

_IN_SLASHES = re.compile(r"\\.|/|\n|\r", re.DOTALL)
_QUOTED = {"/": r"\/", "\n": r"\n", "\r": r"\r"}

_JSON_OPTIONS = {
    "whitespace_pattern": r" |\n[ \t]{0,20}",
    # Without \u: a name spelled with an escape would pass for another name than the one that the schema forbids or types.
    "json_allowed_escapes": 'nrbtf\\"',
}


def json_rule(schema: Any, where: str) -> str:
    """Returns: what stands for a document of a JSON schema on the right side of a Lark rule: `start: json_rule(...)`.

    Args: where: the request's field, for errors.
    Raises: UsageError naming what in the schema cannot be enforced.
    """
    text = json.dumps(read_schema(schema, where) | {"x-guidance": _JSON_OPTIONS}, ensure_ascii=False)
    return f"%json {text}"


def schema_grammar(schema: Any, where: str) -> str:
    """Returns: the grammar of the documents that fit a JSON schema. Arguments and `Raises:` as `json_rule`, and UsageError if it is too long."""
    return checked_length(f"{HEAD}start: {json_rule(schema, where)}\n", where)


def regex_grammar(pattern: str, where: str) -> str:
    """Returns: the grammar of the texts that a regular expression matches as a whole. Raises: UsageError."""
    pattern = read_pattern(pattern, where, where)
    if not pattern:
        raise UsageError(f"{where}: an empty regular expression matches an empty answer only", param=where)
    quoted = _IN_SLASHES.sub(lambda found: _QUOTED.get(found[0], found[0]), pattern)
    return checked_length(f"{HEAD}start: /{quoted}/\n", where)


def checked_length(grammar: str, where: str) -> str:
    """Returns: the grammar. Raises: UsageError if it is too long, or no text."""
    if len(grammar) > MAX_GRAMMAR:
        raise UsageError(
            f"{where}: a grammar of {len(grammar)} characters, descriptions left out, where {MAX_GRAMMAR} are allowed",
            param=where,
        )
    if any("\ud800" <= char <= "\udfff" for char in grammar):
        raise UsageError(f"{where}: is no text in UTF-8", param=where)
    return grammar
