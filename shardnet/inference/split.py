"""Cutting a model into shards: plan with plain data, then write, hash and rename.

The recipe is re-proved on every split by `verify`: a shard is a complete GGUF whose layers are renumbered from 0; what it does not need of vocabulary and
head is left out; family-specific keys come from `families`.

Crash safety: everything is written into a hidden folder and appears under its name by one rename; a lock beside that folder tells a
running split from a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardnet.errors import FamilyRefused, NoRoomError, ShardnetError, UsageError
from shardnet.inference import families
from shardnet.inference.cuts import Weights, balanced_cuts, checked_cuts, cuts_by_size, ranges
from shardnet.inference.gguf_file import GgufField, GgufHeader, GgufTensor, GgufValue, ValueType
from shardnet.inference.gguf_layout import (
    Layout,
    layer_of,
    layout_of,
    quantisation_of,
    read_model,
    tensors_by_name,
    vocabulary_size,
)
from shardnet.inference.gguf_types import GGML_TYPES
from shardnet.inference.gguf_writer import (
    OutTensor,
    Written,
    file_sha256,
    header_bytes,
    string_value,
    total_bytes,
    u32_value,
    write_gguf,
)
from shardnet.inference.manifest_file import model_folder, save_manifest, sync_folder
from shardnet.log import human_bytes
from shardnet.manifest import BLANK_MODEL_ID, FileContent, Manifest, ModelContent, ShardContent, ShardFile
from shardnet.shards import LayerRange

MODEL_ID_KEY = "shardnet.model_id"
TOKENIZER_FILE = "tokenizer.gguf"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
GGML_F32 = 0
STUB_TYPES = (34, 2, 1)
"""TQ1_0 (0.21 bytes a weight, rows in multiples of 256), Q4_0 (of 32), F16 (any)."""
PARTIAL_PREFIX = ".partial-"
DISK_RESERVE_BYTES = 64 << 20

OnProgress = Callable[[int, int], None]
"""`(bytes done, bytes in all)`."""
Fields = dict[str, GgufValue | GgufField]


@dataclass(frozen=True)
class CutRequest:
    """How the user wants the model cut: exactly one of the three."""

    n_shards: int | None = None
    max_shard_bytes: int | None = None
    cuts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class FilePlan:
    """One file to be written."""

    name: str
    fields: Fields
    tensors: tuple[OutTensor, ...]

    @property
    def nbytes(self) -> int:
        """Returns: its size when written."""
        return total_bytes(header_bytes(self.fields, self.tensors, MODEL_ID_KEY)[0], self.tensors)


@dataclass(frozen=True)
class SplitPlan:
    """Everything that will be written, decided before the first byte."""

    header: GgufHeader
    layout: Layout
    name: str
    layers: tuple[LayerRange, ...]
    shards: tuple[FilePlan, ...]
    tokenizer: FilePlan

    @property
    def nbytes(self) -> int:
        """Returns: bytes of all files."""
        return sum(plan.nbytes for plan in (*self.shards, self.tokenizer))


def plan_split(path: Path, request: CutRequest, name: str | None = None) -> SplitPlan:
    """Read a model's header and decide what each shard will hold.

    Raises: UsageError, GgufError, FamilyRefused (the family cannot be split, or has no legal cut for more than one shard).
    """
    header = read_model(path)
    if MODEL_ID_KEY in header.fields:
        raise UsageError(f"{path} is a shard already; split the whole model")
    layout = layout_of(header)
    layers = ranges(choose_cuts(header, layout, request), families.layer_count(header))
    title = model_name(header, name)
    shards = tuple(_plan_shard(header, index, layers, title) for index in range(len(layers)))
    return SplitPlan(header, layout, title, layers, shards, _plan_tokenizer(header))


def choose_cuts(header: GgufHeader, layout: Layout, request: CutRequest) -> tuple[int, ...]:
    """Returns: the cuts that a request means for this model. Raises: as `plan_split`."""
    rules = families.rules_for(header)
    wants_several = bool(request.cuts) or (request.n_shards or 2) > 1 or request.max_shard_bytes is not None
    if wants_several and not rules.legal_cuts and request.max_shard_bytes is None:
        raise FamilyRefused(rules.reason or f"{header.architecture} models of {header.n_layers} layer cannot be cut")
    weights = shard_weights(header, layout)
    if request.cuts is not None:
        return checked_cuts(request.cuts, rules.legal_cuts, len(weights.layers))
    if request.max_shard_bytes is not None:
        return cuts_by_size(weights, rules.legal_cuts, request.max_shard_bytes, rules.forbidden_lengths)
    return balanced_cuts(weights, rules.legal_cuts, request.n_shards or 2, rules.forbidden_lengths)


def shard_weights(header: GgufHeader, layout: Layout) -> Weights:
    """Returns: bytes to balance: each layer, and what first and last shard carry besides."""
    tensors = tensors_by_name(header)
    embedding = tensors[EMBEDDING].nbytes if EMBEDDING in tensors else 0
    head = tensors[HEAD].nbytes if HEAD in tensors else embedding
    return Weights(layout.layer_bytes[: families.layer_count(header)], first=embedding, last=head)


def model_name(header: GgufHeader, wanted: str | None) -> str:
    """Returns: a name that fits the manifest: the user's, else the model's own with its quantisation.

    Raises: UsageError if the user's cannot be used.
    """
    if wanted is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,95}", wanted):
            raise UsageError(
                f"{wanted!r} cannot be a model name: use letters, digits, dots, dashes and underscores, at most 96"
            )
        return wanted
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", header.path.name.removesuffix(".gguf"))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:96] or "model"


def _plan_shard(header: GgufHeader, index: int, layers: Sequence[LayerRange], title: str) -> FilePlan:
    part = layers[index]
    is_first, is_last = index == 0, index == len(layers) - 1
    fields = _shard_fields(header, index, layers, title)
    replaced = families.shard_tensor_plan(header, part)
    has_head = HEAD in tensors_by_name(header)
    tensors: list[OutTensor] = []
    for tensor in header.tensors:
        layer = layer_of(tensor.name)
        if layer is not None:
            if part.first <= layer < part.end:
                own = f"blk.{layer - part.first}." + tensor.name.split(".", 2)[2]
                tensors.append(_copy(tensor, own, replaced))
        elif tensor.name == EMBEDDING:
            if is_first or (is_last and not has_head):
                tensors.append(_copy(tensor, tensor.name, replaced))
            else:
                tensors.append(_stub_embedding(tensor, is_last))
        elif tensor.name.startswith("output."):
            if is_last:
                tensors.append(_copy(tensor, tensor.name, replaced))
        else:
            tensors.append(_copy(tensor, tensor.name, replaced))
    return FilePlan(f"shard-{index}.gguf", fields, tuple(tensors))


def _copy(tensor: GgufTensor, name: str, replaced: dict[str, str]) -> OutTensor:
    source = None if replaced.get(tensor.name) == "zero" else tensor
    return OutTensor(name, tensor.shape, tensor.ggml_type, tensor.nbytes, source)


def _stub_embedding(tensor: GgufTensor, is_last: bool) -> OutTensor:
    """A shard that is fed hidden states needs a `token_embd` to be loaded, but never reads it.

    A middle shard has a vocabulary of one. The last one keeps the vocabulary for its head, so its embedding must have that many rows: zeros, in
    the smallest type that the row length allows.
    """
    n_embd = tensor.shape[0]
    if not is_last:
        return OutTensor(EMBEDDING, (n_embd, 1), GGML_F32, 4 * n_embd, None)
    kind = next(kind for kind in STUB_TYPES if n_embd % GGML_TYPES[kind].block == 0)
    nbytes = tensor.n_elements // GGML_TYPES[kind].block * GGML_TYPES[kind].block_bytes
    return OutTensor(EMBEDDING, tensor.shape, kind, nbytes, None)


def _shard_fields(header: GgufHeader, index: int, layers: Sequence[LayerRange], title: str) -> Fields:
    part, arch = layers[index], header.architecture
    is_middle = 0 < index < len(layers) - 1
    fields: Fields = {
        "general.architecture": string_value(arch),
        MODEL_ID_KEY: string_value(BLANK_MODEL_ID),
        "shardnet.name": string_value(title),
        "shardnet.shard_id": u32_value(index),
        "shardnet.n_shards": u32_value(len(layers)),
        "shardnet.layer_first": u32_value(part.first),
        "shardnet.layer_end": u32_value(part.end),
        "shardnet.n_layers": u32_value(layers[-1].end),
    }
    for key, field in header.fields.items():
        if key == "general.architecture" or key == "general.alignment" or key.startswith(("split.", "shardnet.")):
            continue
        if is_middle and (key.startswith("tokenizer.") or key == f"{arch}.vocab_size"):
            continue
        fields[key] = _cut_array(field, part, header) if key.startswith(f"{arch}.") else field
    fields[f"{arch}.block_count"] = u32_value(len(part))
    if is_middle:
        fields["tokenizer.ggml.model"] = string_value("no_vocab")
        fields[f"{arch}.vocab_size"] = u32_value(1)
    for key, value in families.shard_metadata(header, part).items():
        if value is None:
            fields.pop(key, None)
        else:
            fields[key] = value
    return fields


def _cut_array(field: GgufField, part: LayerRange, header: GgufHeader) -> GgufValue | GgufField:
    """An array of the architecture's with one entry a layer is cut to the range."""
    if field.type != ValueType.ARRAY or field.count != header.n_layers:
        return field
    values: list[Any] = header.get(field.key)
    return GgufValue(ValueType.ARRAY, values[part.first : part.end], field.element)


