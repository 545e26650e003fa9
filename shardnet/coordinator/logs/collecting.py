"""Asks every daemon for its newest lines, again and again while somebody reads, and one of them never holds up the others.

Nothing waits here: a reader that is slow is told what it missed, since the next question asks for the newest lines only. So much of a node's log
passes through at most: `FOLLOWED_LINES` every `EVERY_S`, for each of `MOST_READERS`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import cast

from shardnet.coordinator.logs.merging import (
    Entry,
    Source,
    Wish,
    ahead,
    chosen,
    clock_note,
    entries,
    in_order,
    left_out,
)
from shardnet.coordinator.nodes.peers import Peers
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.errors import Busy, PeerLost, ShardnetError
from shardnet.ids import new_id
from shardnet.journal import Journal
from shardnet.messages import MAX_LOG_LINES, LogTold, TellLog

EVERY_S = 0.5
ANSWER_S = 3.0
"""A node that takes longer is told as one that does not answer; the others' lines have come meanwhile."""
FIRST_S = 1.5
"""So long everybody is waited for before the first lines are told, in order."""
FOLLOW_S = 0.1
"""Those who are asked again answer at once, or their lines come with the next question's."""
FOLLOWED_LINES = 200
MOST_READERS = 8

Told = tuple[LogTold, float]
"""A daemon's lines, and by how many seconds its clock is ahead."""


class LogCollector:
    """One for the coordinator.

    Args:
        own: the coordinator itself, whose lines `journal` keeps.
    """

    def __init__(
        self,
        cluster: Cluster,
        peers: Peers,
        journal: Journal,
        own: Callable[[], Source],
        *,
        clock_s: Callable[[], float] = time.time,
        every_s: float = EVERY_S,
    ) -> None:
        self._cluster = cluster
        self._peers = peers
        self._journal = journal
        self._own = own
        self.clock_s = clock_s
        self._every_s = every_s
        self._readers: set[LogReader] = set()
        self._closed = asyncio.Event()

    def sources(self) -> list[Source]:
        """Returns: the coordinator, then every connected node."""
        nodes = sorted(self._cluster.nodes.values(), key=lambda one: (one.label, one.node_id))
        told = [Source(one.node_id, one.label, one.run_id, one.capabilities.software is not None) for one in nodes]
        return [self._own(), *told]

    def open(self, wish: Wish) -> LogReader:
        """Returns: a reader, who is to be closed. Raises: UsageError for a name that is nobody's; Busy if too many read."""
        chosen(self.sources(), wish.nodes)
        if len(self._readers) >= MOST_READERS:
            raise Busy(f"{MOST_READERS} others read the logs at the moment", retry_after_s=5)
        reader = LogReader(self, wish)
        self._readers.add(reader)
        return reader

    def forget(self, reader: LogReader) -> None:
        """A reader has gone. Harmless when repeated."""
        self._readers.discard(reader)

    def close(self) -> None:
        """Every reader's stream ends."""
        self._closed.set()

    async def pause(self) -> bool:
        """Wait until it is time to ask again. Returns: False if this is over."""
        try:
            async with asyncio.timeout(self._every_s):
                await self._closed.wait()
        except TimeoutError:
            return True
        return False

    async def ask(self, source: Source, question: TellLog) -> Told:
        """Returns: what a daemon tells. Raises: PeerLost, DeadlineExceeded, the node's own error."""
        if source.node_id == self._own().node_id:
            return self._journal.tell(question), 0.0
        asked_s = self.clock_s()
        told = cast("LogTold", (await self._peers.ask(source.node_id, question, timeout_s=ANSWER_S)).message)
        return told, ahead(told, asked_s, self.clock_s())


