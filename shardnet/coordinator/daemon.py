"""The coordinator daemon: one place that wires listener, registry, placement, requests and HTTP API together, and acts on what they decide."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, cast

from shardnet import __version__
from shardnet.coordinator import views
from shardnet.coordinator.api import Api
from shardnet.coordinator.catalogue import Catalogue
from shardnet.coordinator.cluster import Cluster
from shardnet.coordinator.directory import open_directory
from shardnet.coordinator.epoch import next_epoch
from shardnet.coordinator.events import (
    Event,
    ManifestKnown,
    NodeDied,
    NodeJoined,
    NodeLeft,
    PlanNeeded,
    SeedersKnown,
    ShardsLost,
    TimePassed,
)
from shardnet.coordinator.frames import Frames
from shardnet.coordinator.http_server import HttpServer
from shardnet.coordinator.loads import Loader
from shardnet.coordinator.peers import Peers
from shardnet.coordinator.placement import Policy
from shardnet.coordinator.planning import Route, plan, routes
from shardnet.coordinator.requests import Requests
from shardnet.coordinator.seeders import LOOK_EVERY_S, Seeders
from shardnet.coordinator.service import Service
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.coordinator.spreading import spread
from shardnet.dht.directory import Directory
from shardnet.dht.kademlia_directory import KademliaDirectory
from shardnet.errors import (
    Busy,
    PeerLost,
    PeerRefused,
    SettingsError,
    ShardCorrupt,
    ShardnetError,
    ShardNotFound,
    UsageError,
)
from shardnet.ids import new_id, short
from shardnet.log import get
from shardnet.manifest import Manifest
from shardnet.messages import (
    PROTOCOL_VERSION,
    Address,
    ExecuteTask,
    FileIs,
    FreeSequence,
    GetFile,
    Hello,
    Revoked,
    ShardOptions,
    Welcome,
)
from shardnet.swarm.addresses import (
    HostPort,
    is_loopback,
    is_wildcard,
    parse_host_port,
    reachable,
    write_coordinator_addresses,
)
from shardnet.swarm.enrol_service import EnrolmentServer
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity
from shardnet.swarm.membership import follow_revocations
from shardnet.transport import Connection, Listener, listen
from shardnet.wire import Buffer

TICK_S = 0.5
FILE_DEADLINE_S = 30.0
REMEASURE_S = 60.0

log = get("coordinator")


class Coordinator:
    """`run()` is its life; `stop()` only asks.

    Args:
        home: the folder of swarm keys and identities.
    """

    def __init__(self, settings: CoordinatorSettings, home: Home) -> None:
        self._settings = settings
        self._home = home
        placement = settings.placement
        self._policy = Policy(
            stages=placement.stages,
            headroom_share=placement.headroom_share,
            ring=not settings.speculation.enabled,  # with it, each step is the coordinator's own
        )
        self._cluster = Cluster(dead_after_s=placement.dead_after_s)
        self._peers = Peers()
        self._requests = Requests(
            self,
            max_queued=settings.requests.max_queued,
            queue_timeout_s=settings.requests.queue_timeout_s,
            make_speculation=settings.speculation.to_model if settings.speculation.enabled else None,
        )
        self._frames = Frames(
            self._cluster,
            self._peers,
            self._requests,
            self._apply,
            self.now_s,
            self._spawn,
            accepts=lambda manifest: self._catalogue.accepts(manifest),
            tokenizer_piece=lambda manifest, offset: self._catalogue.tokenizer_piece(manifest, offset),
        )
        self._loader = Loader(self._cluster, self._peers, self._apply, self.now_s)
        self._stopping = asyncio.Event()
        self._plan_needed = asyncio.Event()
        self._problems: dict[str, ShardnetError] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        self._routes: dict[str, tuple[int, list[Route]]] = {}
        self._told: dict[str, str] = {}
        self._tasks: asyncio.TaskGroup
        self._catalogue: Catalogue
        self._identity: Identity
        self._directory: KademliaDirectory | None = None
        self._addresses: dict[str, Address | None] = {}
        self._epoch = 0
        self._is_over = False
        self._began_s = self.now_s()
        self._ready = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask it to end."""
        self._stopping.set()

    async def started(self) -> dict[str, Address | None]:
        """Wait until it listens. Returns: the addresses `nodes`, `enrol`, `api`, `dht`."""
        await self._ready.wait()
        return self._addresses

    async def run(self) -> None:
        """Serve until stop(); when this returns, no task or socket of ours is left.

        Raises: SettingsError if a port is taken or a file cannot be used; UnreachableError if this machine belongs to no swarm.
        """
        where = self._settings.listen
        nodes_at = parse_host_port(where.nodes, what="listen.nodes")
        api_at = parse_host_port(where.api, what="listen.api")
        enrol_at = parse_host_port(where.enrol, what="listen.enrol") if where.enrol else None
        async with AsyncExitStack() as resources:
            name = self._settings.name or None
            self._identity = await asyncio.to_thread(claim_identity, self._home, name, "coordinator")
            resources.callback(self._identity.release)
            self._epoch = await asyncio.to_thread(next_epoch, self._home)
            self._catalogue = Catalogue(self._settings.models.cache, self._identity.swarm, self._fetch_piece)
            resources.push_async_callback(self._catalogue.close)
            manifests = await asyncio.to_thread(self._catalogue.scan)
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    listener = await self._listen(resources, nodes_at)
                    enrolment = await self._listen_enrol(resources, enrol_at)
                    http = await self._open_api(api_at)
                    resources.callback(http.close)
                    dht = await self._meet(resources, listener.address)
                    self._addresses = {
                        "nodes": listener.address,
                        "enrol": enrolment,
                        "api": http.address,
                        "dht": dht,
                    }
                    await asyncio.to_thread(self._write_addresses)
                    for manifest in manifests:
                        self._apply(ManifestKnown(manifest))
                    self._announce()
                    children = [
                        self._tasks.create_task(http.run(Api(self._service(), self._settings.api).app), name="http"),
                        self._tasks.create_task(self._tick(), name="tick"),
                        self._tasks.create_task(self._keep_planned(), name="plan"),
                        self._tasks.create_task(self._follow_revocations(), name="revocations"),
                    ]
                    if self._directory is not None:
                        looking = self._keep_seeders_known(self._directory)
                        children.append(self._tasks.create_task(looking, name="seeders"))
                    if self._settings.placement.measure_links:
                        children.append(self._tasks.create_task(self._keep_measured(), name="measure"))
                    self._ready.set()
                    await self._stopping.wait()
                    await self._drain()
                    http.stop()
                    await asyncio.wait(children[:1], timeout=5)
                    self._is_over = True
                    raise _Stopped
            except BaseExceptionGroup as group:
                _, wrong = group.split(_Stopped)
                if wrong is not None:
                    raise _first(wrong) from None

    async def _drain(self) -> None:
        """Finish what runs, as far as time allows."""
        self._requests.refuse_new()
        log.info("coordinator_draining", requests=len(self._requests.running))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._requests.idle.wait()
        self._requests.fail_all()

    async def _listen(self, resources: AsyncExitStack, address: HostPort) -> Listener:
        try:
            return await resources.enter_async_context(await listen(self._identity, address, self._on_hello))
        except SettingsError as error:
            raise _port_error(error, address, "--listen") from error

    async def _meet(self, resources: AsyncExitStack, nodes_at: Address) -> Address | None:
        """Take part in the DHT, and be found there."""
        if not self._settings.dht.enabled:
            return None
        directory = await resources.enter_async_context(open_directory(self._identity, self._settings.dht, nodes_at))
        self._directory = directory
        if (where := reachable(nodes_at)) is not None:
            self._spawn(_be_found(directory, where), "announce this coordinator")
        host, port = directory.address
        return Address(host=host, port=port)

    async def _listen_enrol(self, resources: AsyncExitStack, address: HostPort | None) -> Address | None:
        """Take in newcomers, where this machine can let them in."""
        if address is None or not self._identity.is_owner:
            return None
        try:
            server = await resources.enter_async_context(EnrolmentServer(self._home, self._identity, address))
        except SettingsError as error:
            raise _port_error(error, address, "--enrol") from error
        return server.address

    async def _open_api(self, address: HostPort) -> HttpServer:
        try:
            return await asyncio.to_thread(HttpServer.listen, address)
        except SettingsError as error:
            raise _port_error(error, address, "--api") from error

    def _write_addresses(self) -> None:
        dialled = {what: _dialable(address) for what, address in self._addresses.items()}
        write_coordinator_addresses(self._home, **dialled)

    def _announce(self) -> None:
        log.info("coordinator_listening", address=str(self._addresses["nodes"]), epoch=self._epoch)
        if self._addresses["enrol"]:
            log.info("enrolment_listening", address=str(self._addresses["enrol"]))
        api = cast("Address", self._addresses["api"])
        log.info("api_listening", address=str(api))
        if not is_loopback(api.host) and not self._settings.api.key:
            log.warning("api_open_to_everybody", address=str(api), advice="set api.key, or listen on 127.0.0.1")

    # -- core loops ----------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._apply(TimePassed(self.now_s()))
            self._requests.on_time()

    async def _keep_planned(self) -> None:
        """Think placement over when something changed, once things have settled for a moment."""
        while True:
            await self._plan_needed.wait()
            await asyncio.sleep(self._settings.placement.debounce_s)
            self._plan_needed.clear()
            models = {manifest.model_id: self._options(manifest) for manifest in self._served()}
            found = plan(self._cluster, models, self._policy, replicas=self._settings.placement.replicas)
            self._problems, self._notes = found.problems, found.notes
            orders = [*found.orders, *spread(self._cluster, self._served(), self._settings.placement.copies)]
            for order in orders:
                deadline_s = self._settings.placement.load_deadline_s
                work = self._loader.load(order, models[order.model_id], deadline_s)
                self._spawn(work, f"load shard {order.shard_id} on {short(order.node_id)}")
            self._tell_readiness()
            if orders:
                await asyncio.sleep(0)  # each load tells the cluster that it is under way before the next plan

    async def _keep_seeders_known(self, directory: Directory) -> None:
        """As long as shards are with no connected node, ask the DHT who else has them."""
        seeders = Seeders(self._cluster, directory)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for manifest in self._served():
                self._apply(SeedersKnown(manifest.model_id, await seeders.of(manifest)))

    async def _keep_measured(self) -> None:
        """Measure each link once, and those that did not work again now and then."""
        measured: dict[tuple[str, str], float] = {}
        while True:
            await asyncio.sleep(1)
            at_s = self.now_s()
            here = sorted(node_id for node_id, node in self._cluster.nodes.items() if not node.draining)
            pairs = [("", one) for one in here] + [(a, b) for a in here for b in here if a < b]
            pairs += sorted(pair for pair in self._cluster.unreachable if pair not in pairs)
            measured = {pair: done_s for pair, done_s in measured.items() if set(pair) <= {"", *here}}
            for pair in pairs:
                due = pair in self._cluster.unreachable and at_s - measured.get(pair, at_s) > REMEASURE_S
                if pair not in measured or due:
                    measured[pair] = self.now_s()
                    await self._loader.measure(*pair)

    async def _follow_revocations(self) -> None:
        def tell(node_ids: frozenset[str]) -> None:
            message = Revoked(node_ids=tuple(sorted(node_ids)))
            for node_id in tuple(self._cluster.nodes):
                with contextlib.suppress(PeerLost):
                    self._peers.send(node_id, message)

        await follow_revocations(self._identity, tell)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def guarded() -> None:
            try:
                await work
            except ShardnetError as error:
                log.warning("task_of_coordinator_failed", task=name, reason=str(error))
            except Exception:
                log.exception("task_of_coordinator_failed", task=name)

        if self._is_over:
            work.close()
        else:
            self._tasks.create_task(guarded(), name=name)

    # -- nodes ---------------------------------------------------------------------------------------------------------------

    def _on_hello(self, connection: Connection, hello: Hello) -> Welcome:
        if self._stopping.is_set():
            raise Busy("the coordinator is stopping", retry_after_s=5)
        if hello.role == "client":
            connection.set_handler(lambda frame: self._frames.take_of_client(connection, frame), lambda _error: None)
            return self._welcome()
        if hello.role != "node":
            raise PeerRefused(f"this port takes nodes, not a {hello.role}: programs use the HTTP API")
        node_id = hello.node_id
        before = self._peers.add(node_id, connection)
        if before is not None:
            before.refuse(PeerRefused("this node connected anew"))
            self._requests.on_node_lost(node_id)
        connection.set_handler(
            lambda frame: self._frames.take(node_id, connection, frame),
            lambda error: self._on_close(node_id, connection, error),
        )
        self._apply(NodeJoined(self.now_s(), hello))
        log.info("peer_joined", name=hello.name or short(node_id), node_id=short(node_id), shards=len(hello.held))
        return self._welcome()

    def _welcome(self) -> Welcome:
        return Welcome(
            protocol=PROTOCOL_VERSION,
            node_id=self._identity.node_id,
            epoch=self._epoch,
            revoked=tuple(sorted(self._identity.revoked)),
            dht=self._addresses.get("dht"),
        )

    def _on_close(self, node_id: str, connection: Connection, error: ShardnetError) -> None:
        node = self._cluster.nodes.get(node_id)
        is_known = self._peers.remove(node_id, connection, PeerLost(f"node {short(node_id)} is gone: {error}"))
        if not is_known or self._is_over:
            return
        if node is not None:
            log.info("peer_lost", name=node.label, node_id=short(node_id), reason=str(error))
        self._apply(NodeLeft(self.now_s(), node_id))
        self._requests.on_node_lost(node_id)
        self._tell_readiness()

    def _apply(self, event: Event) -> None:
        """Take an event into the cluster's state, and act on what follows."""
        version = self._cluster.version
        for effect in self._cluster.handle(event):
            match effect:
                case PlanNeeded():
                    self._plan_needed.set()
                case NodeDied():
                    connection = self._peers.connection(effect.node_id)
                    if connection is not None:
                        connection.refuse(PeerLost(effect.reason))
        if isinstance(event, ManifestKnown):
            self._spawn(self._prepare_words(event.manifest), f"words of {event.manifest.name}")
        if self._cluster.version != version:
            self._requests.pump()

    async def _prepare_words(self, manifest: Manifest) -> None:
        with contextlib.suppress(ShardNotFound, PeerLost):  # the first request tries again
            await self._catalogue.words(manifest)

    async def _fetch_piece(self, model_id: str, offset: int) -> tuple[int, bytes]:
        manifest = self._cluster.manifests[model_id]
        last: ShardnetError = ShardNotFound(f"no connected node has the tokenizer of {manifest.name}")
        for node in sorted(self._cluster.nodes.values(), key=lambda one: one.node_id):
            if not any(model == model_id for model, _ in node.held):
                continue
            question = GetFile(
                command_id=new_id(), deadline_s=FILE_DEADLINE_S, model_id=model_id, kind="tokenizer", offset=offset
            )
            try:
                frame = await self._peers.ask(node.node_id, question, timeout_s=FILE_DEADLINE_S)
            except ShardnetError as error:
                last = error
                continue
            answer, data = cast("FileIs", frame.message), frame.payload("data")
            if data is None or answer.piece_bytes > len(data):
                raise ShardCorrupt(f"node {node.label} sent a piece of the tokenizer that is not whole")
            return answer.total_bytes, bytes(data[: answer.piece_bytes])
        raise last

    # -- models --------------------------------------------------------------------------------------------------------------

    def _served(self) -> list[Manifest]:
        wanted = self._settings.models.serve
        known = sorted(self._cluster.manifests.values(), key=lambda one: (one.name, one.model_id))
        return [one for one in known if not wanted or one.name in wanted or one.model_id in wanted]

    def _options(self, manifest: Manifest) -> ShardOptions:
        return self._settings.sequences.to_options(manifest.content.n_ctx_train)

    def _tell_readiness(self) -> None:
        """Log when a model becomes complete or is so no longer; each new reason once."""
        for manifest in self._served():
            ready = self.routes(manifest.model_id)
            sentence = views.stages_sentence(self._cluster, manifest, ready[0]) if ready else ""
            fact = sentence or str(self.not_ready(manifest.model_id))
            if self._told.get(manifest.model_id) == fact:
                continue
            self._told[manifest.model_id] = fact
            if ready:
                log.info("pipeline_ready", model=manifest.name, stages=fact, pipelines=len(ready))
                for note in self._notes.get(manifest.model_id, ()):
                    log.info("placement_note", model=manifest.name, note=note)
            else:
                reason = fact.removeprefix(f"model {manifest.name} is not ready: ")
                log.warning("pipeline_incomplete", model=manifest.name, reason=reason)

    # -- what requests need (requests.Swarm) ---------------------------------------------------------------------------------

    def now_s(self) -> float:
        """Returns: seconds of a clock that only goes forward. (uvloop's own counts milliseconds.)"""
        return time.monotonic()

    def send(self, node_id: str, message: ExecuteTask | FreeSequence, payloads: Sequence[Buffer] = ()) -> None:
        """Send a step. Raises: PeerLost."""
        self._peers.send(node_id, message, payloads)

    def routes(self, model_id: str) -> list[Route]:
        """Returns: pipelines that are ready now."""
        known = self._routes.get(model_id)
        if known is None or known[0] != self._cluster.version:
            options = self._options(self._cluster.manifests[model_id])
            known = (self._cluster.version, routes(self._cluster, model_id, options, self._policy))
            self._routes[model_id] = known
        return known[1]

    def not_ready(self, model_id: str) -> ShardnetError:
        """Returns: why there is no pipeline."""
        manifest = self._cluster.manifests[model_id]
        return views.not_ready(self._cluster, manifest, self._problems.get(model_id))

    def stage_failed(self, node_id: str, route: Route, error: ShardnetError) -> None:
        """A stage does not have its shards after all: have them confirmed again."""
        if isinstance(error, ShardNotFound):
            shards = {
                shard
                for one in route.stages
                if one.node_id == node_id
                for shard in range(one.first_shard, one.end_shard)
            }
            self._apply(ShardsLost(node_id, tuple((route.model_id, shard) for shard in sorted(shards))))

    # -- what the API needs --------------------------------------------------------------------------------------------------

    def _service(self) -> Service:
        return Service(
            requests=self._requests,
            settings=self._settings.requests,
            epoch=self._epoch,
            manifests=self._served,
            options=self._options,
            words=self._catalogue.words,
            status=self._status,
            health=self._health,
            describe_stage=self._describe_stage,
        )

    def _describe_stage(self, route: Route, index: int) -> dict[str, Any]:
        return views.stage_json(self._cluster, self._cluster.manifests[route.model_id], route, index)

    def _health(self) -> dict[str, Any]:
        models = [
            views.health_model(self._cluster, one, self.routes(one.model_id), self._problems.get(one.model_id))
            for one in self._served()
        ]
        ready = any(one["ready"] for one in models)
        return {
            "ready": ready,
            "status": "ok" if ready else "not ready",
            "nodes": len(self._cluster.nodes),
            "models": models,
        }

    def _status(self) -> dict[str, Any]:
        at_s = self.now_s()
        nodes = sorted(self._cluster.nodes.values(), key=lambda one: (one.label, one.node_id))
        totals = self._requests.totals
        return {
            "coordinator": {
                "node_id": self._identity.node_id,
                "swarm_id": self._identity.swarm.swarm_id,
                "version": __version__,
                "epoch": self._epoch,
                "uptime_s": round(at_s - self._began_s, 1),
                "addresses": {what: str(address) if address else None for what, address in self._addresses.items()},
            },
            "nodes": [views.node_json(self._cluster, node, at_s) for node in nodes],
            "models": [
                views.model_json(
                    self._cluster,
                    one,
                    self.routes(one.model_id),
                    self._problems.get(one.model_id),
                    self._notes.get(one.model_id, ()),
                )
                for one in self._served()
            ],
            "links": [
                {"source": a, "target": b, "one_way_s": link.one_way_s, "bytes_per_s": link.bytes_per_s}
                for (a, b), link in sorted(self._cluster.links.items())
            ],
            "requests": {
                "running": len(self._requests.running),
                "queued": self._requests.queued,
                "finished": totals.finished,
                "failed": totals.failed,
                "cancelled": totals.cancelled,
                "retried": totals.retried,
                "late_answers": totals.late_answers,
                "relayed_steps": self._frames.relayed,
                "prompt_tokens": totals.prompt_tokens,
                "completion_tokens": totals.completion_tokens,
                "tokens_proposed": totals.tokens_proposed,
                "tokens_accepted": totals.tokens_accepted,
            },
        }


async def _be_found(directory: KademliaDirectory, where: Address) -> None:
    try:
        await directory.announce_coordinator(address=(where.host, where.port))
    except UsageError as error:
        log.warning("coordinator_not_announced", reason=str(error))


class _Stopped(Exception):
    """Ends the task group once all is drained; it cancels what is left."""


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns: the one error that matters: whatever came first took the others with it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _port_error(error: SettingsError, address: HostPort, flag: str) -> SettingsError:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
        return SettingsError(f"port {address[1]} on {address[0]} is in use; choose another with {flag}")
    return error


def _dialable(address: Address | None) -> Address | None:
    """Where commands of this machine reach a listener that listens everywhere."""
    if address is None or not is_wildcard(address.host):
        return address
    return Address(host="::1" if ":" in address.host else "127.0.0.1", port=address.port)
