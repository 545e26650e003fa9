"""Regular expressions: which of them mean the same to a JSON schema (ECMA-262) and to the engine (Rust's regex-syntax).

Where both take a text and understand something else by it, it is refused. What only the engine knows to be wrong it says itself, when the
grammar is checked.

Sources: ECMA-262, "Patterns"; the docs of Rust's regex crate, "Syntax"; RFC 9485 (I-Regexp).
"""

from __future__ import annotations

import re

from shardnet.errors import UsageError

MAX_PATTERN = 4096
"""Characters of one expression."""

_ESCAPE = re.compile(r"\\(?:[dDwWsSnrtfv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[pP]\{[\w=]+\}|[^\w\s])")
_WHITE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_WORD = "0-9A-Za-z_"
_CLASSES = {
    r"\d": "[0-9]",
    r"\D": "[^0-9]",
    r"\w": f"[{_WORD}]",
    r"\W": f"[^{_WORD}]",
    r"\s": f"[{_WHITE}]",
    r"\S": f"[^{_WHITE}]",
}
"""As ECMA-262 has them: Rust's own are Unicode's. A class may stand within another in Rust."""
_GROUP = re.compile(r"\((?:\?(?::|<[A-Za-z_]\w*>)|(?!\?))")


def read_pattern(pattern: str, where: str, param: str) -> str:
    """Returns: a pattern in the engine's words.

    Args:
        where: it stands, for errors.
        param: the field of the request.

    Raises: UsageError naming the part of a pattern that cannot be honoured.
    """
    if len(pattern) > MAX_PATTERN:
        raise UsageError(
            f"{where}: a regular expression of {len(pattern)} characters, where {MAX_PATTERN} are allowed", param=param
        )
    made: list[str] = []
    at, in_class = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            found = _ESCAPE.match(pattern, at)
            if found is None:
                raise _refused(pattern[at : at + 2], where, param)
            made.append(_CLASSES.get(found[0], found[0]))
            at = found.end()
            continue
        if in_class:
            if char == "[" or pattern[at : at + 2] in ("&&", "--", "~~"):
                raise _refused(pattern[at : at + 2], where, param, " within brackets: put a backslash before it")
            in_class = char != "]"
        elif char == "[":
            in_class = True
            if pattern.startswith("^", at + 1):
                made.append(char)
                at, char = at + 1, "^"
            if pattern.startswith("]", at + 1):
                raise _refused("[]", where, param, ": put a backslash before the ']'")
        elif char == "(" and _GROUP.match(pattern, at) is None:
            raise _refused(pattern[at : at + 4], where, param, ": groups may be plain, (?: or named")
        made.append(char)
        at += 1
    return "".join(made)


def _refused(part: str, where: str, param: str, why: str = "") -> UsageError:
    return UsageError(f"{where}: the regular expression's {part!r} cannot be enforced{why}", param=param)
