"""Which files are a checkpoint: one SafeTensors file, or those that an index names. Nothing else in the folder counts.

A folder from the hub often holds the same weights twice (`consolidated.*`, `*.bin`), adapters and other strangers: they are ignored, by name.
Refuses to know what the files hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardnet.errors import CheckpointError, UsageError
from shardnet.inference.checkpoints.json_files import read_json_object

SUFFIX = ".safetensors"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 100 << 20

_INDEX_NAME = re.compile(r"\.safetensors\.index(\.[\w-]+)?\.json$")
_PART_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_STRANGER = re.compile(r"^(consolidated|adapter_|optimizer|training_|scheduler)")
_LONGEST_NAME = 255  # bytes; no file system here keeps longer ones
_WEIGHT_SUFFIXES = (SUFFIX, ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of one checkpoint.

    Attributes:
        paths: SafeTensors files, sorted by name.
        index: the index that names them; None for a single file.
        tensor_files: tensor name -> file name, as the index says; empty without one.
        total_bytes: the index's claim about the bytes of all tensors; None if it makes none.
        metadata: the index's metadata.
        ignored: names of other weight files in the folder.
    """

    folder: Path
    paths: tuple[Path, ...]
    index: Path | None = None
    tensor_files: dict[str, str] = field(default_factory=dict)
    total_bytes: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def is_checkpoint(path: Path) -> bool:
    """Returns: whether `path` is meant as a checkpoint, whole or not: by its name, or, for a folder, by what lies in it."""
    try:
        entries = path.iterdir() if path.is_dir() else [path]
        return any(_is_weights_or_index(entry.name) for entry in entries)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def find_checkpoint(path: Path) -> CheckpointFiles:
    """Find the files that belong to the checkpoint at `path`: a `.safetensors` (or one part of many), an index, or their folder.

    Raises: UsageError if there is nothing at `path`, no checkpoint in it, or more than one; CheckpointError if the index cannot be
    used or names files that are not there.
    """
    try:
        return _find(path)
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _find(path: Path) -> CheckpointFiles:
    if path.is_dir():
        path = _choose(path)
    elif not path.exists():
        raise UsageError(f"cannot read {path}: No such file or directory")
    if _INDEX_NAME.search(path.name):
        return _from_index(path)
    part = _PART_NAME.search(path.name)
    if part is not None and int(part[2]) > 1:
        return _from_index(_index_of_part(path))
    return CheckpointFiles(path.parent, (path,), ignored=_others(path.parent, {path.name}))


def _is_weights_or_index(name: str) -> bool:
    return name.endswith(SUFFIX) or _INDEX_NAME.search(name) is not None or name.startswith("pytorch_model")


def _choose(folder: Path) -> Path:
    """The one index or file of a folder that is the checkpoint."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    indices = [name for name in names if _INDEX_NAME.search(name)]
    singles = [
        name
        for name in names
        if name.endswith(SUFFIX) and not _STRANGER.match(name) and _PART_NAME.search(name) is None
    ]
    if INDEX in names:
        indices = [INDEX]
    if SINGLE in names:
        singles = [SINGLE]
    if INDEX not in names and SINGLE in names:
        indices = []
    elif indices and SINGLE not in names:
        singles = []
    found = indices + singles
    if len(found) == 1:
        return folder / found[0]
    if len(found) > 1:
        if found == [INDEX, SINGLE] and SINGLE in _from_index(folder / INDEX).tensor_files.values():
            return folder / INDEX
        raise UsageError(f"{folder} holds more than one checkpoint ({', '.join(found)}): name the one that you mean")
    parts = [name for name in names if _PART_NAME.search(name)]
    if parts:
        return _index_of_part(folder / parts[0])
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        raise UsageError(
            f"{folder} holds no SafeTensors, only {pickled[0]} and the like, which can run code when it is opened: "
            "save the model as SafeTensors first"
        )
    raise UsageError(
        f"{folder} is no checkpoint: it has neither {INDEX} nor {SINGLE}, nor one other SafeTensors file that could be the model"
    )


def _index_of_part(path: Path) -> Path:
    """The index beside a file that is one of many."""
    for index in sorted(entry for entry in path.parent.iterdir() if _INDEX_NAME.search(entry.name)):
        if path.name in _weight_map(index, read_json_object(index, MAX_INDEX_BYTES)).values():
            return index
    raise CheckpointError(
        f"{path} is one part of a checkpoint, and no {INDEX} beside it names it: fetch the index and all its files"
    )


def _from_index(index: Path) -> CheckpointFiles:
    content = read_json_object(index, MAX_INDEX_BYTES)
    tensor_files = _weight_map(index, content)
    metadata = content.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{index} is damaged: its metadata are no object")
    total = metadata.get("total_size")
    if isinstance(total, float) and total.is_integer():  # as transformers before 4.30 wrote it
        total = int(total)
    if total is not None and type(total) is not int:
        raise CheckpointError(f"{index} is damaged: its total_size is {total!r}, no number of bytes")
    names = sorted(set(tensor_files.values()))
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        more = f" and {len(missing) - 1} more of its {len(names)} files are" if len(missing) > 1 else " is"
        raise CheckpointError(
            f"{index} names {missing[0]}, which{more} not there: fetch what is missing",
            missing_files=len(missing),
        )
    paths = tuple(index.parent / name for name in names)
    return CheckpointFiles(index.parent, paths, index, tensor_files, total, metadata, _others(index.parent, set(names)))


def _weight_map(index: Path, content: dict[str, Any]) -> dict[str, str]:
    found = content.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index} is no index: it has no weight_map from tensors to files")
    for tensor, name in found.items():
        # A plain name of a file beside the index: a path could lead anywhere on this machine.
        if (
            not isinstance(name, str)
            or not name.endswith(SUFFIX)
            or name != Path(name).name
            or len(name) > _LONGEST_NAME
        ):
            raise CheckpointError(
                f"{index} places tensor {tensor!r} in {name!r}, which is no SafeTensors file beside it"
            )
    return found


def _others(folder: Path, ours: set[str]) -> tuple[str, ...]:
    names = (entry.name for entry in folder.iterdir() if entry.name.endswith(_WEIGHT_SUFFIXES))
    return tuple(sorted(name for name in names if name not in ours))
