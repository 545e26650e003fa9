"""A member that gives and takes weights and runs nothing: `shardnet seed` and `shardnet fetch`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from shardnet.dht.directory import Directory
from shardnet.errors import (
    ManifestError,
    PeerRefused,
    RemoteProtocolError,
    ShardnetError,
    ShardNotFound,
    UnreachableError,
    UsageError,
)
from shardnet.ids import ShardKey, short
from shardnet.inference.splitting.manifest_file import model_folder
from shardnet.lifecycle import Jobs, first_of
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import COPIED, PROTOCOL_VERSION, AnyMessage, Hello, Welcome
from shardnet.node.links.meeting import open_directory
from shardnet.node.links.peer_links import PeerLinks
from shardnet.node.links.visiting import CoordinatorVisit
from shardnet.node.settings import NodeSettings
from shardnet.node.shards.assignment import Assignment
from shardnet.node.shards.catalogue import Catalogue
from shardnet.node.shards.events import LocalModel
from shardnet.node.weights.exchange import FetchProgress
from shardnet.node.weights.file_answers import FileAnswers
from shardnet.node.weights.holders import Holders
from shardnet.node.weights.store import ModelStore
from shardnet.node.weights.swarming import SwarmExchange
from shardnet.swarm.addresses import parse_address, parse_host_port, read_coordinator_addresses
from shardnet.swarm.identity import Identity
from shardnet.swarm.membership import follow_revocations
from shardnet.swarm.whereabouts import Whereabouts, advertised_address
from shardnet.transport import Connection, listen
from shardnet.wire import Frame

FETCHES_AT_ONCE = 3
FORGOTTEN_S, ASK_AGAIN_S = 15.0, 1.0
"""How long, and how often, to ask a coordinator that has another process with this one's key. One that died a moment ago is forgotten by then."""
ID_DIGITS = 64

OnBytes = Callable[[int, int], None]
"""`(bytes done, bytes in all)`."""

log = get("sharing")


