"""kademlia's protocol, hardened: sealed datagrams, and contacts that are proved before they are believed.

`calls` has our questions, `answers` what is said to others', `hearing` who was heard when.

What is taken from the package: the routing table, the nodes, the storage interface, the place of the protocol in the server. What is replaced:
everything that reads or writes a datagram. No method of this class can be called by name from the network.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from shardnet.dht.addresses import is_loopback
from shardnet.dht.answers import Answers
from shardnet.dht.calls import Calls
from shardnet.dht.directory import Address
from shardnet.dht.hearing import Hearing
from shardnet.dht.packets import (
    CALL_ID_BYTES,
    CHALLENGE_BYTES,
    NOBODY,
    RECORDS_PER_STORE,
    Contact,
    Find,
    Found,
    Leave,
    Packet,
    Ping,
    Pong,
    Store,
    Stored,
    decode,
    encode,
    pong_statement,
)
from shardnet.dht.records import Signer, verify_raw
from shardnet.dht.refusals import Refusals
from shardnet.dht.routing import ExactRoutingTable
from shardnet.dht.sealing import Sealer
from shardnet.dht.settings import DhtSettings
from shardnet.dht.storage import RecordStorage
from shardnet.errors import RemoteProtocolError
from shardnet.hosts import plain_host

Spawn = Callable[[Coroutine[Any, Any, None]], None]

MAX_INTRODUCTIONS = 64
"""Strangers that are being asked who they are, at once; further ones will be met again."""
HANDOVER_SLICE = 50
"""Keys looked at before other work gets its turn."""
HANDOVER_SENDERS = 2
"""How many of a key's nearest holders send it to a newcomer: two, for one of them may be dying."""


