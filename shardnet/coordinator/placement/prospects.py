"""What each way of running a model would cost: the planner's table, worked out by the functions that place shards. Pure.

The numbers are those of `law`; where a node was not measured yet they rest on guesses, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardnet.coordinator.placement.assign import (
    NodeOffer,
    Placement,
    Policy,
    Stage,
    law_for,
    layers_of,
    needs_of,
    place,
    share_at,
)
from shardnet.coordinator.placement.chunks import choose
from shardnet.coordinator.placement.law import Links
from shardnet.coordinator.placement.streaming import GUESSED_READ_BYTES_PER_S
from shardnet.errors import PlacementError, ShardnetError
from shardnet.log import human_bytes
from shardnet.manifest import Manifest
from shardnet.messages import ShardOptions


@dataclass(frozen=True, slots=True)
class StageProspect:
    """One stage: who, which layers, seconds of each decode step, bytes that it takes whole; `streamed`: how much of it stays, "" where all does."""

    node: str
    layers: str
    compute_s: float
    memory_bytes: int
    streamed: str = ""


@dataclass(frozen=True, slots=True)
class Prospect:
    """One layout.

    Attributes:
        kind: "one node", "split" or "replicas".
        tokens_per_s: of all streams together, as many over each pipeline.
        pipelines: the stages of each, in order; one unless `kind` is "replicas".
        seconds_per_token, first_token_s: of the slowest pipeline, one stream.
    """

    kind: str
    pipelines: tuple[tuple[StageProspect, ...], ...]
    seconds_per_token: float
    first_token_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Prospects:
    """All layouts, the quickest for one stream first, and sentences for people."""

    layouts: tuple[Prospect, ...]
    notes: tuple[str, ...]


def prospects(
    manifest: Manifest,
    nodes: Sequence[NodeOffer],
    options: ShardOptions,
    policy: Policy | None = None,
    links: Links | None = None,
    *,
    prompt_tokens: int = 128,
    streams: int = 0,
) -> Prospects:
    """Work out each node alone, the best split of each number of stages, and replicas on every node that can hold the model.

    Args:
        streams: at the same time, shared out over the pipelines; 0: as many as can have KV at the same time.
    Raises: PlacementError, NoRoomError if there is no layout at all.
    """
    links, policy = links or {}, policy or Policy()
    problem: ShardnetError = PlacementError("no node is known: start some, or name them with --node")
    layouts: list[Prospect] = []
    alone: list[Placement] = []
    for offer in sorted(nodes, key=lambda one: one.node_id):
        try:
            found = place(manifest, [offer], options, replace(policy, stages=1), links)
        except ShardnetError as error:
            problem = error
            continue
        alone.append(found)
        layouts.append(_prospect("one node", manifest, nodes, [found], options, policy, links, prompt_tokens, streams))
    for stages in range(2, min(len(nodes), manifest.n_shards) + 1):
        try:
            found = place(manifest, nodes, options, replace(policy, stages=stages), links)
        except ShardnetError as error:
            problem = error
            continue
        layouts.append(_prospect("split", manifest, nodes, [found], options, policy, links, prompt_tokens, streams))
    if len(alone) > 1:
        layouts.append(_prospect("replicas", manifest, nodes, alone, options, policy, links, prompt_tokens, streams))
    if not layouts:
        raise problem
    layouts.sort(key=lambda one: one.seconds_per_token)
    return Prospects(tuple(layouts), _notes(manifest, nodes, layouts))


def _prospect(
    kind: str,
    manifest: Manifest,
    nodes: Sequence[NodeOffer],
    placements: Sequence[Placement],
    options: ShardOptions,
    policy: Policy,
    links: Links,
    prompt_tokens: int,
    streams: int,
) -> Prospect:
    offers = {offer.node_id: offer for offer in nodes}
    pipelines, first, rate, needs = [], 0.0, 0.0, needs_of(manifest, options)
    each = min(options.n_seq, -(-streams // len(placements))) if streams else options.n_seq
    for placement in placements:
        law = law_for(manifest, offers, placement.stages, options, links, policy)
        stages = tuple(
            StageProspect(
                node=offers[stage.node_id].name,
                layers=str(layers_of(manifest, stage.first_shard, stage.end_shard)),
                compute_s=seconds,
                memory_bytes=sum(needs[shard] for shard in stage.shards),
                streamed=_streamed(manifest, offers[stage.node_id], stage, needs, policy),
            )
            for stage, seconds in zip(placement.stages, law.stages_s(), strict=True)
        )
        pipelines.append(stages)
        first = max(first, law.first_token_s(prompt_tokens, choose(law, prompt_tokens, options.n_batch).alone))
        rate += law.tokens_per_s(each)
    slowest = max(placement.seconds_per_token for placement in placements)
    return Prospect(kind, tuple(pipelines), slowest, first, rate)


def _streamed(manifest: Manifest, offer: NodeOffer, stage: Stage, needs: Sequence[int], policy: Policy) -> str:
    share = share_at(manifest, offer, stage.shards, needs, policy.room(offer))
    return str(share) if share is not None else ""


def _notes(manifest: Manifest, nodes: Sequence[NodeOffer], layouts: Sequence[Prospect]) -> tuple[str, ...]:
    notes = []
    singles = [one for one in layouts if one.kind == "one node"]
    splits = [one for one in layouts if one.kind == "split"]
    if not singles:
        notes.append(f"no single node can hold {manifest.name}: it has to be split")
    elif splits:
        single, split = singles[0], splits[0]
        name = single.pipelines[0][0].node
        times = f"{split.seconds_per_token * 1e3:.1f} instead of {single.seconds_per_token * 1e3:.1f} ms per token"
        if split.seconds_per_token >= single.seconds_per_token:
            notes.append(f"splitting is slower than {manifest.name} whole on {name}: {times}")
        else:
            notes.append(f"the best split is quicker than {manifest.name} whole on {name}: {times}")
    guessed = sorted(offer.name for offer in nodes if not offer.bytes_per_s)
    if guessed:
        notes.append(f"not measured yet, guessed at a desktop's memory bandwidth: {', '.join(guessed)}")
    guessed = sorted(offer.name for offer in nodes if offer.bytes_per_s and not offer.row_costs)
    if guessed:
        notes.append(f"prompts and batches not measured yet, guessed: {', '.join(guessed)}")
    if any(stage.streamed for one in layouts for stages in one.pipelines for stage in stages):
        unknown = sorted(
            offer.name for offer in nodes if offer.streaming is not None and not offer.streaming.bytes_per_s
        )
        guess = (
            f", at a guessed {human_bytes(int(GUESSED_READ_BYTES_PER_S))}/s of {', '.join(unknown)}" if unknown else ""
        )
        notes.append(f"streamed stages read weights from their files for each token{guess}")
    return tuple(notes)
