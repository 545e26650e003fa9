"""Which model a folder of GGUF files means. Knows names and the first fields of headers; refuses to choose where several models are meant."""

from __future__ import annotations

import re
from pathlib import Path

from shardnet.errors import ShardnetError, UsageError
from shardnet.inference.gguf.header import read_leading_fields

PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
"""Name of one file of a model that llama.cpp split by size."""
HELPERS = frozenset(("adapter", "mmproj", "imatrix"))
"""Values of `general.type` of files that lie beside a model and are none; older projectors say only that their architecture is clip.
Source: gguf-py, `GGUFType`; llama.cpp, tools/mtmd/clip.cpp."""
LEADING_FIELDS = 8
MOST_NAMED = 5


def model_in(folder: Path) -> Path:
    """Returns: the GGUF in a folder: its only model's file, or one part of it; projectors, adapters and importance matrices beside it do not count.

    Raises: UsageError if there is none, or there are several (each is named).
    """
    try:
        files = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror or error}") from error
    models: dict[tuple[str, str], Path] = {}
    for path in files:
        part = PART.match(path.name)
        models.setdefault((part["stem"], part["count"]) if part else (path.name, ""), path)
    if len(models) > 1:
        models = {key: path for key, path in models.items() if not _is_helper(path)} or models
    if not models:
        raise UsageError(f"{folder} holds no GGUF: name a model's file, or the folder that its parts are in")
    if len(models) > 1:
        names = [path.name for path in models.values()]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise UsageError(f"{folder} holds several models: name one of {', '.join(names[:MOST_NAMED])}{more}")
    return next(iter(models.values()))


def _is_helper(path: Path) -> bool:
    try:
        leading = read_leading_fields(path, LEADING_FIELDS)
    except ShardnetError:
        return False  # whatever it is, the user should see its name
    return leading.get("general.type") in HELPERS or leading.get("general.architecture") == "clip"