class HardenedProtocol(KademliaProtocol):  # type: ignore[misc]
    """One UDP socket's protocol.

    Invariant: a contact is in `router` only after it signed a fresh challenge at that very address.
    """

    def __init__(
        self,
        node: Node,
        storage: RecordStorage,
        settings: DhtSettings,
        *,
        signer: Signer,
        sealer: Sealer,
        refusals: Refusals,
        spawn: Spawn,
        on_contacts: Callable[[], None],
        revoked: Callable[[], frozenset[str]],
    ) -> None:
        """`spawn` runs a coroutine as a task of the directory; `on_contacts` is called after a contact came or went.

        `revoked`: node ids that are no members any more.
        """
        super().__init__(node, storage, settings.ksize)
        self.router = ExactRoutingTable(self, settings.ksize, node)
        self._settings = settings
        self._allow_loopback = is_loopback(settings.listen_host)
        self._sealer = sealer
        self._refusals = refusals
        self._spawn = spawn
        self._on_contacts = on_contacts
        self._revoked = revoked
        self._calls = Calls(node.id, settings, lambda packet, address: self._send(packet, address))
        self._answers = Answers(node.id, signer, self.router, storage, refusals)
        self._introductions: set[tuple[bytes, Address]] = set()
        self._hearing = Hearing(settings.sweep_interval_s)
        self._is_ipv6 = False
        self.datagrams_in = 0
        self.datagrams_out = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def __getattr__(self, name: str) -> Any:
        """rpcudp turns every unknown name into a remote call; here a slip of the pen stays an error."""
        raise AttributeError(name)

    # datagrams

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        """Called by the event loop."""
        self.transport = transport
        self._is_ipv6 = transport.get_extra_info("socket").family == socket.AF_INET6

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: whoever still waits for a reply gets none."""
        self._calls.cancel_all()

    def error_received(self, exc: OSError) -> None:
        """Called by the event loop for an ICMP error: the call's own timeout deals with it."""
        self._refusals.count("network_error")

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Called by the event loop. Whatever comes, nothing is raised, and only members get an answer."""
        self.datagrams_in += 1
        self.bytes_in += len(data)
        sender = (plain_host(addr[0]), int(addr[1]))
        try:
            packet = decode(self._sealer.open(data))
            if packet.source == self.source_node.id and packet.target == NOBODY:
                self._refusals.count("own_ping")  # our own address stands among the bootstrap peers
                return
            self._check_ids(packet)
        except RemoteProtocolError as error:
            self._refusals.note("datagram", error, sender[0])
            return
        match packet.body:
            case Ping() | Find() | Store():
                self._send(Packet(packet.call_id, self.source_node.id, packet.source, self._answers.to(packet)), sender)
                self._meet(packet.source, sender)
            case Pong() | Found() | Stored():
                self._take_reply(packet, sender)
            case Leave():
                self._doubt(packet.source, sender)

    def _check_ids(self, packet: Packet) -> None:
        if packet.source == self.source_node.id:
            raise RemoteProtocolError("it comes in our own name", reason="own_id")
        if packet.target != self.source_node.id and not (packet.target == NOBODY and isinstance(packet.body, Ping)):
            raise RemoteProtocolError("it was meant for another node", reason="misdirected")
        if packet.source.hex() in self._revoked():
            raise RemoteProtocolError("its sender was revoked by the swarm's owner", reason="revoked")

    def _send(self, packet: Packet, address: Address) -> None:
        datagram = self._sealer.seal(encode(packet))
        host = f"::ffff:{address[0]}" if self._is_ipv6 and ":" not in address[0] else address[0]
        if self.transport is None or self.transport.is_closing():
            return
        self.datagrams_out += 1
        self.bytes_out += len(datagram)
        try:
            self.transport.sendto(datagram, (host, address[1]))
        except (OSError, ValueError):
            self._refusals.count("network_error")

    # calling

    def _take_reply(self, packet: Packet, sender: Address) -> None:
        try:
            is_awaited = self._calls.take(packet, sender)
        except RemoteProtocolError as error:
            self._refusals.note("datagram", error, sender[0])
            return
        if not is_awaited:
            self._refusals.count("late_reply")
            known = self.router.get(packet.source)
            if known is not None and (known.ip, known.port) == sender:
                self._heard(known)

    async def ping_address(self, address: Address) -> Node | None:
        """Ask an address who it is, and take it among the contacts. Returns: the contact, or None."""
        return await self._prove(address, NOBODY)

    async def call_ping(self, node: Node) -> bool:
        """Returns: True if the node proved its id at its address; else it is no contact any longer."""
        asked_at = time.monotonic()
        if await self._prove((node.ip, node.port), node.id) is not None:
            return True
        self._lost(node, asked_at)
        return False

    async def _prove(self, address: Address, expected: bytes) -> Node | None:
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        reply = await self._calls.ask(address, expected, Ping(challenge), Pong)
        if reply is None:
            return None
        pong, source = reply
        statement = pong_statement(challenge, self.source_node.id, source)
        try:
            if verify_raw(pong.public_key, pong.signature, statement) != source.hex():
                raise RemoteProtocolError("a peer goes by another node's id", reason="node_id")
        except RemoteProtocolError as error:
            self._refusals.note("contact", error, address[0])
            return None
        node = Node(source, *address)
        self.welcome_if_new(node)
        return node

    async def call_find(self, node: Node, find: Find) -> Found | None:
        """Returns: the node's answer with unusable contacts left out, or None if it gave none."""
        asked_at = time.monotonic()
        reply = await self._calls.ask((node.ip, node.port), node.id, find, Found)
        if reply is None:
            self._lost(node, asked_at)
            return None
        self._meet(node.id, (node.ip, node.port))
        found = reply[0]
        usable = tuple(c for c in found.contacts if self._may_be_peer(c))
        return Found(found.digest, found.has_more, usable, found.records)

    async def call_store(self, node: Node, key: bytes, value: Iterable[bytes]) -> int:
        """Store raw records at a node. Returns: how many it keeps now; 0 if it gave no answer."""
        records, kept = tuple(value), 0
        for at in range(0, len(records), RECORDS_PER_STORE):
            batch = records[at : at + RECORDS_PER_STORE]
            asked_at = time.monotonic()
            reply = await self._calls.ask((node.ip, node.port), node.id, Store(key, batch), Stored)
            if reply is None:
                self._lost(node, asked_at)
                return kept
            kept += min(reply[0].kept, len(batch))
        self._meet(node.id, (node.ip, node.port))
        return kept

    def _may_be_peer(self, contact: Contact) -> bool:
        return contact.id != self.source_node.id and (self._allow_loopback or not is_loopback(contact.host))

    # contacts

    def is_silent(self, node: Node) -> bool:
        """Returns: True if the node let a call go by a short while ago, so that asking it again would only cost time."""
        return self._hearing.is_silent(node.id)

    def _lost(self, node: Node, asked_at: float) -> None:
        """A call went unanswered. Whoever was heard since it began is not dead, but overrun, or we are."""
        if self._hearing.was_heard_since(node.id, asked_at):
            return
        known = self.router.get(node.id)
        if known is None or known.same_home_as(node):
            self._hearing.fell_silent(node.id)
            self.router.remove_contact(node)
            if known is not None:
                self._on_contacts()

    def _meet(self, node_id: bytes, address: Address) -> None:
        """Somebody was heard. A contact becomes fresh again; a stranger, or a contact at a new address, is asked for a proof."""
        known = self.router.get(node_id)
        if known is not None and (known.ip, known.port) == address:
            self._heard(known)
            return
        stranger = (node_id, address)
        if stranger not in self._introductions and len(self._introductions) < MAX_INTRODUCTIONS:
            self._introductions.add(stranger)
            self._spawn(self._introduce(node_id, address))

    def _doubt(self, node_id: bytes, address: Address) -> None:
        """A contact says that it goes. Its id could be borrowed, so it is only asked; if it is gone, no lookup pays for finding that out."""
        known = self.router.get(node_id)
        if known is not None and (known.ip, known.port) == address and (node_id, address) not in self._introductions:
            self._introductions.add((node_id, address))
            self._spawn(self._check_on(known))

    async def _check_on(self, node: Node) -> None:
        try:
            await self.call_ping(node)
        finally:
            self._introductions.discard((node.id, (node.ip, node.port)))

    def say_goodbye(self) -> None:
        """Tell every contact that we go; none answers."""
        for node in self.router.contacts():
            call_id = secrets.token_bytes(CALL_ID_BYTES)
            self._send(Packet(call_id, self.source_node.id, node.id, Leave()), (node.ip, node.port))

    async def _introduce(self, node_id: bytes, address: Address) -> None:
        try:
            known = self.router.get(node_id)
            if known is not None and await self.call_ping(known):
                return  # it still answers where we know it: nobody may move it by relaying its proofs
            await self._prove(address, node_id)
        finally:
            self._introductions.discard((node_id, address))

    def _heard(self, node: Node) -> None:
        self._hearing.heard(node.id)
        self.router.add_contact(node)

    def welcome_if_new(self, node: Node) -> None:
        """Take a proved node among the contacts, and hand it the records it should hold."""
        known = self.router.get(node.id)
        is_new = known is None or not known.same_home_as(node)
        if known is not None and is_new:
            self.router.remove_contact(known)
        self._heard(node)
        if is_new and self.router.get(node.id) is not None:
            self._on_contacts()
            self._spawn(self._hand_over(node))

    async def _hand_over(self, newcomer: Node) -> None:
        """Send the newcomer each key for which it is now among the k nearest, if we are one of the nearest that had it."""
        for count, key in enumerate(self.storage.held_keys()):
            if count % HANDOVER_SLICE == HANDOVER_SLICE - 1:
                await asyncio.sleep(0)
            target = Node(key)
            near = self.router.find_neighbors(target, exclude=newcomer)
            ours = self.source_node.distance_to(target)
            nearer_than_us = sum(node.distance_to(target) < ours for node in near)
            nearer_than_it = sum(node.distance_to(target) < newcomer.distance_to(target) for node in near)
            if nearer_than_us < HANDOVER_SENDERS and nearer_than_it < self._settings.ksize:
                records = self.storage.get(key)
                if records and not await self.call_store(newcomer, key, records):
                    return

    def quiet_contacts(self) -> list[Node]:
        """Returns: contacts not heard from for a sweep interval, to be pinged. Forgets old entries of the silent."""
        return self._hearing.quiet(self.router.contacts())
