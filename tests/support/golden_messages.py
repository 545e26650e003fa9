"""One of every message, with every kind of field in use: for the golden frames, the codec's tests and its fuzzing."""

from __future__ import annotations

from shardnet import messages as m
from shardnet.manifest import FileContent, Manifest, ModelContent, ShardContent, ShardFile
from shardnet.shards import Dtype, LayerRange, TensorSpec
from shardnet.steps import NextStep, StageTiming, TaskResult, TokenLogprob, pack_timing

NODE = "a1" * 20
MODEL = "b2" * 32
COMMAND = "0123456789abcdef"
SEQUENCE = "fedcba9876543210"
ADDRESS = m.Address(host="127.0.0.1", port=7070)

_CONTENT = ModelContent(
    architecture="llama",
    n_layers=2,
    n_embd=64,
    n_vocab=256,
    n_ctx_train=512,
    n_params=100_000,
    quantisation="Q4_1",
    shards=tuple(
        ShardContent(
            shard_id=i,
            layers=LayerRange(first=i, end=i + 1),
            file=f"shard-{i}.gguf",
            bytes=1000,
            content_sha256="c3" * 32,
            kv_bytes_per_token=256,
        )
        for i in range(2)
    ),
    tokenizer=FileContent(file="tokenizer.gguf", bytes=10, sha256="d4" * 32),
)
MANIFEST = Manifest(
    model_id=_CONTENT.model_id,
    name="tiny",
    content=_CONTENT,
    files=(ShardFile(sha256="e5" * 32, info_hash="f6" * 32), ShardFile(sha256="07" * 32)),
)
HELD = m.HeldShard(model_id=MODEL, shard_id=1, loaded=True, memory_bytes=2000, step_us=12.5)
DEVICE = m.DeviceInfo(name="CPU", kind="cpu", total_bytes=1 << 30, free_bytes=1 << 29)
ERROR = m.ErrorInfo(code="SEQUENCE_GAP", message="position 8 is beyond 4", facts={"have": 4})
ROUTE = (
    m.StageRef(node_id=NODE, address=ADDRESS, first_shard=0, end_shard=1),
    m.StageRef(node_id="c4" * 20, address=None, first_shard=1, end_shard=2),
)
TOKENS = TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(2,))
HIDDEN = TensorSpec(name="hidden", dtype=Dtype.FLOAT32, shape=(2, 4))

SAMPLES: tuple[m.AnyMessage, ...] = (
    m.Hello(protocol=1, node_id=NODE, name="node", role="node", listen=ADDRESS, held=(HELD,)),
    m.Welcome(protocol=1, node_id=NODE, epoch=3, revoked=("d4" * 20,), dht=ADDRESS),
    m.Refusal(error=ERROR),
    m.Revoked(node_ids=("d4" * 20,)),
    m.Heartbeat(memory_free_bytes=1 << 30, load=0.25, devices=(DEVICE,), held=(HELD,), sequences=2),
    m.ManifestOffer(manifest=MANIFEST),
    m.Leaving(reason="SIGTERM"),
    m.LoadShard(
        command_id=COMMAND,
        deadline_s=60.0,
        model_id=MODEL,
        shard_id=1,
        manifest=MANIFEST,
        sources=(m.ShardSource(node_id=NODE, address=ADDRESS, torrent_port=6881),),
    ),
    m.LoadProgress(command_id=COMMAND, stage="fetch", done_bytes=1, total_bytes=2, bytes_per_s=3.5, peers=1),
    m.ShardReady(command_id=COMMAND, held=HELD, source="local"),
    m.UnloadShard(command_id=COMMAND, deadline_s=5.0, model_id=MODEL, shard_id=1),
    m.ExecuteTask(
        command_id=COMMAND,
        deadline_s=30.0,
        epoch=3,
        model_id=MODEL,
        sequence_id=SEQUENCE,
        position=7,
        n_tokens=2,
        route=ROUTE,
        stage=1,
        samples=True,
        sampling=m.Sampling(temperature=0.7, top_k=40, logit_bias={5: -1.5}, seed=42, top_logprobs=3),
        ahead=5,
        timings=(StageTiming(queue_us=1.5, compute_us=100.0, batch_tokens=2),),
        tensors=(TOKENS, HIDDEN),
    ),
    NextStep(
        command_id=COMMAND,
        sequence_id=SEQUENCE,
        stage=1,
        position=9,
        ahead=4,
        deadline_s=30.0,
        n_embd=4,
        timings=pack_timing(StageTiming(queue_us=1.5, compute_us=100.0, batch_tokens=2)),
    ),
    TaskResult(
        command_id=COMMAND,
        sequence_id=SEQUENCE,
        position=9,
        tokens=(11,),
        logprobs=((TokenLogprob(token=11, logprob=-0.5),),),
        ahead=4,
        n_vocab=3,
        timings=(StageTiming(queue_us=1.5, compute_us=100.0, batch_tokens=2), StageTiming(0.0, 7.0)),
    ),
    m.TellLog(command_id=COMMAND, deadline_s=3.0, after=7, most_lines=50, level="warning", max_age_s=600.0),
    m.LogTold(
        command_id=COMMAND,
        lines=(m.LogLine(number=8, at_s=1.5, level="warning", text="[NODE] a line"),),
        left_out=2,
        newest=8,
        clock_s=2.5,
    ),
    m.RowsRead(
        command_id=COMMAND,
        sequence_id=SEQUENCE,
        position=7,
        tensors=(
            TensorSpec(name="tokens", dtype=Dtype.INT32, shape=(2, 3)),
            TensorSpec(name="logprobs", dtype=Dtype.FLOAT32, shape=(2, 3)),
        ),
    ),
    m.FreeSequence(sequence_id=SEQUENCE),
    m.CancelTask(command_id=COMMAND),
    m.Done(command_id=COMMAND),
    m.CommandFailed(command_id=COMMAND, error=ERROR),
    m.Ping(command_id=COMMAND, tensors=(TensorSpec(name="padding", dtype=Dtype.FLOAT32, shape=(3,)),)),
    m.Pong(command_id=COMMAND),
    m.MeasureLink(command_id=COMMAND, deadline_s=5.0, peer=m.ShardSource(node_id=NODE, address=ADDRESS)),
    m.LinkMeasured(command_id=COMMAND, round_trip_s=0.001, bytes_per_s=1e8),
    m.GetManifest(command_id=COMMAND, deadline_s=5.0, model="tiny"),
    m.ManifestIs(command_id=COMMAND, manifest=MANIFEST),
    m.GetFile(command_id=COMMAND, deadline_s=5.0, model_id=MODEL, kind="torrent", shard_id=1, offset=16),
    m.FileIs(
        command_id=COMMAND,
        total_bytes=5,
        piece_bytes=5,
        tensors=(TensorSpec(name="data", dtype=Dtype.INT32, shape=(2,)),),
    ),
)


def payloads(message: m.AnyMessage) -> list[bytes]:
    """Returns: some bytes for each tensor of the message, always the same."""
    return [bytes(i % 251 for i in range(spec.nbytes)) for spec in message.tensors]
