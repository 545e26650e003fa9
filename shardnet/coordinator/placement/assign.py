"""Which node runs which shards. A pure function of a manifest, what the nodes offer, and a policy; the planner and the router use the same law.

What a pipeline costs is `law`'s business. Of chains that are nearly as quick the one that loads less, and is better balanced, is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shardnet.coordinator.placement.chain import find_chain
from shardnet.coordinator.placement.law import Law, Links, LinkTime, Pace, RowCosts, hop_s, law_of, pace_in, step_bytes
from shardnet.coordinator.placement.streaming import Share, Streaming, least_need, share_of
from shardnet.errors import NoRoomError, PlacementError
from shardnet.inference.engine.memory import attention_bytes, cells_of, vocabulary_bytes
from shardnet.log import counted, human_bytes
from shardnet.manifest import Manifest
from shardnet.messages import ShardOptions
from shardnet.shards import LayerRange

COMPUTE_WIDTHS = 20
"""Hidden states' worth of compute buffer for each row of a batch: 8 of the width, 3 of the feed-forward (about 4 widths each)."""
WIDE, HEAD_WIDTH, NARROW_HEAD_WIDTH = 1536, 128, 64
"""A manifest does not tell how many heads a layer has: models this wide mostly have heads of 128, narrower ones of 64. The node's engine knows."""
READ_BYTES_PER_S, FETCH_BYTES_PER_S = 1e9, 5e7
AMORTISED_TOKENS = 20_000
"""Loading is paid once: it counts as if spread over so many tokens."""
LIMITS_SHOWN = 3
SMALLER_SHARDS = "split into more shards, or with --balance memory, which makes the largest one smaller"
BALANCE_WEIGHT = 1e-3
"""Of chains with the same sum the one with the shorter longest stage keeps more requests moving."""


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """What one node can do for one model.

    Attributes:
        free_bytes: memory it may still use for shards that are not loaded yet.
        bytes_per_s: weights it reads per second in decode, as measured; None: not known.
        allowed: shards it may be given; None: any.
        loaded: in memory already: they cost no memory and no time.
        on_disk: files it has.
        can_fetch: it can get a file from another holder.
        row_costs, handover_s: as in `Pace`.
        limit: what allows it less memory than its machine has, for people; "": nothing.
        streaming: of a node that may be given shards which do not fit; None: it may not.
    """

    node_id: str
    name: str
    free_bytes: int
    bytes_per_s: float | None = None
    allowed: frozenset[int] | None = None
    loaded: frozenset[int] = frozenset()
    on_disk: frozenset[int] = frozenset()
    can_fetch: bool = False
    row_costs: RowCosts = ()
    handover_s: float | None = None
    limit: str = ""
    streaming: Streaming | None = None

    @property
    def pace(self) -> Pace:
        """Returns: how quick it is."""
        return Pace(self.bytes_per_s, self.row_costs, self.handover_s)

    def may_hold(self, shard_id: int, seeded: frozenset[int]) -> bool:
        """True if the node could have this shard in memory, room aside; `seeded` are the shards that someone can send."""
        if shard_id in self.loaded:
            return True
        if self.allowed is not None and shard_id not in self.allowed:
            return False
        return shard_id in self.on_disk or (self.can_fetch and shard_id in seeded)


DEFAULT_LINK = LinkTime()


@dataclass(frozen=True, slots=True)
class Policy:
    """What the coordinator's owner wants.

    Attributes:
        hop_fixed_s: what a hop costs beside latency and bandwidth as pings measure them.
        default_link: a link that was not measured.
    """

    stages: int = 0
    headroom_share: float = 0.1
    hop_fixed_s: float = 60e-6
    default_link: LinkTime = DEFAULT_LINK

    def room(self, offer: NodeOffer) -> int:
        """Returns: bytes that a node may be given."""
        return int(offer.free_bytes * (1 - self.headroom_share))


@dataclass(frozen=True, slots=True)
class Stage:
    """The contiguous shards `[first_shard, end_shard)` on one node."""

    node_id: str
    first_shard: int
    end_shard: int

    @property
    def shards(self) -> range:
        """Returns: the shard ids."""
        return range(self.first_shard, self.end_shard)


@dataclass(frozen=True, slots=True)
class Placement:
    """One pipeline: its stages in order, the predicted time of one decode step, and sentences for people."""

    stages: tuple[Stage, ...]
    seconds_per_token: float
    notes: tuple[str, ...] = field(default=())


