"""`shardnet node`: its parts, and its life from start to a clean end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from shardnet import __version__
from shardnet.condition.record import State
from shardnet.condition.telling import Condition
from shardnet.dht.directory import Directory
from shardnet.errors import ShardnetError
from shardnet.ids import NodeId, ShardKey, new_id, short
from shardnet.inference.engine.host import EngineProcess, Restored
from shardnet.inference.engine.interface import Engine
from shardnet.inference.engine.protocol import ROWS, Membership
from shardnet.journal import KEPT_FOR_OTHERS, Journal
from shardnet.lifecycle import Jobs, first_of
from shardnet.log import get
from shardnet.messages import (
    COPIED,
    PROTOCOL_VERSION,
    Address,
    Capabilities,
    Hello,
    Leaving,
    ManifestOffer,
    Reach,
    Software,
    StageRef,
    Welcome,
)
from shardnet.metrics.dht_figures import dht
from shardnet.metrics.exposition import Exposition
from shardnet.metrics.vitals import Vitals
from shardnet.node.answering import Answering
from shardnet.node.figures import NodeFigures
from shardnet.node.heartbeat import Pulse
from shardnet.node.links.coordinator_link import CoordinatorLink
from shardnet.node.links.finding import CoordinatorFinder
from shardnet.node.links.meeting import open_directory
from shardnet.node.links.peer_links import PeerLinks
from shardnet.node.performing import Performer
from shardnet.node.settings import NodeSettings
from shardnet.node.shards.assignment import Assignment, parse_binding
from shardnet.node.shards.events import (
    DrainBegan,
    EngineCameBack,
    FileGivenUp,
    FileGone,
    FileRotted,
    PreloadAsked,
    ShareAsked,
    TaskGone,
    TaskWaits,
)
from shardnet.node.shards.machine import NodeState
from shardnet.node.tasks.legs import Flight
from shardnet.node.tasks.row_links import RowLinks
from shardnet.node.tasks.runner import TaskRunner
from shardnet.node.weights.exchange import ShardExchange
from shardnet.node.weights.holders import Holders
from shardnet.node.weights.store import ModelStore
from shardnet.node.weights.swarming import SwarmExchange
from shardnet.packages import LLAMA, installed
from shardnet.swarm.acceptor import Diversion
from shardnet.swarm.addresses import parse_address, parse_host_port, read_coordinator_addresses
from shardnet.swarm.identity import Identity
from shardnet.swarm.membership import follow_revocations
from shardnet.swarm.whereabouts import Whereabouts, advertised_address
from shardnet.transport import Connection, Listener, listen

log = get("node")

LOOK_S = 2.0
"""Between two looks whether the files of this node's shards are still there."""


