"""Who has a model's shards and manifest, and asking them for the small files of it. Whoever is found is a hint, proved by TLS and by hashes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from shardnet.dht.directory import Directory
from shardnet.errors import ManifestError, ShardCorrupt, ShardnetError, ShardNotFound
from shardnet.ids import NodeId, new_id, short
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import Address, AnyMessage, FileIs, GetFile, GetManifest, ManifestIs, ShardSource
from shardnet.node.links.questions import Question
from shardnet.swarm.identity import Identity
from shardnet.swarm.signing import signature_is_valid
from shardnet.wire import Frame

ANSWER_TIMEOUT_S = 10.0
RELAY_TIMEOUT_S = 60.0
"""Two slow ways, and others whose pieces are before ours."""

AskNode = Callable[[NodeId, Address, Question, float], Awaitable[Frame[AnyMessage]]]
"""`(node id, address, question, timeout in seconds)` -> its answer."""
Ask = Callable[[Question, float], Awaitable[Frame[AnyMessage]]]

log = get("exchange")


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that says it has something. `torrent_port`: 0 if it does not seed."""

    node_id: NodeId
    address: Address
    torrent_port: int = 0


class Holders:
    """Looks holders up, and asks them.

    Args:
        identity: this node's, which is no holder for itself; members that it knows to be none any more are not asked for anything.
        directory: the DHT, if there is one at the moment.
    """

    def __init__(
        self, identity: Identity, ask_node: AskNode, ask_coordinator: Ask, directory: Callable[[], Directory | None]
    ) -> None:
        self._identity = identity
        self._ask_node = ask_node
        self._ask_coordinator = ask_coordinator
        self._directory = directory

    async def of_shard(self, model_id: str, shard_id: int, hints: Iterable[ShardSource]) -> list[Holder]:
        """Returns: other nodes that have the shard, by node id; what the DHT says is newer than the coordinator's hints."""
        found = {hint.node_id: Holder(hint.node_id, hint.address, hint.torrent_port) for hint in hints}
        directory = self._directory()
        if directory is not None:
            for record in await directory.lookup(model_id, shard_id):
                host, port = record.address
                found[record.node_id] = Holder(record.node_id, Address(host=host, port=port), record.torrent_port)
        found.pop(self._identity.node_id, None)
        return [found[node_id] for node_id in sorted(found.keys() - self._identity.revoked)]

    async def who_fetch(self, model_id: str, shard_id: int) -> list[Holder]:
        """Returns: other nodes that are fetching the shard at the moment, and give what they have of it, by node id."""
        directory = self._directory()
        records = await directory.lookup_downloads(model_id, shard_id) if directory is not None else []
        return [
            Holder(record.node_id, Address(host=record.address[0], port=record.address[1]), record.torrent_port)
            for record in records
            if record.node_id != self._identity.node_id
        ]

    async def of_manifest(self, model_id: str) -> list[Holder]:
        """Returns: other nodes that hand out the model's manifest, by node id."""
        directory = self._directory()
        if directory is None:
            return []
        records = await directory.lookup_manifest(model_id)
        return [
            Holder(record.node_id, Address(host=record.address[0], port=record.address[1]))
            for record in records
            if record.node_id != self._identity.node_id
        ]

    async def manifest(self, model: str, hints: Iterable[Holder] = ()) -> Manifest:
        """Ask the coordinator, then every holder, until one gives a manifest that the swarm's owner signed.

        Args:
            model: its id; or a name, which only the coordinator is asked for.
        Raises: ManifestError if nobody has one.
        """
        question = GetManifest(command_id=new_id(), deadline_s=ANSWER_TIMEOUT_S, model=model)
        others = {holder.node_id: holder for holder in hints}
        if len(model) == 64:
            others |= {holder.node_id: holder for holder in await self.of_manifest(model)}
        asks = [self._ask_coordinator, *(self._asking(holder) for holder in others.values())]
        trouble, swarm = "nobody is known who has it", self._identity.swarm
        for ask in asks:
            try:
                frame = await ask(question, ANSWER_TIMEOUT_S)
            except ShardnetError as error:
                trouble = str(error)
                continue
            answer = frame.message
            if isinstance(answer, ManifestIs) and model in (answer.manifest.model_id, answer.manifest.name):
                if signature_is_valid(answer.manifest, swarm.ca):
                    return answer.manifest
                trouble = f"the owner of swarm {short(swarm.swarm_id)} did not sign it"
        shown = short(model) if len(model) == 64 else model
        raise ManifestError(f"the manifest of model {shown} cannot be had: {trouble}")

    async def torrent(self, holder: Holder, manifest: Manifest, shard_id: int, *, most_bytes: int) -> bytes:
        """Returns: what a holder says is the shard's torrent. Raises: its error; PeerLost, ...; ShardCorrupt."""
        question = self._question(manifest, "torrent", shard_id)
        return await self._whole_file(self._asking(holder), question, most_bytes)

    async def torrent_by_relay(self, manifest: Manifest, shard_id: int, *, most_bytes: int) -> bytes:
        """Returns: as `torrent`, from a holder that only the coordinator reaches. Raises: as it does; ShardNotFound if there is none."""
        question = self._question(manifest, "torrent", shard_id)
        return await self._whole_file(self._ask_coordinator, question, most_bytes)

    async def piece_by_relay(self, manifest: Manifest, shard_id: int, offset: int, n_bytes: int) -> bytes:
        """Returns: bytes of a shard, through the coordinator; nothing is proved. Raises: its error or the holder's; PeerLost, ...; ShardCorrupt."""
        question = self._question(manifest, "shard", shard_id).model_copy(
            update={"offset": offset, "most_bytes": n_bytes}
        )
        frame = await self._ask_coordinator(question, RELAY_TIMEOUT_S)
        payload = frame.payload("data")
        if not isinstance(frame.message, FileIs) or payload is None or frame.message.piece_bytes != n_bytes:
            raise ShardCorrupt(
                f"a piece of shard {shard_id} of {manifest.name} that came through the coordinator is not whole"
            )
        return bytes(payload[:n_bytes])

    def _question(self, manifest: Manifest, kind: Literal["torrent", "shard"], shard_id: int) -> GetFile:
        return GetFile(
            command_id=new_id(),
            deadline_s=ANSWER_TIMEOUT_S,
            model_id=manifest.model_id,
            kind=kind,
            shard_id=shard_id,
        )

    async def tokenizer(self, manifest: Manifest, holders: Iterable[Holder]) -> bytes:
        """Returns: the tokenizer as somebody gives it: length by the manifest, hash not checked. Raises: ShardNotFound if nobody does."""
        question = GetFile(
            command_id=new_id(), deadline_s=ANSWER_TIMEOUT_S, model_id=manifest.model_id, kind="tokenizer"
        )
        trouble = "nobody is known who has it"
        for ask in [self._ask_coordinator, *(self._asking(holder) for holder in holders)]:
            try:
                data = await self._whole_file(ask, question, manifest.content.tokenizer.bytes)
            except ShardnetError as error:
                trouble = str(error)
                continue
            if len(data) == manifest.content.tokenizer.bytes:
                return data
        raise ShardNotFound(f"the tokenizer of {manifest.name} cannot be had: {trouble}")

    def _asking(self, holder: Holder) -> Ask:
        return lambda question, timeout_s: self._ask_node(holder.node_id, holder.address, question, timeout_s)

    async def _whole_file(self, ask: Ask, question: GetFile, most_bytes: int) -> bytes:
        data = bytearray()
        while True:
            piece = question.model_copy(update={"command_id": new_id(), "offset": len(data)})
            frame = await ask(piece, ANSWER_TIMEOUT_S)
            answer, payload = frame.message, frame.payload("data")
            if not isinstance(answer, FileIs) or payload is None or answer.piece_bytes > len(payload):
                raise ShardCorrupt(f"a node sent a piece of a {question.kind} that is not whole")
            if answer.total_bytes > most_bytes:
                raise ShardCorrupt(f"a node has a {question.kind} of {answer.total_bytes} bytes: that is too long")
            data += payload[: answer.piece_bytes]
            if len(data) >= answer.total_bytes:
                return bytes(data[: answer.total_bytes])
            if answer.piece_bytes == 0:
                raise ShardCorrupt(f"a node stopped in the middle of a {question.kind}")
