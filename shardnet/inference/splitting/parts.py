"""Cutting some shards of a model, each machine its own, so that nobody has to read all of it (`split --only`; decision 0007).

The model's id is known before the first weight is read, so a shard is written once, and is of use as soon as it is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shardnet.errors import GgufError, ShardnetError
from shardnet.files import sync_folder, write_whole
from shardnet.inference.gguf.writer import string_value
from shardnet.inference.splitting.content import content_of_plan, shard_file
from shardnet.inference.splitting.cutting import (
    OnProgress,
    Progress,
    check_disk,
    disk_errors,
    shards_folder,
    source_note,
)
from shardnet.inference.splitting.keeping import Here, already_written, kept_folder, reusing, unfinished_bytes, write_on
from shardnet.inference.splitting.manifest_file import MANIFEST, load_manifest, model_folder
from shardnet.inference.splitting.plan import MODEL_ID_KEY, FilePlan, SplitPlan
from shardnet.manifest import Manifest


def manifest_of_plan(plan: SplitPlan) -> Manifest:
    """Returns: the manifest of a model none of whose shards was cut yet. Reads samples of the weights. Raises: as `content_of_plan`."""
    content = content_of_plan(plan)
    files = tuple(shard_file(plan, index, None) for index in range(len(plan.shards)))
    return Manifest(model_id=content.model_id, name=plan.name, content=content, files=files)


def cut_parts(
    plan: SplitPlan, only: Sequence[int], cache: Path, on_progress: OnProgress = lambda _done, _all: None
) -> tuple[Path, Manifest, bool]:
    """Write some shards of a plan, and the tokenizer, into `cache/shards/NAME-MODELID/`, beside those that are there already.

    Broken off, it leaves every shard that is whole, and the beginning of the next one, which is gone on with by the next call.

    Args:
        only: ids of shards that the plan has.

    Returns: the folder; the manifest, which knows the bytes of the shards that are here; whether all were here already.
    Raises: UsageError if `cache` cannot be written to, or the weights are made on the way; NoRoomError; GgufError if the
        model changed since it was begun to be cut.
    """
    base = shards_folder(cache)
    with disk_errors(base, [plan.shards[index] for index in only], is_kept=True):
        manifest = manifest_of_plan(plan)
        folder = model_folder(cache, manifest)
        manifest = _known(folder, manifest)
        missing = [index for index in only if not _is_here(folder, manifest, index)]
        if not missing:
            return folder, manifest, True
        model_id = string_value(manifest.model_id)
        named = [replace(file, fields=file.fields | {MODEL_ID_KEY: model_id}) for file in plan.shards]
        with kept_folder(base, source_note(plan) | {"only": True}) as work:
            check_disk(base, sum(unfinished_bytes(work, named[index]) for index in missing))
            progress = Progress(sum(named[index].nbytes for index in missing), on_progress)
            here: Here = {}
            for index in missing:
                written = write_on(work, reusing(named[index], here), progress.add)
                _take_over(work, folder, plan.tokenizer, named[index])
                manifest = _with_shard(folder, plan, manifest, index, written.sha256)
                here |= already_written(named[index], folder / named[index].name)
    return folder, manifest, False


def _known(folder: Path, fresh: Manifest) -> Manifest:
    """Returns: the manifest in the folder, which may know shards of other machines, be proved and signed; else the fresh one."""
    try:
        there = load_manifest(folder)
    except ShardnetError:
        return fresh
    return there if (there.content, there.name) == (fresh.content, fresh.name) else fresh


def _is_here(folder: Path, manifest: Manifest, index: int) -> bool:
    shard = manifest.content.shards[index]
    path = folder / shard.file
    return index in manifest.cut_here and path.is_file() and path.stat().st_size == shard.bytes


def _take_over(work: Path, folder: Path, tokenizer: FilePlan, shard: FilePlan) -> None:
    """Give a finished shard its name; the tokenizer comes before it."""
    folder.mkdir(exist_ok=True)
    if not (folder / tokenizer.name).is_file():
        write_on(work, tokenizer, lambda _count: None)
        (work / tokenizer.name).replace(folder / tokenizer.name)
    (work / shard.name).replace(folder / shard.name)
    sync_folder(folder)


def _with_shard(folder: Path, plan: SplitPlan, manifest: Manifest, index: int, sha256: str) -> Manifest:
    """Write down what a shard's bytes are. Raises: GgufError if they are others than the manifest says."""
    before = manifest.files[index].sha256
    if before is None:
        files = (*manifest.files[:index], shard_file(plan, index, sha256), *manifest.files[index + 1 :])
        manifest = manifest.model_copy(update={"files": files, "signature": None})
        write_whole(folder / MANIFEST, manifest.to_json().encode())
    elif before != sha256:
        path = folder / plan.shards[index].name
        path.unlink()
        raise GgufError(
            f"shard {index} of this model is not the one that {folder / MANIFEST} knows: the weights differ, though header and samples "
            "agree; delete that folder, and cut it all anew"
        )
    return manifest
