"""What a manifest says of a plan's files: the part that `model_id` is made of, and the part beside it. Knows no disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from shardnet.inference.gguf.layout import quantisation_of, vocabulary_size
from shardnet.inference.gguf.writer import Written, header_bytes
from shardnet.inference.splitting.plan import MODEL_ID_KEY, TOKENIZER_FILE, FilePlan, SplitPlan
from shardnet.inference.splitting.sampling import weights_sha256
from shardnet.manifest import MANIFEST_FORMAT, PLANNED_FORMAT, FileContent, ModelContent, ShardContent, ShardFile


def content_of_files(plan: SplitPlan, written: Sequence[Written]) -> ModelContent:
    """Returns: the content of a model all of whose files were written: shards in order, then the tokenizer (decision 0001)."""
    hashes = [facts.sha256 for facts in written]
    return _content(plan, [{"content_sha256": digest} for digest in hashes[:-1]], hashes[-1])


def content_of_plan(plan: SplitPlan) -> ModelContent:
    """Returns: the content of a model whose shards are cut apart, on several machines or one (decision 0007).

    Raises: UsageError if its weights are not kept as they are; OSError, ShardnetError if samples of them cannot be read.
    """
    names = [{"header_sha256": _header_sha256(file)} for file in plan.shards]
    return _content(plan, names, _header_sha256(plan.tokenizer), weights_sha256(plan.header))


def shard_file(plan: SplitPlan, index: int, sha256: str | None) -> ShardFile:
    """Returns: what stands beside the content of one shard; `sha256` is None for one that is not here."""
    return ShardFile(sha256=sha256, step_bytes=plan.step_bytes[index])


def _header_sha256(file: FilePlan) -> str:
    return hashlib.sha256(header_bytes(file.fields, file.tensors, MODEL_ID_KEY)[0]).hexdigest()


def _content(
    plan: SplitPlan, names: Sequence[dict[str, str]], tokenizer_sha256: str, weights: str | None = None
) -> ModelContent:
    header = plan.header
    shards = tuple(
        ShardContent(
            shard_id=index,
            layers=part,
            file=file.name,
            bytes=file.nbytes,
            kv_bytes_per_token=sum(plan.layout.kv_bytes_per_layer[part.first : part.end]),
            **name,
        )
        for index, (part, file, name) in enumerate(zip(plan.layers, plan.shards, names, strict=True))
    )
    return ModelContent(
        format=MANIFEST_FORMAT if weights is None else PLANNED_FORMAT,
        architecture=header.architecture,
        n_layers=plan.layers[-1].end,
        n_embd=int(header.arch("embedding_length")),
        n_vocab=vocabulary_size(header),
        n_ctx_train=int(header.arch("context_length")),
        n_params=plan.layout.n_params,
        quantisation=quantisation_of(header),
        shards=shards,
        tokenizer=FileContent(file=TOKENIZER_FILE, bytes=plan.tokenizer.nbytes, sha256=tokenizer_sha256),
        weights_sha256=weights,
    )
