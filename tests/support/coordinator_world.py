"""What the coordinator's tests share: manifests, nodes that say Hello, heartbeats, and routes. Plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import ManifestKnown, NodeJoined, ShardIsReady
from shardnet.coordinator.placement.planning import Route
from shardnet.manifest import FileContent, Manifest, ModelContent, ShardContent, ShardFile
from shardnet.messages import (
    PROTOCOL_VERSION,
    Address,
    Capabilities,
    Heartbeat,
    HeldShard,
    Hello,
    ShardOptions,
    StageRef,
)
from shardnet.shards import LayerRange

MODEL_ID = "ab" * 32
"""Of the model that `route` serves."""


def make_manifest(
    cuts: Sequence[int] = (0, 2, 4, 6),
    *,
    name: str = "tiny",
    shard_bytes: Sequence[int] | None = None,
    tokenizer: FileContent | None = None,
    n_ctx_train: int = 512,
    n_vocab: int = 288,
) -> Manifest:
    """A manifest without files. `cuts` are the layers at which shards begin, and the end."""
    sizes = shard_bytes or [1_000_000] * (len(cuts) - 1)
    content = ModelContent(
        architecture="llama",
        n_layers=cuts[-1],
        n_embd=64,
        n_vocab=n_vocab,
        n_ctx_train=n_ctx_train,
        n_params=10_000,
        quantisation="F16",
        shards=tuple(
            ShardContent(
                shard_id=index,
                layers=LayerRange(first=first, end=end),
                file=f"shard-{index}.gguf",
                bytes=size,
                content_sha256=f"{index:064x}",
                kv_bytes_per_token=128,
            )
            for index, ((first, end), size) in enumerate(zip(pairwise(cuts), sizes, strict=True))
        ),
        tokenizer=tokenizer or FileContent(file="tokenizer.gguf", bytes=100, sha256="a" * 64),
    )
    files = tuple(ShardFile(sha256=f"{index + 7:064x}") for index in range(len(content.shards)))
    return Manifest(model_id=content.model_id, name=name, content=content, files=files)


def node_id(number: int) -> str:
    """A node id that is easy to read."""
    return f"{number:040x}"


def route(*numbers: int, n_ctx: int = 64, n_seq: int = 2, n_batch: int = 4) -> Route:
    """Returns: a route over these nodes, a shard each; they tell no address."""
    stages = tuple(
        StageRef(node_id=node_id(number), address=None, first_shard=index, end_shard=index + 1)
        for index, number in enumerate(numbers)
    )
    return Route(MODEL_ID, stages, ShardOptions(n_ctx=n_ctx, n_seq=n_seq, n_batch=n_batch))


def held(manifest: Manifest, shard_id: int, *, loaded: bool = True, step_us: float | None = None) -> HeldShard:
    """One shard that a node has."""
    return HeldShard(
        model_id=manifest.model_id,
        shard_id=shard_id,
        loaded=loaded,
        memory_bytes=1_500_000 if loaded else 0,
        step_us=step_us,
    )


def hello(
    number: int,
    shards: Iterable[HeldShard] = (),
    *,
    memory: int = 10**12,
    assigned: tuple[tuple[str, int], ...] | None = None,
    torrent_port: int = 0,
) -> Hello:
    """A node's greeting. `assigned` binds it to shards."""
    return Hello(
        protocol=PROTOCOL_VERSION,
        node_id=node_id(number),
        name=f"node-{number}",
        role="node",
        listen=Address(host="127.0.0.1", port=9000 + number),
        capabilities=Capabilities(
            memory_limit_bytes=memory,
            assigned=assigned or (),
            accepts_any=assigned is None,
            torrent_port=torrent_port,
        ),
        held=tuple(shards),
    )


def heartbeat(shards: Iterable[HeldShard] = (), *, free: int = 10**12, draining: bool = False) -> Heartbeat:
    """A node's state."""
    return Heartbeat(memory_free_bytes=free, load=0.0, held=tuple(shards), draining=draining)


def ready_cluster(manifest: Manifest, holdings: dict[int, Sequence[int]]) -> Cluster:
    """A cluster whose nodes (by number) have confirmed these shards."""
    cluster = Cluster()
    cluster.handle(ManifestKnown(manifest))
    for number, shard_ids in holdings.items():
        cluster.handle(NodeJoined(0.0, hello(number, [held(manifest, shard) for shard in shard_ids])))
        for shard in shard_ids:
            cluster.handle(ShardIsReady(0.0, node_id(number), held(manifest, shard)))
    cluster.check()
    return cluster
