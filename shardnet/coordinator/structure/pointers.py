"""Places in a schema. Sources: RFC 6901 (JSON pointers); JSON Schema Core, "$ref" and "$anchor"."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote


def escaped(name: str) -> str:
    """Returns: a name as a step of a pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def find(root: Any, pointer: str) -> Any:
    """Returns: what stands at a pointer. Raises: LookupError."""
    found = root
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            if not name.isdecimal():
                raise LookupError(pointer)
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found[name]
        else:
            raise LookupError(pointer)
    return found


def pointer_of(root: Any, reference: str) -> str | None:
    """Returns: the pointer that a `$ref` within the schema `root` means; None for one that leads elsewhere."""
    if reference in ("", "#"):
        return ""
    if reference.startswith("#/"):
        return unquote(reference[1:])
    if reference.startswith("#"):
        return _anchors(root, "").get(reference[1:])
    return None


def _anchors(schema: Any, at: str) -> dict[str, str]:
    """Returns: the pointer of each `$anchor` in `$defs`, where anchors stand."""
    found: dict[str, str] = {}
    if isinstance(schema, dict):
        if isinstance(schema.get("$anchor"), str):
            found[schema["$anchor"]] = at
        nested = schema.get("$defs")
        for name, one in nested.items() if isinstance(nested, dict) else ():
            if not (isinstance(one, dict) and "$id" in one):
                found |= _anchors(one, f"{at}/$defs/{escaped(name)}")
    return found
