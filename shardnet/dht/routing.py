"""kademlia's routing table with a true nearest-neighbour search.

The stock search stops at the first k contacts it meets, walking bucket by bucket, and so misses nearer ones; and a full bucket starts a
ping that nobody awaits. A table holds a few hundred contacts at most: looking at all of them is both exact and quick.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from kademlia.node import Node
from kademlia.routing import RoutingTable


class ExactRoutingTable(RoutingTable):  # type: ignore[misc]
    """Contacts whose node id was proved. Buckets limit how many there may be of each distance."""

    def contacts(self) -> Iterator[Node]:
        """Returns: every contact."""
        for bucket in self.buckets:
            yield from bucket.nodes.values()

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def get(self, node_id: bytes) -> Node | None:
        """Returns: the contact with this id, or None."""
        bucket = self.buckets[self.get_bucket_for(Node(node_id))]
        return bucket[node_id]

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[Node]:
        """Returns: the k contacts nearest to `node`, nearest first, without `node` itself and `exclude`."""
        unwanted = {node.id, exclude.id if exclude is not None else None}
        candidates = (contact for contact in self.contacts() if contact.id not in unwanted)
        return heapq.nsmallest(k or self.ksize, candidates, key=node.distance_to)

    def add_contact(self, node: Node) -> None:
        """Put a contact at the fresh end of its bucket, splitting as Kademlia does (section 4.2 of the paper).

        Where the bucket stays full the contact waits as a replacement; the sweep's pings make room when somebody is gone.
        """
        while True:
            index = self.get_bucket_for(node)
            bucket = self.buckets[index]
            if bucket.add_node(node):
                return
            low, high = bucket.range
            if high - low < 2 or not (bucket.has_in_range(self.node) or bucket.depth() % 5 != 0):
                return
            self.split_bucket(index)