def _plan_tokenizer(header: GgufHeader) -> FilePlan:
    """The vocabulary and the chat template by themselves, for a coordinator that holds no weights."""
    keep = ("general.", "tokenizer.", f"{header.architecture}.")
    fields: Fields = {
        key: field for key, field in header.fields.items() if key.startswith(keep) and key != "general.alignment"
    }
    fields["general.architecture"] = string_value(header.architecture)
    return FilePlan(TOKENIZER_FILE, fields, ())


def split_model(
    plan: SplitPlan, cache: Path, on_progress: OnProgress = lambda _done, _all: None
) -> tuple[Path, Manifest]:
    """Write all files of a plan into `cache/shards/NAME-MODELID/`.

    Returns: the folder and the manifest. An identical split that is there already is left as it is.

    Raises: NoRoomError before the first byte, or when the disk fills up meanwhile; nothing half-written stays.
    """
    base = cache / "shards"
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {base}: {error.strerror}") from error
    remove_stale_partials(base)
    _check_disk(base, plan.nbytes)
    progress = _Progress(plan.nbytes * 2, on_progress)
    try:
        with _partial_folder(base) as folder:
            return _write(plan, folder, cache, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(base).free
            raise NoRoomError(
                f"the disk of {base} filled up while the shards were written ({human_bytes(plan.nbytes)} are needed); "
                "free some space and split again; nothing was left behind",
                needed_bytes=plan.nbytes,
                free_bytes=free,
            ) from error
        raise ShardnetError(f"cannot write the shards to {base}: {error.strerror or error}") from error


def _write(plan: SplitPlan, folder: Path, cache: Path, progress: _Progress) -> tuple[Path, Manifest]:
    written = [_write_file(folder, file, progress) for file in (*plan.shards, plan.tokenizer)]
    content = _content(plan, written)
    model_id = content.model_id
    paths = [folder / file.name for file in plan.shards]
    for path, facts in zip(paths, written, strict=False):
        _put_model_id(path, facts.mark_offset, model_id)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda path: file_sha256(path, progress.add), paths))
    files = tuple(ShardFile(sha256=digest) for digest in hashes)
    manifest = Manifest(model_id=model_id, name=plan.name, content=content, files=files)
    for path in (*paths, folder / plan.tokenizer.name):
        _sync(path)
    save_manifest(folder, manifest)
    target = model_folder(cache, manifest)
    if target.exists():
        if _is_same(target, manifest):
            return target, manifest
        raise UsageError(f"{target} is there already but is not this split; move it away and split again")
    folder.rename(target)
    sync_folder(target.parent)
    return target, manifest