def memory_needed(manifest: Manifest, shard_id: int, options: ShardOptions) -> int:
    """Returns: bytes that a shard takes once loaded: weights, KV cache, compute buffers; as its engine estimates it, from what a manifest tells."""
    content = manifest.content
    shard = content.shards[shard_id]
    is_last = shard_id == manifest.n_shards - 1
    n_head = content.n_embd // (HEAD_WIDTH if content.n_embd >= WIDE else NARROW_HEAD_WIDTH)
    return (
        shard.bytes
        + cells_of(options.n_ctx) * options.n_seq * shard.kv_bytes_per_token
        + options.n_batch * 4 * COMPUTE_WIDTHS * content.n_embd
        + attention_bytes(options, n_head)
        + (vocabulary_bytes(options, content.n_vocab, is_last=is_last) if is_last or shard_id == 0 else 0)
    )


def needs_of(manifest: Manifest, options: ShardOptions) -> list[int]:
    """Returns: `memory_needed` of every shard."""
    return [memory_needed(manifest, shard.shard_id, options) for shard in manifest.content.shards]


def layers_of(manifest: Manifest, first_shard: int, end_shard: int) -> LayerRange:
    """Returns: the layers of the shards `[first_shard, end_shard)`."""
    shards = manifest.content.shards
    return LayerRange(first=shards[first_shard].layers.first, end=shards[end_shard - 1].layers.end)


def share_at(manifest: Manifest, offer: NodeOffer, shards: range, needs: Sequence[int], room: int) -> Share | None:
    """Returns: how those of the shards that are not in memory yet would lie on a node with so much room; None if they do not fit."""
    new = [shard for shard in shards if shard not in offer.loaded]
    if offer.streaming is None:
        fits = sum(needs[shard] for shard in new) <= room
        return share_of(manifest, new, needs, sum(needs)) if fits else None
    whole = share_of(manifest, new, needs, room)
    return share_of(manifest, new, needs, room + offer.streaming.yielding_bytes) if whole is None else whole


def pace_at(manifest: Manifest, offer: NodeOffer, shards: range, needs: Sequence[int], policy: Policy) -> Pace:
    """Returns: how quick a node would be with these shards, what it reads from files for each step included."""
    if offer.streaming is None:
        return offer.pace
    share = share_at(manifest, offer, shards, needs, policy.room(offer))
    new_s = offer.streaming.read_s(share.read_bytes) if share is not None else 0.0
    return replace(offer.pace, read_s=new_s + offer.streaming.held_read_s(shards))


def stage_s(manifest: Manifest, pace: Pace, first: int, end: int) -> float:
    """Returns: seconds that one decode step spends in a stage of the shards `[first, end)` on a node of this pace."""
    stages = 1 if end - first == manifest.n_shards else 2
    return pace_in(pace, stages=stages).step_s(step_bytes(manifest, first, end))


def hop_between(manifest: Manifest, source: str, target: str, links: Links, policy: Policy) -> float:
    """Returns: seconds of one hop with one hidden state; from and to the coordinator ("") only a token travels."""
    return hop_s(manifest, source, target, links, policy.default_link, policy.hop_fixed_s)


def law_for(
    manifest: Manifest,
    offers: Mapping[str, NodeOffer],
    stages: Sequence[Stage],
    options: ShardOptions,
    links: Links,
    policy: Policy,
) -> Law:
    """Returns: the law of one pipeline over the nodes of these offers (node id -> offer), its shards loaded with these options."""
    needs = needs_of(manifest, options)
    runs = [
        (
            stage.node_id,
            pace_at(manifest, offers[stage.node_id], stage.shards, needs, policy),
            stage.first_shard,
            stage.end_shard,
        )
        for stage in stages
    ]
    return law_of(manifest, runs, links, policy.default_link, policy.hop_fixed_s)


