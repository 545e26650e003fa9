"""A model that is nowhere yet, written once as one GGUF, so that llama.cpp can run it beside its shards, which are cut out of it; gone afterwards.

Knows where there is room for it. Refuses to know what is done with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from shardnet.errors import GgufError, NoRoomError, ShardnetError, UsageError
from shardnet.files import DENIED, FULL
from shardnet.inference.gguf.header import GgufField, GgufHeader, GgufValue, read_gguf_header
from shardnet.inference.gguf.layout import tensors_by_name
from shardnet.inference.gguf.writer import OutTensor, header_bytes, total_bytes, write_gguf
from shardnet.inference.splitting.cutting import (
    DISK_RESERVE_BYTES,
    OnProgress,
    partial_folder,
    source_facts,
    working_folder,
)
from shardnet.inference.splitting.plan import FilePlan, SplitPlan
from shardnet.log import human_bytes

WHOLE = "whole.gguf"


def whole_bytes(header: GgufHeader) -> int:
    """Returns: bytes of the file that `whole_file` writes; 0 if the model is a file already."""
    if not header.is_made:
        return 0
    fields, tensors = _content(header)
    return total_bytes(header_bytes(fields, tensors, "")[0], tensors)


def check_whole_fits(header: GgufHeader, base: Path, shard_bytes: int = 0) -> None:
    """Raises: NoRoomError if the disk of `base` has no room for the whole model beside `shard_bytes` of shards still to be written."""
    nbytes = whole_bytes(header)
    there = next(folder for folder in (base, *base.parents) if folder.is_dir())
    needed, free = nbytes + shard_bytes + DISK_RESERVE_BYTES, shutil.disk_usage(there).free
    if nbytes and needed > free:
        shards = f" beside shards of {human_bytes(shard_bytes)}" if shard_bytes else ""
        raise NoRoomError(
            f"to prove the shards, the whole model is written once: {human_bytes(nbytes)}{shards}, and the disk of {there} has "
            f"{human_bytes(free)} free; free some space, choose another folder, or split with --no-verify",
            needed_bytes=needed,
            free_bytes=free,
        )


@contextmanager
def whole_file(header: GgufHeader, base: Path, on_progress: OnProgress = lambda _done, _all: None) -> Iterator[Path]:
    """A file that llama.cpp can open: the model's own, or for one that is nowhere yet a temporary one in a hidden folder of `base`.

    Raises: NoRoomError before the first byte, or when the disk fills up meanwhile; UsageError if `base` cannot be written to.
    """
    if not header.is_made:
        yield header.path
        return
    check_whole_fits(header, base)
    fields, tensors = _content(header)
    before = source_facts(header)
    total, done = whole_bytes(header), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    working_folder(base)
    with ExitStack() as stack:
        try:
            path = stack.enter_context(partial_folder(base)) / WHOLE
            write_gguf(path, fields, tensors, mark="", on_bytes=advance)
        except OSError as error:
            raise _not_written(error, base, total) from error
        if source_facts(header) != before:
            raise GgufError(f"{header.path} changed while it was read: try again")
        yield path


def _not_written(error: OSError, base: Path, needed: int) -> ShardnetError:
    if error.errno in FULL:
        return NoRoomError(
            f"the disk of {base} filled up while the whole model was written to prove its shards ({human_bytes(needed)}); it was removed again",
            needed_bytes=needed,
            free_bytes=shutil.disk_usage(base).free,
        )
    kind = UsageError if error.errno in DENIED else ShardnetError
    return kind(f"cannot write the whole model to {base}: {error.strerror or error}; nothing was left behind")


def _content(header: GgufHeader) -> tuple[dict[str, GgufValue | GgufField], list[OutTensor]]:
    fields: dict[str, GgufValue | GgufField] = {
        key: field for key, field in header.fields.items() if key != "general.alignment"
    }
    tensors = [OutTensor(one.name, one.shape, one.ggml_type, one.nbytes, one) for one in header.tensors]
    return fields, tensors


def cut_from(plan: SplitPlan, whole: Path) -> SplitPlan:
    """Returns: the same plan, whose tensors come out of the file that `whole_file` wrote, so that nothing is made twice."""
    there = tensors_by_name(read_gguf_header(whole))

    def found(file: FilePlan) -> FilePlan:
        tensors = (out if out.source is None else replace(out, source=there[out.source.name]) for out in file.tensors)
        return replace(file, tensors=tuple(tensors))

    return replace(plan, shards=tuple(found(file) for file in plan.shards))
