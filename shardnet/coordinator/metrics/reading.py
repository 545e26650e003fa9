"""Reads what the coordinator knows as figures, when a scraper asks. Only looks; everything belongs to the event loop's thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric

from shardnet.coordinator.api.http_counts import HttpCounts
from shardnet.coordinator.metrics import families as f
from shardnet.coordinator.metrics.names import Names
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.standing import Standing
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.prefixes import Prefixes


@dataclass(frozen=True, slots=True)
class CoordinatorFigures:
    """All of the coordinator's own.

    Attributes:
        relayed: steps, and bytes of weights, that were passed on.
    """

    standing: Standing
    requests: Requests
    http: HttpCounts
    relayed: Callable[[], tuple[int, int]]
    now_s: Callable[[], float]

    def read(self) -> Iterable[Metric]:
        """Yield every family."""
        names = Names(self.standing.cluster, self.standing.served())
        yield from self._nodes(self.standing.cluster, names)
        yield from self._models(names)
        yield from _loads(self.standing.cluster)
        yield from self._links(self.standing.cluster, names)
        yield f.HTTP.of(dict(self.http.counts))
        yield from self._requests(names)
        yield from self._stages(names)
        yield from self._saved()

    def _nodes(self, cluster: Cluster, names: Names) -> Iterable[Metric]:
        nodes = {names.node(node_id): node for node_id, node in cluster.nodes.items()}
        leaving = sum(node.draining for node in nodes.values())
        yield f.NODES.of({"up": len(nodes) - leaving, "leaving": leaving})
        yield f.NODE_BUSY.of({name: node.load for name, node in nodes.items()})
        yield f.NODE_SEQUENCES.of({name: node.sequences for name, node in nodes.items()})
        yield f.NODE_FREE.of({name: node.memory_free_bytes for name, node in nodes.items()})
        yield f.NODE_SHARDS.of(
            {name: sum(held.memory_bytes for held in node.held.values()) for name, node in nodes.items()}
        )
        now_s = self.now_s()
        yield f.NODE_SILENCE.of({name: max(0.0, now_s - node.heard_at_s) for name, node in nodes.items()})

    def _models(self, names: Names) -> Iterable[Metric]:
        served = {names.model(one.model_id): one for one in self.standing.served()}
        yield f.MODEL_INFO.of(
            {
                (
                    name,
                    one.model_id,
                    one.content.architecture,
                    one.content.quantisation,
                    "no" if one.unproved else "yes",
                ): 1
                for name, one in served.items()
            }
        )
        yield f.LAYERS.of({name: one.content.n_layers for name, one in served.items()})
        missing = self.standing.cluster.missing_layers
        yield f.LAYERS_MISSING.of({name: sum(map(len, missing(one.model_id))) for name, one in served.items()})
        yield f.PIPELINES.of({name: len(self.standing.routes(one.model_id)) for name, one in served.items()})

    def _links(self, cluster: Cluster, names: Names) -> Iterable[Metric]:
        links = {(names.node(source), names.node(target)): link for (source, target), link in cluster.links.items()}
        yield f.LINK_ROUND_TRIP.of({pair: 2 * link.one_way_s for pair, link in links.items()})
        yield f.LINK_SPEED.of({pair: link.bytes_per_s for pair, link in links.items()})
        yield f.LINKS_RELAYED.one(len(cluster.unreachable))
        steps, weights = self.relayed()
        yield f.RELAYED_STEPS.one(steps)
        yield f.RELAYED_WEIGHTS.one(weights)

    def _requests(self, names: Names) -> Iterable[Metric]:
        requests, name = self.requests, names.model
        for one in self.standing.served():
            requests.figures.of(one.model_id)  # so that a model is there before it is asked, at 0
        models = {name(model_id): model for model_id, model in requests.figures.models.items()}
        running = Counter(name(one.generation.spec.model_id) for one in requests.running)
        yield f.RUNNING.of({label: running[label] for label in models})
        yield f.QUEUED.of({name(one): requests.queued_for(one) for one in requests.figures.models})
        yield f.PROMPT_TOKENS.of({label: model.prompt_tokens for label, model in models.items()})
        yield f.TOKENS.of({label: model.tokens for label, model in models.items()})
        yield f.ANSWERS.of({(label, how): n for label, model in models.items() for how, n in model.outcomes.items()})
        yield f.ERRORS.of({(label, code): n for label, model in models.items() for code, n in model.errors.items()})
        yield f.FIRST_TOKEN.buckets({label: model.first_token for label, model in models.items()})
        yield f.BETWEEN.buckets({label: model.between for label, model in models.items()})
        yield f.LONGEST.buckets({label: model.longest for label, model in models.items()})
        yield f.WAITED.buckets({label: model.waited for label, model in models.items()})
        yield f.TOOK.buckets({label: model.took for label, model in models.items()})
        again = sum(max(0, one.generation.attempts - 1) for one in requests.running)
        yield f.RECOVERIES.one(requests.totals.retried + again)
        yield f.LATE.one(requests.totals.late_answers)

    def _stages(self, names: Names) -> Iterable[Metric]:
        figures = self.requests.figures
        figures.forget(self.standing.cluster.nodes)
        stages = {
            (names.model(model_id), str(index), names.node(node_id)): stage
            for model_id, model in figures.models.items()
            for (index, node_id), stage in model.stages.items()
        }
        yield f.STAGE_QUEUE.sums({key: stage.seconds(stage.queue_us) for key, stage in stages.items()})
        yield f.STAGE_COMPUTE.sums({key: stage.seconds(stage.compute_us) for key, stage in stages.items()})
        yield f.STAGE_HANDOVER.sums({key: stage.seconds(stage.handover_us) for key, stage in stages.items()})
        yield f.STAGE_ROWS.buckets({key: stage.rows for key, stage in stages.items()})

    def _saved(self) -> Iterable[Metric]:
        requests = self.requests
        prefixes = Prefixes() if requests.prefixes is None else requests.prefixes
        yield f.PREFIX_KEPT.one(len(prefixes))
        yield f.PREFIX_HITS.one(prefixes.hits)
        yield f.PREFIX_COPIES.one(prefixes.copies)
        yield f.PREFIX_WAITING.one(requests.waiting)
        yield f.PREFIX_WAITED.buckets({(): prefixes.waited})
        yield f.PREFIX_TOKENS.one(prefixes.tokens_reused)
        yield f.PREFIX_REFUSED.one(prefixes.refused)
        yield f.PREFIX_EVICTED.one(prefixes.evicted)
        speculators = [s for one in requests.running if (s := one.generation.speculator) is not None]
        yield f.PROPOSED.one(requests.totals.tokens_proposed + sum(one.proposed for one in speculators))
        yield f.ACCEPTED.one(requests.totals.tokens_accepted + sum(one.accepted for one in speculators))


def _loads(cluster: Cluster) -> Iterable[Metric]:
    stages: Counter[str] = Counter(dict.fromkeys(("asked", "fetch", "verify", "load"), 0))
    left: Counter[str] = Counter(stages)
    for node in cluster.nodes.values():
        for load in node.loads.values():
            stage = load.progress.stage if load.progress is not None else "asked"
            stages[stage] += 1
            if load.progress is not None:
                left[stage] += max(0, load.progress.total_bytes - load.progress.done_bytes)
    yield f.LOADS.of(dict(stages))
    yield f.LOADS_LEFT.of(dict(left))
    yield f.LOADS_REFUSED.one(sum(len(node.refusals) for node in cluster.nodes.values()))
