"""Questions to other nodes: each is repeated until it is answered, and only what was asked for, from where it was asked, counts as an answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from shardnet.dht.directory import Address
from shardnet.dht.packets import CALL_ID_BYTES, NOBODY, Body, Found, Packet, Pong, Stored
from shardnet.dht.settings import DhtSettings
from shardnet.errors import RemoteProtocolError

Reply = TypeVar("Reply", Pong, Found, Stored)

MAX_STALLS = 3
"""Attempts of one call that are forgiven because this process was held up itself."""


class Calls:
    """Calls under way, `max_calls_in_flight` at most at once.

    Invariant: `_calls` holds a future for each call under way and nothing else.

    Args:
        node_id: ours.
        send: puts a packet on the way, or drops it.
    """

    def __init__(self, node_id: bytes, settings: DhtSettings, send: Callable[[Packet, Address], None]) -> None:
        self._node_id = node_id
        self._settings = settings
        self._send = send
        self._slots = asyncio.Semaphore(settings.max_calls_in_flight)
        self._calls: dict[bytes, tuple[asyncio.Future[Packet], Address, bytes, type[Body]]] = {}

    async def ask(
        self, address: Address, target: bytes, request: Body, answer: type[Reply]
    ) -> tuple[Reply, bytes] | None:
        """Ask until there is an answer, `call_attempts` times, each sealed anew.

        Returns: the answer and the id of who gave it; None if nobody did.
        """
        call_id = secrets.token_bytes(CALL_ID_BYTES)
        packet = Packet(call_id, self._node_id, target, request)
        future: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        async with self._slots:
            self._calls[call_id] = (future, address, target, answer)
            try:
                attempts, stalls = self._settings.call_attempts, 0
                while attempts and not future.done():
                    self._send(packet, address)
                    asked_at = time.monotonic()
                    await asyncio.wait({future}, timeout=self._settings.call_retry_s)
                    if time.monotonic() - asked_at > 2 * self._settings.call_retry_s and stalls < MAX_STALLS:
                        stalls += 1  # it was our own loop that slept: the peer had no chance to be heard
                    else:
                        attempts -= 1
            finally:
                del self._calls[call_id]
        if not future.done() or future.cancelled():
            return None
        reply = future.result()
        return (reply.body, reply.source) if isinstance(reply.body, answer) else None

    def take(self, packet: Packet, sender: Address) -> bool:
        """A reply came. Returns: False if no call waits for it any more. Raises: RemoteProtocolError if it is not what that call asked for."""
        call = self._calls.get(packet.call_id)
        if call is None:
            return False
        future, address, target, answer = call
        if sender != address or target not in (packet.source, NOBODY) or not isinstance(packet.body, answer):
            raise RemoteProtocolError("a reply that nobody asked for", reason="unasked")
        if not future.done():
            future.set_result(packet)
        return True

    def cancel_all(self) -> None:
        """Whoever still waits for a reply gets none."""
        for future, *_ in self._calls.values():
            future.cancel()
