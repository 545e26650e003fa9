"""The daemon's part in the engine's own links (`inference.worker.row_links`): when to make one, and who may be at the other end.

It never sees the rows.
"""

from __future__ import annotations

import asyncio
import itertools
import socket

from shardnet.errors import PeerRefused, ShardnetError
from shardnet.ids import NodeId, short
from shardnet.inference.engine.interface import Engine
from shardnet.inference.engine.protocol import CutRows, DialRows, RowsLost, RowsMet, TakeRows
from shardnet.log import get
from shardnet.messages import Address, StageRef
from shardnet.swarm.authority import node_id_of_certificate
from shardnet.swarm.identity import Identity
from shardnet.swarm.tls import check_not_revoked

MAX_ACCEPTED = 256
"""Links that others made to this engine: twice as many as a node has routes through it, and then some."""

log = get("node")


class RowLinks:
    """All row links of this node's engine.

    Args:
        redial_after_s: a node whose engine could not be reached is left alone so long; its rows go through the daemons.
    """

    def __init__(self, identity: Identity, engine: Engine, *, redial_after_s: float) -> None:
        self._identity = identity
        self._engine = engine
        self._redial_after_s = redial_after_s
        self._numbers = itertools.count(1)
        self._dialled: dict[int, NodeId] = {}
        self._address: dict[NodeId, Address] = {}  # where each was dialled last
        self._accepted: dict[int, NodeId | None] = {}  # None: who it is is not known yet
        self._alone_until_s: dict[NodeId, float] = {}
        engine.on_link = self._take_news
        identity.watch_revocations(self._cut_revoked)

    def want(self, stage: StageRef) -> None:
        """Rows will go to this stage's engine: make a link, unless there is one, or was none to be had a moment ago."""
        now_s = asyncio.get_running_loop().time()
        if stage.address is not None and self._address.get(stage.node_id, stage.address) != stage.address:
            self.cut(stage.node_id)  # it moved: the link leads to where it was
        if (
            stage.address is None
            or stage.node_id in self._dialled.values()
            or now_s < self._alone_until_s.get(stage.node_id, 0.0)
        ):
            return
        self._alone_until_s = {one: until_s for one, until_s in self._alone_until_s.items() if until_s > now_s}
        link_id = next(self._numbers)
        self._dialled[link_id] = stage.node_id
        self._address[stage.node_id] = stage.address
        self._alone_until_s[stage.node_id] = now_s + self._redial_after_s
        self._engine.link(DialRows(link_id=link_id, host=stage.address.host, port=stage.address.port))

    def cut(self, node_id: NodeId) -> None:
        """Rows do not get through to this node's engine any more: end the link to it, and make another when it is wanted next."""
        for link_id in [link_id for link_id, other in self._dialled.items() if other == node_id]:
            self._engine.link(CutRows(link_id=link_id))
            del self._dialled[link_id]
        self._alone_until_s.pop(node_id, None)

    def cut_all(self) -> None:
        """This machine's address is another one: no link leads anywhere."""
        for node_id in set(self._dialled.values()):
            self.cut(node_id)

    def adopt(self, connection: socket.socket) -> None:
        """Another engine dialled. Its first bytes have not been read."""
        if len(self._accepted) >= MAX_ACCEPTED:
            connection.close()
            return
        link_id = next(self._numbers)
        self._accepted[link_id] = None
        self._engine.adopt(link_id, connection)

    def engine_came_back(self) -> None:
        """The engine died, and its links with it."""
        self._dialled.clear()
        self._accepted.clear()
        self._address.clear()
        self._alone_until_s.clear()

    def _take_news(self, news: RowsMet | RowsLost) -> None:
        if isinstance(news, RowsMet):
            self._judge(news)
            return
        node_id = self._dialled.pop(news.link_id, None)
        if node_id is None:
            node_id = self._accepted.pop(news.link_id, None)
        log.debug("row_link_ended", peer_id=short(node_id or "unknown"), reason=news.reason)

    def _judge(self, met: RowsMet) -> None:
        expected = self._dialled.get(met.link_id)
        try:
            node_id = node_id_of_certificate(bytes.fromhex(met.certificate))
            check_not_revoked(self._identity, node_id)
            if expected not in (None, node_id):
                raise PeerRefused(f"node {short(node_id)} answers where another one was expected")
        except ShardnetError as error:
            log.warning("row_link_refused", reason=str(error))
            self._engine.link(CutRows(link_id=met.link_id))
            return
        if expected is None:
            # Its engine dials us once: an older link is one that broke, which only the other end knows.
            for link_id in [link_id for link_id, other in self._accepted.items() if other == node_id]:
                self._engine.link(CutRows(link_id=link_id))
            self._accepted[met.link_id] = node_id
        self._engine.link(TakeRows(link_id=met.link_id, node_id=node_id))
        log.debug("row_link_made", peer_id=short(node_id), dialled=expected is not None)

    def _cut_revoked(self, revoked: frozenset[str]) -> None:
        for link_id, node_id in [*self._dialled.items(), *self._accepted.items()]:
            if node_id in revoked:
                self._engine.link(CutRows(link_id=link_id))
