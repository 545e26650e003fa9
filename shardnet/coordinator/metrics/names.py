"""What models and nodes are called in labels: by name, and where several have one name by a piece of their id as well. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shardnet.coordinator.placement.cluster import Cluster
from shardnet.ids import short
from shardnet.manifest import Manifest


class Names:
    """Those of one moment.

    Args:
        served: models that their names mean; another one of the same name is told apart by its id.
    """

    def __init__(self, cluster: Cluster, served: Iterable[Manifest]) -> None:
        labels = Counter(node.label for node in cluster.nodes.values())
        self._nodes = {
            node_id: node.label if labels[node.label] == 1 else f"{node.label}/{short(node_id)}"
            for node_id, node in cluster.nodes.items()
        }
        meant: dict[str, str] = {}
        for one in served:
            meant.setdefault(one.name, one.model_id)
        self._models = {
            model_id: one.name if meant.get(one.name, model_id) == model_id else f"{one.name}/{short(model_id)}"
            for model_id, one in cluster.manifests.items()
        }

    def node(self, node_id: str) -> str:
        """Returns: the label of a node; its id if it is not connected, `coordinator` for the empty one."""
        return self._nodes.get(node_id) or (short(node_id) if node_id else "coordinator")

    def model(self, model_id: str) -> str:
        """Returns: the label of a model."""
        return self._models.get(model_id) or short(model_id)
