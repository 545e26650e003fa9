"""The models that are served, and how each stands: what is ready, what is missing and why. Decides by pure functions; sends nothing."""

from __future__ import annotations

import time

from shardnet.coordinator.placement.assign import Policy
from shardnet.coordinator.placement.chunks import PROMPT_LOOKED_AT, Chunks, choose
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.node_view import NodeView, Unserved
from shardnet.coordinator.placement.planning import LoadOrder, Route, law_of_route, plan, routes
from shardnet.coordinator.placement.readiness import not_ready, stages_sentence
from shardnet.coordinator.placement.settings import ModelsSettings, PlacementSettings, SequenceSettings
from shardnet.coordinator.placement.spreading import spread
from shardnet.errors import LOADING, PlacementError, ShardnetError
from shardnet.ids import short
from shardnet.log import get
from shardnet.manifest import Manifest, ParityCertificate, by_claim, claim
from shardnet.messages import ShardOptions

NODES_COME_BACK_S = 6.0
"""So long a node that runs waits at most until it tries to reach a coordinator again (`lifecycle.Backoff`), and a little."""
INTRODUCTION_S = 2.0
"""A node that has joined offers the manifests of its models at once."""
ON_ITS_WAY = "on its way"
"""What was told of a model that is being loaded: once, not with each step of it."""
CHUNKS_GOOD_S = 2.0
MAX_CHUNKS = 256
STREAMED_SHOWN = 3

log = get("coordinator")