def place(
    manifest: Manifest,
    nodes: Sequence[NodeOffer],
    options: ShardOptions,
    policy: Policy = Policy(),
    links: Links | None = None,
    given: frozenset[int] = frozenset(),
) -> Placement:
    """Assign every layer of a model to nodes, for the least time per token. Equal ones are decided by node id.

    Args:
        given: shards that somebody else than `nodes` has and gives.
    Raises: PlacementError if some layers are on no node that may run them, or the forced number of stages cannot be had;
        NoRoomError, with the missing bytes, if they do not fit.
    """
    links = links or {}
    nodes = sorted(nodes, key=lambda offer: offer.node_id)
    seeded = frozenset(shard for offer in nodes for shard in offer.on_disk | offer.loaded) | given
    _check_held(manifest, nodes, seeded)
    needs = needs_of(manifest, options)
    room = [policy.room(offer) for offer in nodes]

    def fits(node: int, first: int, end: int) -> bool:
        return share_at(manifest, nodes[node], range(first, end), needs, room[node]) is not None

    def all_fit(runs: Sequence[tuple[int, int, int]], node: int) -> bool:
        """True if a node has room for all of its runs together."""
        new = [shard for one, first, end in runs if one == node for shard in range(first, end)]
        new = [shard for shard in new if shard not in nodes[node].loaded]
        streaming = nodes[node].streaming
        if streaming is None or sum(needs[shard] for shard in new) <= room[node]:
            return sum(needs[shard] for shard in new) <= room[node]
        return share_of(manifest, new, needs, room[node] + streaming.yielding_bytes) is not None

    def run_cost(node: int, first: int, end: int) -> float | None:
        offer = nodes[node]
        if not offer.may_hold(end - 1, seeded) or not fits(node, first, end):
            return None
        if end - first > 1 and not all(offer.may_hold(shard, seeded) for shard in range(first, end)):
            return None
        pace = pace_at(manifest, offer, range(first, end), needs, policy)
        seconds = stage_s(manifest, pace, first, end)
        return seconds + _preferences(manifest, offer, first, end, seconds)

    def hop(a: int, b: int) -> float:
        return hop_between(manifest, nodes[a].node_id, nodes[b].node_id, links, policy)

    n_shards = manifest.n_shards
    chain = find_chain(n_shards, len(nodes), run_cost, hop, stages=policy.stages, repeats=True)
    if chain is not None and not all(all_fit(chain.runs, node) for node in {run[0] for run in chain.runs}):
        chain = None
    if chain is None:
        raise _why_not(manifest, nodes, needs, room, policy, seeded)
    stages = tuple(Stage(nodes[node].node_id, first, end) for node, first, end in chain.runs)
    offers = {offer.node_id: offer for offer in nodes}
    seconds = law_for(manifest, offers, stages, options, links, policy).token_s()
    whole = {
        offer.node_id: law_for(manifest, offers, [Stage(offer.node_id, 0, n_shards)], options, links, policy).token_s()
        for index, offer in enumerate(nodes)
        if run_cost(index, 0, n_shards) is not None
    }
    return Placement(stages, seconds, _notes(manifest, offers, stages, whole, seconds, policy))


def _preferences(manifest: Manifest, offer: NodeOffer, first: int, end: int, seconds: float) -> float:
    """Returns: seconds added to a run so that less is loaded and stages are balanced; small beside real differences."""
    extra = BALANCE_WEIGHT * seconds**2
    for shard in manifest.content.shards[first:end]:
        if shard.shard_id not in offer.loaded:
            extra += shard.bytes / (READ_BYTES_PER_S * AMORTISED_TOKENS)
            if shard.shard_id not in offer.on_disk:
                extra += shard.bytes / (FETCH_BYTES_PER_S * AMORTISED_TOKENS)
    return extra


def _notes(
    manifest: Manifest,
    offers: Mapping[str, NodeOffer],
    stages: tuple[Stage, ...],
    whole: Mapping[str, float],
    seconds: float,
    policy: Policy,
) -> tuple[str, ...]:
    """Say what a split costs beside one node that could hold everything (`whole`: node id -> seconds), whichever was taken."""
    if not whole:
        return ()
    best = min(whole, key=lambda node_id: (whole[node_id], node_id))
    if len(stages) == 1:
        return (f"{manifest.name} fits on {offers[stages[0].node_id].name} whole: no split is quicker than that",)
    if whole[best] <= seconds:
        why = f"{counted(policy.stages, 'stage')} were asked for" if policy.stages else "less has to be loaded this way"
        return (
            f"{manifest.name} would be quicker whole on {offers[best].name} ({whole[best] * 1e3:.1f} instead of {seconds * 1e3:.1f} ms per token), "
            f"but {why}",
        )
    return (
        f"the split is quicker than {manifest.name} whole on {offers[best].name}: "
        f"{seconds * 1e3:.1f} instead of {whole[best] * 1e3:.1f} ms per token",
    )


# -- when it cannot be done ------------------------------------------------------------------------------------------------------


def layer_list(manifest: Manifest, shard_ids: Sequence[int]) -> str:
    """Returns: `layers [0, 10) (shard 0), [20, 30) (shard 2)`, neighbours joined."""
    parts: list[str] = []
    run: list[int] = []
    for shard_id in [*sorted(shard_ids), -2]:
        if run and shard_id != run[-1] + 1:
            which = f"shard {run[0]}" if len(run) == 1 else f"shards {run[0]} to {run[-1]}"
            parts.append(f"{layers_of(manifest, run[0], run[-1] + 1)} ({which})")
            run = []
        run.append(shard_id)
    return "layers " + ", ".join(parts)