class LogReader:
    """How far somebody is with each daemon's log."""

    def __init__(self, collector: LogCollector, wish: Wish) -> None:
        self._collector = collector
        self._wish = wish
        self._after: dict[tuple[str, str | None], int] = {}
        """(node, its start) -> the number of the last line that it told."""
        self._has_begun = False
        self._asking: dict[str, asyncio.Task[Told]] = {}
        self._known: dict[str, Source] = {}
        self._said: dict[str, str] = {}
        """What was last said of a daemon's log; each thing is said once."""
        self._noted_ahead: set[str] = set()

    async def entries(self) -> AsyncIterator[list[Entry]]:
        """Yield lines, several at a time: first those that are there, in order; then those of daemons that took longer, and why there are none;
        then, if it is wished for, what comes, until the collector is closed. Nothing came where a list is empty."""
        yield await self._first()
        while self._asking and not self._wish.follows:
            yield in_order(await self._answers(self._known, ANSWER_S))
        while self._wish.follows and await self._collector.pause():
            yield in_order(await self._round(FOLLOW_S))

    def close(self) -> None:
        """Ask nobody any more. Harmless when repeated."""
        self._collector.forget(self)
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()

    async def _first(self) -> list[Entry]:
        found = await self._round(FIRST_S)
        self._has_begun = True
        lines = in_order(one for one in found if not one.is_note)
        if self._wish.lines is not None:
            lines = lines[max(0, len(lines) - self._wish.lines) :]
        return [*(one for one in found if one.is_note), *lines]

    async def _round(self, patience_s: float) -> list[Entry]:
        """Ask everybody who is not being asked. Returns: what those have told who answered soon enough, earlier questions among them."""
        sources = {one.node_id: one for one in self._sources()}
        found: list[Entry] = []
        for node_id, source in self._known.items():
            if node_id not in sources:
                found += self._note(source, "it has left: none of its lines come until it is back")
        self._known = sources
        for source in sources.values():
            if not source.tells:
                found += self._note(source, "it runs an older shardnet, which does not tell its log: update it")
            elif source.node_id not in self._asking:
                self._asking[source.node_id] = asyncio.create_task(self._ask(source))
        return found + await self._answers(sources, patience_s)

    async def _answers(self, sources: Mapping[str, Source], patience_s: float) -> list[Entry]:
        found: list[Entry] = []
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=patience_s)
        for node_id in [key for key, task in self._asking.items() if task.done()]:
            task = self._asking.pop(node_id)
            found += self._take(sources.get(node_id), task)
        return found

    def _sources(self) -> Sequence[Source]:
        everybody = self._collector.sources()
        found: dict[str, Source] = {}
        for name in self._wish.nodes:
            try:
                found |= {one.node_id: one for one in chosen(everybody, (name,))}
            except ShardnetError:  # it was here when this began, and may come back
                continue
        return list(found.values()) if self._wish.nodes else everybody

    async def _ask(self, source: Source) -> Told:
        wish, after = self._wish, self._after.get((source.node_id, source.run_id), 0)
        most = FOLLOWED_LINES if self._has_begun else MAX_LOG_LINES if wish.lines is None else wish.lines
        question = TellLog(
            command_id=new_id(),
            deadline_s=ANSWER_S,
            after=after,
            most_lines=min(MAX_LOG_LINES, most),
            level=wish.level,
            max_age_s=None if self._has_begun else wish.max_age_s,
        )
        return await self._collector.ask(source, question)

    def _take(self, source: Source | None, task: asyncio.Task[Told]) -> list[Entry]:
        try:
            told, ahead_s = task.result()
        except PeerLost:
            return []  # that it has left is told when it is missed
        except ShardnetError as error:
            return self._note(source, f"its log cannot be had: {error}") if source is not None else []
        if source is None:
            return []
        self._said.pop(source.node_id, None)
        found: list[Entry] = []
        now_s = self._collector.clock_s()
        if ahead_s and source.node_id not in self._noted_ahead:
            self._noted_ahead.add(source.node_id)
            found.append(clock_note(source, ahead_s, now_s))
        key = source.node_id, source.run_id
        if told.left_out and key in self._after:
            found.append(left_out(source, told.left_out, told.lines[0].at_s - ahead_s if told.lines else now_s))
        self._after[key] = told.newest
        return [*found, *entries(source, told, ahead_s)]

    def _note(self, source: Source, text: str) -> list[Entry]:
        if self._said.get(source.node_id) == text:
            return []
        self._said[source.node_id] = text
        return [Entry(self._collector.clock_s(), source, text, "warning", is_note=True)]
