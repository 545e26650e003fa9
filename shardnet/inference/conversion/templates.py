"""A checkpoint's chat templates, wherever the version of transformers that wrote them put them.

Version 5: chat_template.jinja, further ones in additional_chat_templates/. Before: in tokenizer_config.json, a text or a list of names and texts;
processors of models with pictures: chat_template.json. A file of its own wins over the configuration, as it does in transformers.
Refuses to know what templates do.

Source: transformers 5.24.0, tokenization_utils_base.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shardnet.errors import CheckpointError
from shardnet.inference.checkpoints.json_files import read_json_object
from shardnet.inference.gguf.cursor import opened

CHAT_TEMPLATE = "chat_template.jinja"
OLDER_CHAT_TEMPLATE = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"
MAX_TEMPLATE_BYTES = 1 << 20
DEFAULT = "default"

Named = dict[str, str]


def read_chat_templates(folder: Path, tokenizer_config: dict[str, Any]) -> str | list[Named] | None:
    """Returns: the one template, or all of them as {name, template} with the name "default" for the one that is meant without a name.

    Raises: CheckpointError, UsageError if a file cannot be used.
    """
    found = _from_files(folder)
    if found is None:
        found = tokenizer_config.get("chat_template")
    match found:
        case None | str():
            return found
        case list() if all(_is_named(entry) for entry in found):
            return found
        case _:
            raise CheckpointError(f"the chat template of {folder} is neither a text nor a list of names and texts")


def _from_files(folder: Path) -> Any:
    more = [{"name": path.stem, "template": _read(path)} for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))]
    plain, older = folder / CHAT_TEMPLATE, folder / OLDER_CHAT_TEMPLATE
    if plain.exists():
        template = _read(plain)
        return [{"name": DEFAULT, "template": template}, *more] if more else template
    if more:
        return more
    return read_json_object(older, MAX_TEMPLATE_BYTES).get("chat_template") if older.exists() else None


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)


def _read(path: Path) -> str:
    with opened(path) as (descriptor, size):
        if size > MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, more than the {MAX_TEMPLATE_BYTES} that are taken")
        data = os.pread(descriptor, size, 0)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text in UTF-8: fetch it again") from error
