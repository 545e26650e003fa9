"""The stages as requests see them: which routes there are, how a step gets to its node, and what it means when one cannot be done there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shardnet.coordinator.nodes.peers import Peers
from shardnet.coordinator.placement.chunks import Chunks
from shardnet.coordinator.placement.events import Event, ShardsLost
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.placement.standing import Standing
from shardnet.errors import ShardnetError, ShardNotFound
from shardnet.inference.splitting.families import carries_state
from shardnet.messages import CancelTask, ExecuteTask, FreeSequence
from shardnet.wire import Buffer


class Stages:
    """The coordinator's `requests.Swarm`.

    Args:
        apply: takes an event into the cluster's state.
    """

    def __init__(self, standing: Standing, peers: Peers, apply: Callable[[Event], None]) -> None:
        self._standing = standing
        self._peers = peers
        self._apply = apply

    def now_s(self) -> float:
        """Returns: seconds of a clock that only goes forward. (uvloop's own counts milliseconds.)"""
        return time.monotonic()

    def send(
        self, node_id: str, message: ExecuteTask | FreeSequence | CancelTask, payloads: Sequence[Buffer] = ()
    ) -> None:
        """Send a step. Raises: PeerLost."""
        self._peers.send(node_id, message, payloads)

    def routes(self, model_id: str) -> list[Route]:
        """Returns: pipelines that are ready now."""
        return self._standing.routes(model_id)

    def chunks(self, route: Route, prompt_tokens: int) -> Chunks:
        """Returns: how many tokens of such a prompt to send at a time."""
        return self._standing.chunks(route, prompt_tokens)

    def can_copy(self, route: Route) -> bool:
        """Returns: whether all of its nodes know how to copy a sequence, and this model's sequences can be copied."""
        cluster = self._standing.cluster
        if carries_state(cluster.manifests[route.model_id].content.architecture):
            return False
        nodes = (cluster.nodes.get(node_id) for node_id in route.node_ids)
        return all(node is not None and node.capabilities.copies for node in nodes)

    def not_ready(self, model_id: str) -> ShardnetError:
        """Returns: why there is no pipeline."""
        return self._standing.not_ready(model_id)

    def stage_failed(self, node_id: str, route: Route, error: ShardnetError) -> None:
        """A stage does not have its shards after all: have them confirmed again."""
        if isinstance(error, ShardNotFound):
            shards = {
                shard
                for one in route.stages
                if one.node_id == node_id
                for shard in range(one.first_shard, one.end_shard)
            }
            self._apply(ShardsLost(node_id, tuple((route.model_id, shard) for shard in sorted(shards))))
