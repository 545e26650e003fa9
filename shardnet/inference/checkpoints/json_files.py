"""Small JSON files that may come from anywhere: bounded, one object, no name twice. Refuses to know what is in them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.gguf.cursor import opened


def read_json_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """Returns: the object in the file. Raises: UsageError if it cannot be read; CheckpointError if it is no JSON object or too large."""
    with opened(path) as (descriptor, size):
        if size > most_bytes:
            raise CheckpointError(f"{path} has {size} bytes, more than the {most_bytes} that are taken")
        data = os.pread(descriptor, size, 0)
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Returns: the object that `data` spell. Raises: CheckpointError, in whose sentence `where` is the culprit."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            twice = next(name for name, _ in items if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} is damaged: it names {twice!r} twice; fetch it again")
        return found

    try:
        value = json.loads(data.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # malformed, not UTF-8, absurd numbers; nested without end
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{where} is no usable JSON ({reason}); fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is no JSON object; fetch it again")
    return value


def is_count(value: object) -> bool:
    """Returns: whether a JSON value is a whole number that is not negative; true and false are none."""
    return type(value) is int and value >= 0