class NodeDaemon:
    """One node. `run()` is its life; `stop()` begins its end.

    Args:
        identity: claimed and released by the caller.
        exchange: gets shards from other nodes, in place of the swarm's torrents; entered and left by the caller.
        make_engine: for tests; the engine process otherwise.
    """

    def __init__(
        self,
        settings: NodeSettings,
        identity: Identity,
        *,
        exchange: ShardExchange | None = None,
        make_engine: Callable[[Callable[[Restored], None]], Engine] | None = None,
    ) -> None:
        node = settings.node
        self._settings = settings
        self._identity = identity
        self._listen_at = parse_host_port(node.listen, what="--listen")
        self._advertised = advertised_address(node.advertise) if node.advertise else None
        given = parse_address(node.coordinator, what="--coordinator") if node.coordinator else None
        self._finder = CoordinatorFinder(identity.home, given, settings.dht.bootstrap)
        self._whereabouts = Whereabouts(self._advertised, lambda: self._finder.host, self._moved)
        self._told = Reach()
        self._is_copy = False
        self._why_not_joined = ""
        self._may_share = asyncio.Event()
        """Set when the coordinator took this node in, or could not be asked: then nobody says that another node has its key."""
        self._stopping = asyncio.Event()
        self._stopped_by = ""
        self._has_started = False
        self._jobs = Jobs()
        self._listener: Listener | None = None
        self._epoch = 0
        self._run_id = new_id()
        self._journal = Journal(kept=KEPT_FOR_OTHERS)
        self._arithmetic = ""

        assignment = Assignment(tuple(parse_binding(text) for text in node.shards))
        self._assignment = assignment
        self._state = NodeState(
            node.models_cache.absolute(),
            assignment,
            can_fetch=exchange is not None or settings.torrent.enabled,
            require_proof=settings.models.require_proof,
        )
        self._store = ModelStore(node.models_cache.absolute())
        self._engine = (
            make_engine(self._engine_came_back)
            if make_engine is not None
            else EngineProcess(settings.inference, membership=_membership(identity), on_restart=self._engine_came_back)
        )
        self._row_links = RowLinks(identity, self._engine, redial_after_s=node.redial_after_s)
        self._links = PeerLinks(
            identity,
            lambda: self._hello(None),
            lambda connection, frame: self._answering.from_peer(connection, frame),
            self._peer_lost,
            self._jobs.spawn,
            dial_timeout_s=node.dial_timeout_s,
            redial_after_s=node.redial_after_s,
        )
        self._coordinator = CoordinatorLink(
            identity,
            self._find_coordinator,
            self._hello,
            self._joined,
            lambda: self._tasks.coordinator_lost(),
            self._not_joined,
            lambda connection, frame: self._answering.from_coordinator(connection, frame),
            timeout_s=node.join_timeout_s,
        )
        self._swarming = self._make_swarming() if exchange is None and settings.torrent.enabled else None
        self._exchange = exchange = exchange or self._swarming
        self._tasks = TaskRunner(
            identity.node_id,
            self._engine,
            self._links,
            self._coordinator.tell,
            is_ready=self._state.chain_is_ready,
            wait_for_shards=self._wait_for_shards,
            forget_wait=lambda ticket: self._performer.post(TaskGone(ticket)),
            want_link=self._row_links.want,
            max_tasks=node.max_tasks,
        )
        self._performer = Performer(
            self._state,
            self._store,
            self._engine,
            exchange,
            tell=self._coordinator.tell,
            run_task=self._tasks.run,
            fail_task=self._tasks.fail,
            spawn=self._jobs.spawn,
        )
        self._pulse = Pulse(
            self._state,
            self._tasks,
            self._engine,
            self._coordinator.tell,
            self._jobs.spawn,
            interval_s=node.heartbeat_interval_s,
            memory_limit_bytes=settings.inference.memory_limit_bytes,
            moved_to=lambda: self._whereabouts.reach if self._whereabouts.reach != self._told else None,
        )
        self._figures = NodeFigures(
            self._state,
            self._pulse,
            self._tasks,
            self._engine,
            is_joined=lambda: self._coordinator.is_up,
            n_peers=lambda: self._links.n_open,
            swarming=self._swarming,
            memory_limit_bytes=settings.inference.memory_limit_bytes,
        )
        self._answering = Answering(
            identity,
            self._state,
            self._store,
            self._performer,
            self._tasks,
            self._links,
            exchange,
            self._jobs.spawn,
            self._journal,
        )

    def stop(self, by: str = "") -> None:
        """Ask it to drain and end. Harmless when repeated. `by`: what asked; the coordinator is told."""
        self._stopped_by = self._stopped_by or by
        self._stopping.set()

    async def run(self) -> None:
        """Serve until stop(); when this returns, no task, socket or child process of ours is left.

        Raises: SettingsError if the port is taken; EngineError if the engine cannot be started.
        """
        with structlog.contextvars.bound_contextvars(role="node", node_id=short(self._identity.node_id)):
            try:
                await self._run()
            except* ShardnetError as errors:
                raise first_of(errors) from None
            finally:
                if not self._has_started:
                    self._identity.forget_if_new()
        log.info("node_stopped")

    async def _run(self) -> None:
        async with AsyncExitStack() as resources:
            resources.enter_context(self._journal)
            condition = await resources.enter_async_context(Condition(self._identity.folder, "node", self._condition))
            self._listener = await listen(
                self._identity, self._listen_at, self._greeted, diversion=Diversion(ROWS, self._row_links.adopt)
            )
            await resources.enter_async_context(self._listener)
            log.info("node_listening", address=str(self._listener.address))
            await self._open_metrics(resources)
            await self._whereabouts.settle(self._listener.address)
            await self._meet(resources, self._listener.address)
            resources.push_async_callback(self._engine.close)
            ready = await self._engine.start()
            self._pulse.devices, self._arithmetic = ready.devices, ready.arithmetic
            self._has_started = True
            resources.callback(self._performer.close)
            condition.look()
            async with asyncio.TaskGroup() as group:
                self._jobs.group = group
                children = [
                    group.create_task(self._live(), name="live"),
                    group.create_task(follow_revocations(self._identity), name="revocations"),
                ]
                await self._stopping.wait()
                condition.look()
                await self._drain()
                await self._listener.close()  # before the jobs that frames may start have nowhere to run
                await self._links.close()
                for task in (*children, *self._jobs):
                    task.cancel()

    async def _open_metrics(self, resources: AsyncExitStack) -> None:
        """Give figures at a port of their own, if there is to be one. Raises: SettingsError if it is taken."""
        if not self._settings.metrics.listen:
            return
        from shardnet.metrics.door import Door  # an HTTP server, which few nodes need

        vitals = resources.enter_context(Vitals("node", self._identity))
        figures = self._figures
        exposition = Exposition(
            [figures.read, vitals.quick, lambda: dht(self._finder.directory)], [vitals.slow, figures.slow]
        )
        door = await Door.open(self._settings.metrics, exposition)
        serving = [asyncio.create_task(door.run(), name="metrics"), asyncio.create_task(vitals.run(), name="vitals")]

        async def close() -> None:
            door.stop()
            serving[1].cancel()
            await asyncio.wait(serving)

        resources.push_async_callback(close)

    def _make_swarming(self) -> SwarmExchange:
        holders = Holders(self._identity, self._links.ask, self._coordinator.ask, lambda: self._finder.directory)
        return SwarmExchange(
            self._identity,
            self._settings.torrent,
            self._identity.key_path.parent / "torrents",
            holders,
            memory_free=lambda: self._pulse.memory_free(),
            spawn=self._jobs.spawn,
            may_go=lambda key: not self._state.in_use(key),
            given_up=lambda key: self._performer.post(FileGivenUp(key)),
            is_assigned=lambda key: key in self._state.assigned(),
            rotted=lambda key, path: self._performer.post(FileRotted(key, path)),
        )

    async def _meet(self, resources: AsyncExitStack, listening: Address) -> None:
        """Take part in the DHT and in transfers, as far as the settings want that."""
        if self._settings.dht.enabled:
            known = (await asyncio.to_thread(read_coordinator_addresses, self._identity.home)).dht
            directory = open_directory(self._identity, self._settings.dht, listening, [known] if known else [])
            self._finder.directory = await resources.enter_async_context(directory)
        if self._swarming is not None:
            await resources.enter_async_context(
                self._swarming.serving(listening, lambda: self._whereabouts.address, self._finder.directory)
            )

    async def _live(self) -> None:
        """What is here goes into memory first; only then the node joins."""
        node = self._settings.node
        self._performer.post(await self._store.scan())
        now_s = asyncio.get_running_loop().time()
        self._performer.post(PreloadAsked(node.preload == "all", node.preload_options, now_s))
        await self._performer.preloaded.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pulse.run(), name="heartbeat")
            group.create_task(self._coordinator.run(), name="coordinator")
            group.create_task(self._keep_looking(), name="files")
            group.create_task(self._whereabouts.follow(), name="whereabouts")
            if self._exchange is not None:
                await self._may_share.wait()
                self._performer.post(ShareAsked())

    async def _keep_looking(self) -> None:
        """Files that somebody moves or deletes are promised to nobody any more."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        for key, path in await self._store.missing(self._state.files()):
            self._performer.post(FileGone(key, path))

    async def _drain(self) -> None:
        """Nothing new; what runs is finished, in time or not at all."""
        self._performer.post(DrainBegan())
        self._coordinator.tell(
            Leaving(reason=f"it was stopped there{f' by {self._stopped_by}' if self._stopped_by else ''}")
        )
        if self._tasks.n_tasks or self._tasks.n_sequences:
            log.info("node_draining", tasks=self._tasks.n_tasks, sequences=self._tasks.n_sequences)
        try:
            async with asyncio.timeout(self._settings.node.drain_timeout_s):
                await self._tasks.drain()
        except TimeoutError:
            log.warning("node_drain_timeout", tasks=self._tasks.n_tasks, sequences=self._tasks.n_sequences)

    def _condition(self) -> tuple[State, str]:
        """Returns: how this node is, for who watches over it."""
        if self._stopping.is_set():
            return "stopping", f"{self._tasks.n_tasks} tasks to finish"
        if not self._pulse.devices:
            return "starting", "starting its engine"
        held = self._state.held({})
        has = f"{sum(1 for shard in held if shard.loaded)} of {len(held)} shards in memory"
        if self._coordinator.is_up:
            return "ready", f"joined, {has}"
        if not self._performer.preloaded.is_set():
            return "waiting", f"loading before it joins, {has}"
        return "waiting", f"not joined, {has}" + (f": {self._why_not_joined}" if self._why_not_joined else "")

    # -- greetings -----------------------------------------------------------------------------------------------------------

    async def _find_coordinator(self) -> Address:
        try:
            address = await self._finder.find()
        except ShardnetError as error:
            self._not_joined(error)
            raise
        await self._whereabouts.look()  # the address that we tell is the one by which we reach the coordinator
        return address

    def _hello(self, coordinator: Address | None) -> Hello:
        """Returns: what we say to the coordinator at that address; to another node, None, in a few words."""
        if coordinator is None:
            return Hello(
                protocol=PROTOCOL_VERSION, node_id=self._identity.node_id, name=self._identity.name, role="node"
            )
        self._told = self._whereabouts.reach
        return Hello(
            protocol=PROTOCOL_VERSION,
            node_id=self._identity.node_id,
            name=self._identity.name,
            role="node",
            run_id=self._run_id,
            listen=self._told.listen,
            trouble=self._told.trouble,
            capabilities=Capabilities(
                shard_loaded=self._state.loaded_before_join,
                devices=self._pulse.devices,
                memory_limit_bytes=self._settings.inference.memory_limit_bytes,
                assigned=self._state.assigned(),
                bound=tuple(str(binding) for binding in self._assignment.bindings),
                accepts_any=self._assignment.accepts_any,
                memory_mode=self._settings.inference.memory_mode,
                software=Software(
                    shardnet=__version__,
                    llama=installed(LLAMA) or "",
                    arithmetic=self._arithmetic,
                    clock_s=time.time(),
                ),
                torrent_port=self._exchange.torrent_port if self._exchange is not None else 0,
                copies=True,
            ),
            held=self._pulse.held(),
            refused=self._store.refused,
        )

    def _joined(self, welcome: Welcome) -> None:
        self._epoch = max(self._epoch, welcome.epoch)
        dht, directory = self._finder.joined(welcome.node_id, welcome.dht), self._finder.directory
        if directory is not None and dht is not None:
            self._jobs.spawn(_add_peer(directory, dht), "DHT of the coordinator")
        self._tasks.follow_epoch(welcome.epoch)
        if welcome.revoked or self._identity.revoked:
            self._answering.revoke(frozenset(welcome.revoked))
        held = self._state.held_manifests()
        if not held:
            log.info("node_waits")
        for manifest in held:
            self._coordinator.tell(ManifestOffer(manifest=manifest))
        self._pulse.beat()
        self._may_share.set()
        if self._is_copy and self._swarming is not None:
            self._is_copy = False
            self._jobs.spawn(self._swarming.resume(), "share again")

    def _not_joined(self, error: ShardnetError) -> None:
        """The coordinator did not take us in, or was not there."""
        self._why_not_joined = str(error)
        if error.facts.get("reason") != COPIED:
            self._may_share.set()
        elif not self._is_copy and self._swarming is not None:
            self._is_copy = True
            log.warning(
                "node_shares_nothing", reason="another node that runs has its key, and gives shards by its name"
            )
            self._jobs.spawn(self._swarming.hush(), "share nothing")

    def _peer_lost(self, node_id: NodeId, error: ShardnetError) -> None:
        """The link to another node broke, or led to where it was before it moved: its engine is not reached there either."""
        self._row_links.cut(node_id)
        self._tasks.peer_lost(node_id, error)

    def _moved(self) -> None:
        """Others reach this node at another address now: the coordinator hears it with this heartbeat."""
        self._coordinator.check_address()
        self._links.check_addresses()
        self._row_links.cut_all()
        self._pulse.beat()
        if self._swarming is not None and not self._is_copy:
            self._jobs.spawn(self._swarming.move(), "announce the new address")

    def _greeted(self, connection: Connection, hello: Hello) -> Welcome:
        """Another member dialled us."""
        self._links.adopt(connection)
        return Welcome(protocol=PROTOCOL_VERSION, node_id=self._identity.node_id, epoch=self._epoch)

    # -- inside --------------------------------------------------------------------------------------------------------------

    def _wait_for_shards(self, flight: Flight, stage: StageRef) -> None:
        task = flight.task
        self._performer.post(TaskWaits(flight.ticket, task.model_id, stage.first_shard, stage.end_shard, task.options))

    def _engine_came_back(self, restored: Restored) -> None:
        self._figures.restarts += 1
        self._row_links.engine_came_back()
        self._performer.post(
            EngineCameBack(
                tuple(
                    (
                        ShardKey((shard.request.model_id, shard.request.shard_id)),
                        shard.answer.memory_bytes,
                        shard.answer.memory_mode,
                        shard.answer.repacked,
                    )
                    for shard in restored.shards
                )
            )
        )
        self._jobs.spawn(self._look(), "files")
        self._pulse.beat()


def _membership(identity: Identity) -> Membership:
    return Membership(
        certificate=str(identity.certificate_path), key=str(identity.key_path), authority=identity.swarm.ca_pem.decode()
    )


async def _add_peer(directory: Directory, address: Address) -> None:
    await directory.add_peers([str(address)])