class Standing:
    """Remembers what the last plan could not do, and the routes of the cluster's present version.

    Attributes:
        plan_is_due: the cluster changed, and no plan has taken that in yet; whoever asks for plans says so.
    """

    def __init__(
        self, cluster: Cluster, models: ModelsSettings, placement: PlacementSettings, sequences: SequenceSettings
    ) -> None:
        self.cluster = cluster
        self._serve = models.serve
        self._require_proof = models.require_proof
        self._placement = placement
        self._sequences = sequences
        self._policy = Policy(stages=placement.stages, headroom_share=placement.headroom_share)
        self._problems: dict[str, ShardnetError] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        self._routes: dict[str, tuple[int, list[Route]]] = {}
        self._chunks: dict[tuple[Route, int], tuple[float, Chunks]] = {}
        self._told: dict[str, str] = {}
        self.plan_is_due = False
        self._began_s = time.monotonic()

    def served(self) -> list[Manifest]:
        """Returns: models that are to be in memory, by name: of each name the one that it means (`by_claim`), and what the settings name by id."""
        wanted = self._serve
        known = [one for one in self.cluster.manifests.values() if not self.kept_out(one)]
        meant: list[Manifest] = []
        for name in sorted({one.name for one in known}):
            rivals = by_claim(one for one in known if one.name == name)
            is_meant = not wanted or name in wanted
            meant += [one for one in rivals if one.model_id in wanted or (is_meant and one is rivals[0])]
        return meant

    def answering(self) -> list[Manifest]:
        """Returns: models that a request may ask for: those served, and by their ids those that have the name of one of them."""
        wanted = self._serve
        served = self.served()
        ids = {one.model_id for one in served}
        others = [one for one in self.cluster.manifests.values() if not wanted or one.name in wanted]
        return [*served, *by_claim(one for one in others if one.model_id not in ids)]

    def kept_out(self, manifest: Manifest) -> str:
        """Returns: why a model is not to be served, "" if it may be."""
        if not self._require_proof or not manifest.unproved:
            return ""
        return (
            f"model {manifest.name} ({short(manifest.model_id)}) is kept out by the coordinator's models.require_proof: {manifest.unproved}; "
            "prove it with `shardnet verify FOLDER --source MODEL`, and start the coordinator again"
        )

    def all_kept_out(self) -> list[tuple[Manifest, str]]:
        """Returns: models that are not served for want of a proof, by name, each with the reason."""
        known = sorted(self.cluster.manifests.values(), key=lambda one: (one.name, one.model_id))
        return [(one, reason) for one in known if (reason := self.kept_out(one))]

    def spare(self, node: NodeView) -> str:
        """Returns: a sentence if a node has nothing to do although all is well: every layer is in others' memory; "" if that is not so."""
        served = self.served()
        is_idle = not (node.draining or node.loads or node.refusals or any(one.loaded for one in node.held.values()))
        if not served or not is_idle or not all(self.routes(one.model_id) for one in served):
            return ""
        may_run = (node.allowed(one.model_id, one.name) for one in served)
        if not any(
            which is None or any(shard < one.n_shards for shard in which)
            for one, which in zip(served, may_run, strict=True)
        ):
            return ""  # it is bound to something else
        return "spare: every layer is held by others; it takes over when a node goes"

    def unserved(self, node: NodeView) -> list[Unserved]:
        """Returns: models that a node has and that no request can ask for, each with the reason."""
        answering = {one.model_id for one in self.answering()}
        ids = {model_id for model_id, _ in node.held} | node.unserved.keys()
        return [self._unserved(node, model_id) for model_id in sorted(ids - answering)]

    def _unserved(self, node: NodeView, model_id: str) -> Unserved:
        if (manifest := self.cluster.manifests.get(model_id)) is not None:
            return Unserved(model_id, manifest.name, "the coordinator's models.serve names others")
        no_manifest = (
            "the node has shards of it and no manifest.json beside them: copy that there, and start the node again"
        )
        return node.unserved.get(model_id) or Unserved(model_id, short(model_id), no_manifest)

    def why_not_served(self, wanted: str) -> str | None:
        """Returns: why the model of that id (12 digits of it at least) or name is not served, where the swarm has it; else None."""

        def is_meant(model_id: str, name: str) -> bool:
            return wanted == name or (len(wanted) >= 12 and model_id.startswith(wanted))

        for one in self.answering():
            if is_meant(one.model_id, one.name):
                return str(self.not_ready(one.model_id))
        for node in sorted(self.cluster.nodes.values(), key=lambda one: one.label):
            for other in self.unserved(node):
                if is_meant(other.model_id, other.name):
                    return f"model {other.name} ({short(other.model_id)}), which node {node.label} has, is not served: {other.reason}"
        return None

    def options(self, manifest: Manifest) -> ShardOptions:
        """Returns: what every shard of a model is loaded with."""
        return self._sequences.to_options(manifest.content.n_ctx_train)

    def think_over(self) -> list[tuple[LoadOrder, ShardOptions]]:
        """Plan anew. Returns: what to load where; what cannot be had is remembered."""
        served = self.served()
        models = {manifest.model_id: self.options(manifest) for manifest in served}
        found = plan(self.cluster, models, self._policy, replicas=self._placement.replicas)
        self._problems, self._notes = found.problems, found.notes
        orders = [*found.orders, *spread(self.cluster, served, self._placement.copies)]
        return [(order, models[order.model_id].model_copy(update={"repack": order.repack})) for order in orders]

    def routes(self, model_id: str) -> list[Route]:
        """Returns: pipelines that are ready now."""
        if self.kept_out(self.cluster.manifests[model_id]):
            return []  # a node may have loaded it all the same
        known = self._routes.get(model_id)
        if known is None or known[0] != self.cluster.version:
            options = self.options(self.cluster.manifests[model_id])
            known = (self.cluster.version, routes(self.cluster, model_id, options, self._policy))
            self._routes[model_id] = known
        return known[1]

    def chunks(self, route: Route, prompt_tokens: int) -> Chunks:
        """Returns: how many tokens of such a prompt to send at a time, by what nodes told last; thought over once in a while."""
        size = self._sequences.prompt_chunk
        most = route.options.n_batch
        if size:
            return Chunks(*(min(size, most),) * 3)
        key = route, min(prompt_tokens, PROMPT_LOOKED_AT).bit_length()
        known = self._chunks.get(key)
        now_s = time.monotonic()
        if known is None or now_s > known[0]:
            if len(self._chunks) > MAX_CHUNKS:
                self._chunks.clear()
            law = law_of_route(self.cluster, route, self._policy)
            known = self._chunks[key] = (now_s + CHUNKS_GOOD_S, choose(law, prompt_tokens, most))
        return known[1]

    def not_ready(self, model_id: str) -> ShardnetError:
        """Returns: why there is no pipeline."""
        return self._not_ready(model_id, has_just_started=time.monotonic() - self._began_s < NODES_COME_BACK_S)

    def _not_ready(self, model_id: str, *, has_just_started: bool) -> ShardnetError:
        served = self.served()
        wanted = self.cluster.manifests[model_id]
        if reason := self.kept_out(wanted):
            return PlacementError(reason)
        if wanted not in served and (holder := next((one for one in served if one.name == wanted.name), None)):
            return PlacementError(
                f"model {short(model_id)} is not in memory: {holder.name} means the newer or proved model {short(holder.model_id)}; "
                "name its whole id in the coordinator's models.serve to have it too"
            )
        return not_ready(
            self.cluster,
            wanted,
            self.problem(model_id),
            plan_is_due=self.plan_is_due,
            has_just_started=has_just_started,
        )

    def awaits_manifest(self) -> bool:
        """True if a node joined a moment ago, and has a model of which it is about to say what it is."""
        joined_after_s = time.monotonic() - INTRODUCTION_S
        return any(
            node.joined_at_s > joined_after_s
            and any(model not in self.cluster.manifests and model not in node.unserved for model, _ in node.held)
            for node in self.cluster.nodes.values()
        )

    def problem(self, model_id: str) -> ShardnetError | None:
        """Returns: why the last plan has no place for all of a model's layers."""
        return self._problems.get(model_id)

    def notes(self, manifest: Manifest) -> tuple[str, ...]:
        """Returns: what there is to say of a model: who else has its name, who streams it, and what the last plan noted."""
        return *self.namesakes(manifest), *self.streamed(manifest), *self._notes.get(manifest.model_id, ())

    def namesakes(self, manifest: Manifest) -> tuple[str, ...]:
        """Returns: a sentence if other models have this one's name and are left out for it."""
        ids = {one.model_id for one in self.served()}
        others = [one for one in self.answering() if one.name == manifest.name and one.model_id not in ids]
        others = [one for one in others if not self.kept_out(one)]
        if not others:
            return ()
        them = ", ".join(short(one.model_id) for one in others)
        return (
            f"{manifest.name} means model {short(manifest.model_id)}, {claim(manifest)}; {them} of that name stay out of memory: "
            "name an id in models.serve to have it too",
        )

    def streamed(self, manifest: Manifest) -> tuple[str, ...]:
        """Returns: a sentence if a model runs without repacking, since the last digits of its numbers are others; who streams it is why."""
        found = [
            f"shard {shard_id} on {node.label}"
            for node in sorted(self.cluster.nodes.values(), key=lambda one: (one.label, one.node_id))
            for (model_id, shard_id), held in sorted(node.held.items())
            if model_id == manifest.model_id and held.loaded and held.memory_mode == "streamed"
        ]
        kinds = {route.options.repack for route in self.routes(manifest.model_id)}
        if not found and False not in kinds:
            return ()
        more = f" and {len(found) - STREAMED_SHOWN} more" if len(found) > STREAMED_SHOWN else ""
        return (
            f"streamed: {', '.join(found[:STREAMED_SHOWN]) or 'no shard now'}{more}; so no shard of its pipelines is repacked: answers are those of "
            "the unsplit model without repacking, bit by bit, and may differ in their last digits from those with it"
            + _proof_of(manifest),
        )

    def tell(self) -> None:
        """Log when a model becomes complete or is so no longer, and which one a name means if there are several; each new reason once.

        While a plan is due nothing is said of what is missing: in a moment it is on its way, or the plan says why not.
        """
        for manifest, reason in self.all_kept_out():
            if self._told.get(manifest.model_id) != reason:
                self._told[manifest.model_id] = reason
                log.warning("model_kept_out", model=manifest.name, reason=reason)
        for manifest in self.served():
            for note in self.namesakes(manifest):
                if self._told.get(manifest.name) != note:
                    self._told[manifest.name] = note
                    log.warning("name_of_several_models", model=manifest.name, note=note)
            ready = self.routes(manifest.model_id)
            sentence = stages_sentence(self.cluster, manifest, ready[0]) if ready else ""
            if not ready and self.plan_is_due:
                continue
            problem = None if ready else self._not_ready(manifest.model_id, has_just_started=False)
            is_coming = problem is not None and f"{LOADING}share" in problem.facts
            fact = ON_ITS_WAY if is_coming else sentence or str(problem)
            if self._told.get(manifest.model_id) == fact:
                continue
            self._told[manifest.model_id] = fact
            if ready:
                log.info("pipeline_ready", model=manifest.name, stages=fact, pipelines=len(ready))
                for note in self._notes.get(manifest.model_id, ()):
                    log.info("placement_note", model=manifest.name, note=note)
            else:
                reason = str(problem).removeprefix(f"model {manifest.name} is not ready: ")
                say, event = (log.info, "pipeline_loading") if is_coming else (log.warning, "pipeline_incomplete")
                say(event, model=manifest.name, reason=reason)


def _proof_of(manifest: Manifest) -> str:
    """Returns: what a certificate that was made with repacking is worth here; "" where there is none, or one without."""
    certificate = manifest.certificate
    if not isinstance(certificate, ParityCertificate) or not certificate.repacked:
        return ""
    return "; its certificate was made with repacked weights, and says nothing of these"