def _check_held(manifest: Manifest, nodes: Sequence[NodeOffer], seeded: frozenset[int]) -> None:
    everything = range(manifest.n_shards)
    unheld = [shard for shard in everything if shard not in seeded]
    if unheld:
        raise PlacementError(
            f"model {manifest.name}: {layer_list(manifest, unheld)} are on no connected node; "
            "start a node whose models cache holds them, anew if it ran before they were cut: a node looks there when it starts"
        )
    barred = [shard for shard in everything if not any(offer.may_hold(shard, seeded) for offer in nodes)]
    if barred:
        raise PlacementError(
            f"model {manifest.name}: no connected node may run {layer_list(manifest, barred)}: "
            "those that have the files are bound to other shards, are leaving, or failed to load them; start another `shardnet node`"
        )


def limits_sentence(offers: Sequence[NodeOffer]) -> str:
    """Returns: `; node-0 may have 300.0 MB by memory.max of cgroup /x`, the first few that are limited; nothing if none is."""
    limited = [f"{offer.name} may have {offer.limit}" for offer in offers if offer.limit]
    more = [f"{len(limited) - LIMITS_SHOWN} more are limited"] if len(limited) > LIMITS_SHOWN else []
    return "".join(f"; {one}" for one in (*limited[:LIMITS_SHOWN], *more))


def streamed_sentence(
    manifest: Manifest, offers: Sequence[NodeOffer], needs: Sequence[int], loaded: frozenset[int], policy: Policy
) -> str:
    """Returns: `; streamed, shard 2 needs 300.0 MB at least, and node-1 has 200.0 MB`, of the largest such shard; nothing where no node streams."""
    roomy = [offer for offer in offers if offer.streaming is not None]
    shards = [shard for shard in range(manifest.n_shards) if shard not in loaded]
    if not roomy or not shards:
        return ""
    least = {shard: least_need(manifest, shard, needs) for shard in shards}
    worst = max(shards, key=lambda shard: least[shard])
    best = max(roomy, key=lambda offer: streaming_room(offer, policy))
    return (
        f"; streamed, shard {worst} needs {human_bytes(least[worst])} at least, and {best.name} has "
        f"{human_bytes(streaming_room(best, policy))} for such shards"
    )


def streaming_room(offer: NodeOffer, policy: Policy) -> int:
    """Returns: bytes for shards that a node streams."""
    return policy.room(offer) + (offer.streaming.yielding_bytes if offer.streaming is not None else 0)


def _why_not(
    manifest: Manifest,
    nodes: Sequence[NodeOffer],
    needs: Sequence[int],
    room: Sequence[int],
    policy: Policy,
    seeded: frozenset[int],
) -> NoRoomError | PlacementError:
    loaded = frozenset(shard for offer in nodes for shard in offer.loaded)
    wanted = sum(need for shard, need in enumerate(needs) if shard not in loaded)
    free = sum(room)
    largest, most = max(needs), max(room)
    per_shard = all(
        any(
            offer.may_hold(shard, seeded) and (shard in offer.loaded or needs[shard] <= space)
            for offer, space in zip(nodes, room, strict=True)
        )
        for shard in range(manifest.n_shards)
    )
    if wanted > free or (not per_shard and largest > most):
        missing = max(wanted - free, largest - most)
        return NoRoomError(
            f"model {manifest.name} needs {human_bytes(wanted)} of memory more, the nodes have {human_bytes(free)} free for it "
            f"(headroom left out): {human_bytes(missing)} are missing; add a node, or lower sequences.n_ctx or sequences.n_seq"
            + (f"; its largest shard alone needs {human_bytes(largest)}: {SMALLER_SHARDS}" if largest > most else "")
            + streamed_sentence(manifest, nodes, needs, loaded, policy)
            + limits_sentence(nodes),
            needed_bytes=wanted,
            free_bytes=free,
            missing_bytes=missing,
        )
    if policy.stages and per_shard:
        return PlacementError(
            f"model {manifest.name} cannot be run in exactly {counted(policy.stages, 'stage')} over {counted(len(nodes), 'node')} "
            "with these shards: start more nodes, or change --stages"
        )
    return NoRoomError(
        f"model {manifest.name} needs {human_bytes(wanted)} of memory more, and although the nodes have {human_bytes(free)} free together, "
        f"no contiguous runs of its shards fit into what single nodes have: free memory on one of them, or {SMALLER_SHARDS}"
        + streamed_sentence(manifest, nodes, needs, loaded, policy)
        + limits_sentence(nodes),
        needed_bytes=wanted,
        free_bytes=free,
    )