class SharingDaemon:
    """Seeds a models cache; with `model`, first fetches all of it, and then ends.

    Args:
        settings: `node.models_cache` is what is shared; `node.coordinator`, `node.listen`, `node.advertise`, `[torrent]` and `[dht]` count, and
            nothing else.
        identity: claimed and released by the caller.
        model: a name or id to fetch; None: seed until stopped.
        stays: seed until stopped, also after a fetch.
    """

    def __init__(
        self,
        settings: NodeSettings,
        identity: Identity,
        *,
        model: str | None = None,
        stays: bool = False,
        on_bytes: OnBytes = lambda _done, _total: None,
    ) -> None:
        node = settings.node
        self._settings = settings
        self._identity = identity
        self._model = model
        self._stays = stays
        self._on_bytes = on_bytes
        self._stopping = asyncio.Event()
        self._jobs = Jobs()
        self._directory: Directory | None = None
        self._not_met: UnreachableError | None = None
        self._store = ModelStore(node.models_cache)
        self._catalogue = Catalogue(node.models_cache, Assignment())
        self._coordinator = CoordinatorVisit(
            identity, parse_address(node.coordinator, what="--coordinator") if node.coordinator else None
        )
        self._whereabouts = Whereabouts(
            advertised_address(node.advertise) if node.advertise else None,
            lambda: self._coordinator.host,
            lambda: self._jobs.spawn(self._exchange.move(), "announce the new address"),
        )
        self._links = PeerLinks(
            identity,
            lambda: Hello(protocol=PROTOCOL_VERSION, node_id=identity.node_id, name=identity.name, role="node"),
            self._take,
            lambda _node_id, _error: None,
            self._jobs.spawn,
            dial_timeout_s=node.dial_timeout_s,
            redial_after_s=node.redial_after_s,
        )
        self._holders = Holders(identity, self._links.ask, self._coordinator.ask, lambda: self._directory)
        self._exchange = SwarmExchange(
            identity,
            settings.torrent,
            identity.key_path.parent / "torrents",
            self._holders,
            spawn=self._jobs.spawn,
            rotted=self._put_aside,
        )
        self._answers = FileAnswers(self._catalogue.find, self._store, self._exchange, self._jobs.spawn)
        self.fetched: tuple[Path, Manifest] | None = None
        """Where the model is now, and its manifest."""

    def stop(self, by: str = "") -> None:
        """Ask it to end."""
        self._stopping.set()

    async def run(self) -> None:
        """Share until stop(), or until the model is here; when this returns, no task or socket of ours is left.

        Raises: whatever the fetch failed with; UsageError if there is nothing to seed; SettingsError if a port is taken.
        """
        try:
            await self._run()
        except* ShardnetError as errors:
            raise first_of(errors) from None

    async def _run(self) -> None:
        at = parse_host_port(self._settings.node.listen, what="--listen")
        async with AsyncExitStack() as resources:
            listener = await resources.enter_async_context(await listen(self._identity, at, self._greeted))
            if self._settings.dht.enabled:
                known = (await asyncio.to_thread(read_coordinator_addresses, self._identity.home)).dht
                directory = open_directory(
                    self._identity, self._settings.dht, listener.address, [known] if known else []
                )
                self._directory = await resources.enter_async_context(directory)
            await self._whereabouts.settle(listener.address)
            await resources.enter_async_context(
                self._exchange.serving(listener.address, lambda: self._whereabouts.address, self._directory)
            )
            resources.push_async_callback(self._links.close)
            resources.push_async_callback(self._coordinator.close)
            async with asyncio.TaskGroup() as group:
                self._jobs.group = group
                stopping = group.create_task(self._stopping.wait(), name="stop")
                working = group.create_task(self._work(), name="share")
                following = group.create_task(follow_revocations(self._identity), name="revocations")
                looking = group.create_task(self._whereabouts.follow(), name="whereabouts")
                await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
                await listener.close()
                for task in (stopping, working, following, looking, *self._jobs):
                    task.cancel()

    async def _work(self) -> None:
        try:
            await self._be_let_in()
            await self._whereabouts.look()
        except UnreachableError as error:
            if error.facts.get("reason") == COPIED:
                raise
            self._not_met = error
            log.info("no_coordinator_met", reason=str(error))
        n_offered = await self._offer_what_is_here()
        if self._model is not None:
            try:
                await self._fetch(self._model)
            except* (ManifestError, ShardNotFound):
                self._check_somebody_was_there(self._model)
                raise
            if not self._stays:
                return
        elif not n_offered:
            raise UsageError(f"there is no shard to seed in {self._settings.node.models_cache.absolute()}")
        await asyncio.Event().wait()

    async def _be_let_in(self) -> None:
        """Raises: PeerRefused if another process that lives has this one's key; UnreachableError if there is no coordinator."""
        until_s = asyncio.get_running_loop().time() + FORGOTTEN_S
        is_told = False
        while True:
            try:
                await self._coordinator.meet(self._directory)
            except PeerRefused as error:
                if error.facts.get("reason") != COPIED or asyncio.get_running_loop().time() >= until_s:
                    raise
                if not is_told:
                    log.warning("node_not_joined", reason=str(error))
                is_told = True
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                return

    async def _offer_what_is_here(self) -> int:
        """Prove every file, and offer it. Returns: how many are offered."""
        found = await self._store.scan()
        for model in found.models:
            self._catalogue.models[model.manifest.model_id] = model
        return await self._store.offer_all(found, self._exchange.offer)

    async def _fetch(self, wanted: str) -> None:
        model = await self._find(wanted)
        manifest, folder = model.manifest, model.folder
        done = [0] * manifest.n_shards
        some = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def fetch(shard_id: int) -> None:
            def on_progress(seen: FetchProgress) -> None:
                done[shard_id] = seen.done_bytes
                self._on_bytes(sum(done), manifest.total_bytes)

            path = folder / manifest.content.shards[shard_id].file
            async with some:
                proved = await self._exchange.fetch(manifest, shard_id, path, (), on_progress)
                await self._store.note_proved(path, manifest.sha256_of(shard_id), proved)
                await self._exchange.offer(manifest, shard_id, path)
            done[shard_id] = manifest.content.shards[shard_id].bytes
            self._on_bytes(sum(done), manifest.total_bytes)

        async with asyncio.TaskGroup() as group:
            for shard_id in range(manifest.n_shards):
                group.create_task(fetch(shard_id))
        await self._exchange.bring_tokenizer(manifest, folder)
        self.fetched = (folder, manifest)

    def _check_somebody_was_there(self, wanted: str) -> None:
        """Raises: UnreachableError if nobody of the swarm could be asked; whoever has only a model's name asks the coordinator."""
        if self._not_met is None:
            return
        shown = short(wanted) if len(wanted) == ID_DIGITS else wanted
        if self._directory is None or not self._directory.stats().contacts:
            raise UnreachableError(f"nobody of the swarm can be asked for model {shown}: {self._not_met}")
        if len(wanted) != ID_DIGITS:
            raise UnreachableError(f"only a coordinator can be asked for model {shown} by its name: {self._not_met}")

    async def _find(self, wanted: str) -> LocalModel:
        """Returns: the model, its manifest kept here. Raises: ManifestError if nobody knows it."""
        known = [m for m in self._catalogue.models.values() if wanted in (m.manifest.model_id, m.manifest.name)]
        if len(known) == 1:
            return known[0]

        manifest = await self._holders.manifest(wanted)
        model = LocalModel(manifest, model_folder(self._settings.node.models_cache, manifest))
        await self._store.keep_manifest(model.folder, manifest)
        self._catalogue.models[manifest.model_id] = model
        return model

    def _put_aside(self, key: ShardKey, path: Path) -> None:
        self._jobs.spawn(self._store.quarantine(path), f"put shard {key[1]} aside")

    def _greeted(self, connection: Connection, _hello: Hello) -> Welcome:
        self._links.adopt(connection)
        return Welcome(protocol=PROTOCOL_VERSION, node_id=self._identity.node_id)

    def _take(self, connection: Connection, frame: Frame[AnyMessage]) -> None:
        if not self._answers.take(connection, frame.message):
            raise RemoteProtocolError(f"a node that only shares does not take {frame.message.type}")
