"""Members that came as clients and stay connected (`shardnet seed`, `shardnet fetch`): which start of which member is here."""

from __future__ import annotations

from dataclasses import dataclass

from shardnet.coordinator.nodes.peers import Connection


@dataclass(frozen=True, slots=True)
class _Visit:
    run_id: str | None
    name: str
    connection: Connection


class Visitors:
    """One for each member; a later connection takes the place of the one before."""

    def __init__(self) -> None:
        self._visits: dict[str, _Visit] = {}

    def add(self, node_id: str, run_id: str | None, name: str, connection: Connection) -> None:
        """A member is here."""
        self._visits[node_id] = _Visit(run_id, name, connection)

    def remove(self, node_id: str, connection: Connection) -> None:
        """The connection is gone. Harmless when the member has another one by now."""
        if (visit := self._visits.get(node_id)) is not None and visit.connection is connection:
            del self._visits[node_id]

    def other_run(self, node_id: str, run_id: str) -> str | None:
        """Returns: the name under which another process is here with the same key; None if there is none."""
        visit = self._visits.get(node_id)
        is_other = visit is not None and visit.connection.is_open and visit.run_id not in (None, run_id)
        return visit.name if visit is not None and is_other else None
