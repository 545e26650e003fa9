"""What the `gguf` package's writer collects, as fields of a header. The keys' names and types are the package's; the bytes are ours.

Refuses to know what the keys mean.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, GGUFWriter

from shardnet.errors import CheckpointError
from shardnet.inference.gguf.header import GgufField, GgufValue, ValueType
from shardnet.inference.gguf.writer import made_field

Fields = dict[str, GgufField]


def new_writer(architecture: str) -> Any:
    """Returns: a `GGUFWriter` that writes no file: its `add_` methods collect keys."""
    return GGUFWriter(None, architecture)


def collected_fields(writer: Any, source: Path) -> Fields:
    """Returns: key -> field, in the order in which they were added; `source` is what an error names.

    Raises: CheckpointError if a value cannot be written: a text that is no Unicode, a number out of range.
    """
    fields: Fields = {}
    for key, found in writer.kv_data[0].items():
        try:
            fields[key] = made_field(key, _value(found), source)
        except (ValueError, OverflowError, struct.error) as error:
            raise CheckpointError(f"{source} has something that no GGUF can hold as {key}: {error}") from error
    return fields


def _value(found: Any) -> GgufValue:
    kind = ValueType(int(found.type))
    if kind != ValueType.ARRAY:
        return GgufValue(kind, found.value)
    element = found.sub_type if found.sub_type is not None else GGUFValueType.get_type(found.value[0])
    return GgufValue(kind, found.value, ValueType(int(element)))