def _is_same(target: Path, manifest: Manifest) -> bool:
    wanted = [(shard.file, shard.bytes) for shard in manifest.content.shards]
    return all((target / name).is_file() and (target / name).stat().st_size == size for name, size in wanted)


def _write_file(folder: Path, file: FilePlan, progress: _Progress) -> Written:
    return write_gguf(folder / file.name, file.fields, file.tensors, mark=MODEL_ID_KEY, on_bytes=progress.add)


def _put_model_id(path: Path, offset: int, model_id: str) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        if file.read(len(BLANK_MODEL_ID)) != BLANK_MODEL_ID.encode():
            raise ShardnetError(f"{path} does not hold its blank model id where it was written")
        file.seek(offset)
        file.write(model_id.encode())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _content(plan: SplitPlan, written: Sequence[Written]) -> ModelContent:
    header = plan.header
    shards = tuple(
        ShardContent(
            shard_id=index,
            layers=part,
            file=file.name,
            bytes=facts.nbytes,
            content_sha256=facts.sha256,
            kv_bytes_per_token=sum(plan.layout.kv_bytes_per_layer[part.first : part.end]),
        )
        for index, (part, file, facts) in enumerate(zip(plan.layers, plan.shards, written, strict=False))
    )
    return ModelContent(
        architecture=header.architecture,
        n_layers=plan.layers[-1].end,
        n_embd=int(header.arch("embedding_length", 0)),
        n_vocab=vocabulary_size(header),
        n_ctx_train=int(header.arch("context_length", 0)),
        n_params=plan.layout.n_params,
        quantisation=quantisation_of(header),
        shards=shards,
        tokenizer=FileContent(file=TOKENIZER_FILE, bytes=written[-1].nbytes, sha256=written[-1].sha256),
    )


class _Progress:
    """Adds up bytes from several threads; the sum may be a little late, never too large."""

    def __init__(self, total: int, report: OnProgress) -> None:
        self._total, self._report, self._done = total, report, 0

    def add(self, count: int) -> None:
        self._done = min(self._total, self._done + count)
        self._report(self._done, self._total)


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + DISK_RESERVE_BYTES > free:
        raise NoRoomError(
            f"the shards take {human_bytes(needed)}, but the disk of {folder} has {human_bytes(free)} free; "
            "free some space or choose another folder with --out",
            needed_bytes=needed,
            free_bytes=free,
        )


@contextmanager
def _partial_folder(base: Path) -> Iterator[Path]:
    """A hidden folder to work in, locked while we live, gone afterwards unless it was renamed."""
    folder = base / f"{PARTIAL_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
    lock_path = base / f"{folder.name}.lock"
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def remove_stale_partials(base: Path) -> None:
    """Delete what splits that were killed have left; a running one holds its lock and is let be."""
    for lock_path in base.glob(f"{PARTIAL_PREFIX}*.lock"):
        with lock_path.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(base / lock_path.name.removesuffix(".lock"), ignore_errors=True)
            lock_path.unlink(missing_ok=True)
