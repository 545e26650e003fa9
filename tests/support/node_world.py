"""A manifest out of thin air, for tests of what is decided about shards."""

from __future__ import annotations

from shardnet.manifest import FileContent, Manifest, ModelContent, ShardContent, ShardFile
from shardnet.shards import LayerRange


def make_manifest(name: str = "m", n_shards: int = 3) -> Manifest:
    """Returns: a consistent manifest of a model that does not exist; one layer a shard."""
    content = ModelContent(
        architecture="llama",
        n_layers=n_shards,
        n_embd=8,
        n_vocab=10,
        n_ctx_train=128,
        n_params=1000,
        quantisation="F16",
        shards=tuple(
            ShardContent(
                shard_id=i,
                layers=LayerRange(first=i, end=i + 1),
                file=f"shard-{i}.gguf",
                bytes=100 + i,
                content_sha256="1" * 64,
                kv_bytes_per_token=1,
            )
            for i in range(n_shards)
        ),
        tokenizer=FileContent(file="tokenizer.gguf", bytes=5, sha256="2" * 64),
    )
    files = tuple(ShardFile(sha256="3" * 64) for _ in range(n_shards))
    return Manifest(model_id=content.model_id, name=name, content=content, files=files)
