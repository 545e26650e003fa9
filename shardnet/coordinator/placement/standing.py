"""The models that are served, and how each stands: what is ready, what is missing and why. Decides by pure functions; sends nothing."""

from __future__ import annotations

import time
from typing import Any

from shardnet.coordinator.api import views
from shardnet.coordinator.placement.assign import Policy
from shardnet.coordinator.placement.chunks import PROMPT_LOOKED_AT, Chunks, choose
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.planning import LoadOrder, Route, law_of_route, plan, routes
from shardnet.coordinator.placement.spreading import spread
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.errors import PlacementError, ShardnetError
from shardnet.ids import short
from shardnet.log import get
from shardnet.manifest import Manifest, by_claim, claim
from shardnet.messages import ShardOptions

CHUNKS_GOOD_S = 2.0
MAX_CHUNKS = 256

log = get("coordinator")


class Standing:
    """Remembers what the last plan could not do, and the routes of the cluster's present version."""

    def __init__(self, settings: CoordinatorSettings, cluster: Cluster) -> None:
        self._settings = settings
        self._cluster = cluster
        self._policy = Policy(stages=settings.placement.stages, headroom_share=settings.placement.headroom_share)
        self._problems: dict[str, ShardnetError] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        self._routes: dict[str, tuple[int, list[Route]]] = {}
        self._chunks: dict[tuple[Route, int], tuple[float, Chunks]] = {}
        self._told: dict[str, str] = {}

    def served(self) -> list[Manifest]:
        """Returns: models that are to be in memory, by name: of each name the one that it means (`by_claim`), and what the settings name by id."""
        wanted = self._settings.models.serve
        known = self._cluster.manifests.values()
        meant: list[Manifest] = []
        for name in sorted({one.name for one in known}):
            rivals = by_claim(one for one in known if one.name == name)
            is_meant = not wanted or name in wanted
            meant += [one for one in rivals if one.model_id in wanted or (is_meant and one is rivals[0])]
        return meant

    def answering(self) -> list[Manifest]:
        """Returns: models that a request may ask for: those served, and by their ids those that have the name of one of them."""
        wanted = self._settings.models.serve
        served = self.served()
        ids = {one.model_id for one in served}
        others = [one for one in self._cluster.manifests.values() if not wanted or one.name in wanted]
        return [*served, *by_claim(one for one in others if one.model_id not in ids)]

    def options(self, manifest: Manifest) -> ShardOptions:
        """Returns: what every shard of a model is loaded with."""
        return self._settings.sequences.to_options(manifest.content.n_ctx_train)

    def think_over(self) -> list[tuple[LoadOrder, ShardOptions]]:
        """Plan anew. Returns: what to load where; what cannot be had is remembered."""
        served = self.served()
        models = {manifest.model_id: self.options(manifest) for manifest in served}
        found = plan(self._cluster, models, self._policy, replicas=self._settings.placement.replicas)
        self._problems, self._notes = found.problems, found.notes
        orders = [*found.orders, *spread(self._cluster, served, self._settings.placement.copies)]
        return [(order, models[order.model_id]) for order in orders]

    def routes(self, model_id: str) -> list[Route]:
        """Returns: pipelines that are ready now."""
        known = self._routes.get(model_id)
        if known is None or known[0] != self._cluster.version:
            options = self.options(self._cluster.manifests[model_id])
            known = (self._cluster.version, routes(self._cluster, model_id, options, self._policy))
            self._routes[model_id] = known
        return known[1]

    def chunks(self, route: Route, prompt_tokens: int) -> Chunks:
        """Returns: how many tokens of such a prompt to send at a time, by what nodes told last; thought over once in a while."""
        size = self._settings.sequences.prompt_chunk
        most = route.options.n_batch
        if size:
            return Chunks(min(size, most), min(size, most))
        key = route, min(prompt_tokens, PROMPT_LOOKED_AT).bit_length()
        known = self._chunks.get(key)
        now_s = time.monotonic()
        if known is None or now_s > known[0]:
            if len(self._chunks) > MAX_CHUNKS:
                self._chunks.clear()
            law = law_of_route(self._cluster, route, self._policy)
            known = self._chunks[key] = (now_s + CHUNKS_GOOD_S, choose(law, prompt_tokens, most))
        return known[1]

    def not_ready(self, model_id: str) -> ShardnetError:
        """Returns: why there is no pipeline."""
        served = self.served()
        wanted = self._cluster.manifests[model_id]
        if wanted not in served and (holder := next((one for one in served if one.name == wanted.name), None)):
            return PlacementError(
                f"model {short(model_id)} is not in memory: {holder.name} means the newer or proved model {short(holder.model_id)}; "
                "name its whole id in the coordinator's models.serve to have it too"
            )
        return views.not_ready(self._cluster, self._cluster.manifests[model_id], self._problems.get(model_id))

    def namesakes(self, manifest: Manifest) -> tuple[str, ...]:
        """Returns: a sentence if other models have this one's name and are left out for it."""
        ids = {one.model_id for one in self.served()}
        others = [one for one in self.answering() if one.name == manifest.name and one.model_id not in ids]
        if not others:
            return ()
        them = ", ".join(short(one.model_id) for one in others)
        return (
            f"{manifest.name} means model {short(manifest.model_id)}, {claim(manifest)}; {them} of that name stay out of memory: "
            "name an id in models.serve to have it too",
        )

    def tell(self) -> None:
        """Log when a model becomes complete or is so no longer, and which one a name means if there are several; each new reason once."""
        for manifest in self.served():
            for note in self.namesakes(manifest):
                if self._told.get(manifest.name) != note:
                    self._told[manifest.name] = note
                    log.warning("name_of_several_models", model=manifest.name, note=note)
            ready = self.routes(manifest.model_id)
            sentence = views.stages_sentence(self._cluster, manifest, ready[0]) if ready else ""
            fact = sentence or str(self.not_ready(manifest.model_id))
            if self._told.get(manifest.model_id) == fact:
                continue
            self._told[manifest.model_id] = fact
            if ready:
                log.info("pipeline_ready", model=manifest.name, stages=fact, pipelines=len(ready))
                for note in self._notes.get(manifest.model_id, ()):
                    log.info("placement_note", model=manifest.name, note=note)
            else:
                reason = fact.removeprefix(f"model {manifest.name} is not ready: ")
                log.warning("pipeline_incomplete", model=manifest.name, reason=reason)

    # -- as JSON -------------------------------------------------------------------------------------------------------------

    def describe_stage(self, route: Route, index: int) -> dict[str, Any]:
        """Returns: node, layers and bytes sent on of one stage."""
        return views.stage_json(self._cluster, self._cluster.manifests[route.model_id], route, index)

    def health(self) -> dict[str, Any]:
        """Returns: the models in short; `ready` if any is."""
        models = [
            views.health_model(self._cluster, one, self.routes(one.model_id), self._problems.get(one.model_id))
            for one in self.served()
        ]
        ready = any(one["ready"] for one in models)
        return {
            "ready": ready,
            "status": "ok" if ready else "not ready",
            "nodes": len(self._cluster.nodes),
            "models": models,
        }

    def status(self, at_s: float) -> dict[str, Any]:
        """Returns: nodes, models and links in full."""
        nodes = sorted(self._cluster.nodes.values(), key=lambda one: (one.label, one.node_id))
        return {
            "nodes": [views.node_json(self._cluster, node, at_s) for node in nodes],
            "models": [
                views.model_json(
                    self._cluster,
                    one,
                    self.routes(one.model_id),
                    self._problems.get(one.model_id),
                    (*self.namesakes(one), *self._notes.get(one.model_id, ())),
                )
                for one in self.served()
            ],
            "links": [
                {"source": a, "target": b, "one_way_s": link.one_way_s, "bytes_per_s": link.bytes_per_s}
                for (a, b), link in sorted(self._cluster.links.items())
            ],
        }
