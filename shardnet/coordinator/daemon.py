"""The coordinator daemon: one place that wires ports, registry, placement, requests and HTTP API together, and acts on what they decide."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from starlette.routing import Route

from shardnet import __version__
from shardnet.condition.record import State
from shardnet.condition.telling import Condition
from shardnet.coordinator.api import views
from shardnet.coordinator.api.endpoints import Api
from shardnet.coordinator.api.http_counts import HttpCounts
from shardnet.coordinator.api.http_server import HttpServer
from shardnet.coordinator.api.make_route import MakeRoute
from shardnet.coordinator.api.service import Service
from shardnet.coordinator.frames import Frames
from shardnet.coordinator.logs.collecting import LogCollector
from shardnet.coordinator.logs.endpoint import LogsEndpoint
from shardnet.coordinator.logs.merging import Source
from shardnet.coordinator.metrics.endpoint import metrics_route
from shardnet.coordinator.metrics.reading import CoordinatorFigures
from shardnet.coordinator.nodes.doors import Doors, Wanted, open_doors, port_error
from shardnet.coordinator.nodes.epoch import next_epoch
from shardnet.coordinator.nodes.fetching import fetch_piece
from shardnet.coordinator.nodes.loads import Loader
from shardnet.coordinator.nodes.measuring import keep_measured
from shardnet.coordinator.nodes.peers import Peers
from shardnet.coordinator.nodes.seeders import Seeders
from shardnet.coordinator.nodes.visitors import Visitors
from shardnet.coordinator.nodes.weights_relay import WeightsRelay
from shardnet.coordinator.page import meter
from shardnet.coordinator.page.endpoints import Page, load_assets
from shardnet.coordinator.page.feed import Feed
from shardnet.coordinator.placement.catalogue import Catalogue
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import (
    Event,
    ManifestKnown,
    NodeDied,
    NodeJoined,
    NodeLeft,
    PlanNeeded,
    TimePassed,
)
from shardnet.coordinator.placement.standing import Standing
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.stages import Stages
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.coordinator.structure.checking import GrammarChecks
from shardnet.errors import Busy, PeerLost, PeerRefused, SettingsError, ShardnetError, ShardNotFound
from shardnet.hosts import is_ours
from shardnet.ids import short
from shardnet.journal import KEPT_FOR_OTHERS, Journal
from shardnet.lifecycle import first_of
from shardnet.log import counted, get
from shardnet.manifest import Manifest
from shardnet.messages import COPIED, PROTOCOL_VERSION, Address, Hello, Revoked, Welcome
from shardnet.metrics.dht_figures import dht
from shardnet.metrics.door import Door
from shardnet.metrics.exposition import Exposition
from shardnet.metrics.settings import MetricsSettings
from shardnet.metrics.vitals import Vitals
from shardnet.swarm.api_keys import API_KEYS, KeyRing, list_keys
from shardnet.swarm.following import follow_records
from shardnet.swarm.home import Home
from shardnet.swarm.identity import Identity, claim_identity
from shardnet.swarm.membership import follow_revocations
from shardnet.swarm.whereabouts import Place, reach_of
from shardnet.transport import Connection

TICK_S = 0.5

log = get("coordinator")


class Coordinator:
    """`run()` is its life; `stop()` only asks.

    Args:
        home: the folder of swarm keys and identities.
    """

    def __init__(self, settings: CoordinatorSettings, home: Home) -> None:
        self._settings = settings
        self._home = home
        self._cluster = Cluster(dead_after_s=settings.placement.dead_after_s)
        self._standing = Standing(self._cluster, settings.models, settings.placement, settings.sequences)
        self._peers = Peers()
        self._keys = KeyRing(settings.api.key)
        self._grammars = GrammarChecks()
        self._requests = Requests(
            Stages(self._standing, self._peers, self._apply),
            max_queued=settings.requests.max_queued,
            queue_timeout_s=settings.requests.queue_timeout_s,
            make_speculation=settings.speculation.to_model if settings.speculation.enabled else None,
            prefixes=settings.prefixes.to_prefixes(),
        )
        self._weights = WeightsRelay(self._cluster, self._peers, settings.placement.relay_bytes_per_s)
        self._frames = Frames(
            self._cluster,
            self._peers,
            self._requests,
            self._apply,
            time.monotonic,
            self._spawn,
            fault_of=lambda manifest: self._catalogue.fault_of(manifest),
            tokenizer_piece=lambda manifest, offset: self._catalogue.tokenizer_piece(manifest, offset),
            shard_piece=self._weights.piece,
        )
        self._journal = Journal(kept=KEPT_FOR_OTHERS)
        self._logs = LogCollector(self._cluster, self._peers, self._journal, self._own_source)
        self._figures = CoordinatorFigures(
            self._standing,
            self._requests,
            HttpCounts(),
            relayed=lambda: (self._frames.relayed, self._weights.relayed_bytes),
            now_s=time.monotonic,
        )
        self._loader = Loader(self._cluster, self._peers, self._apply, time.monotonic)
        self._stopping = asyncio.Event()
        self._plan_needed = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._catalogue: Catalogue
        self._identity: Identity
        self._doors: Doors | None = None
        self._a_node: str | None = None
        self._visitors = Visitors()
        self._epoch = 0
        self._is_over = False
        self._began_s = time.monotonic()
        self._ready = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------------------------------------

    def stop(self, by: str = "") -> None:
        """Ask it to end."""
        self._stopping.set()

    async def started(self) -> dict[str, Address | None]:
        """Wait until it listens. Returns: the addresses `nodes`, `enrol`, `api`, `dht`."""
        await self._ready.wait()
        return self._doors.addresses if self._doors is not None else {}

    async def run(self) -> None:
        """Serve until stop(); when this returns, no task or socket of ours is left.

        Raises: SettingsError if a port is taken or a file cannot be used; UnreachableError if this machine belongs to no swarm.
        """
        wanted = Wanted.of(self._settings.listen)
        async with AsyncExitStack() as resources:
            name = self._settings.name or None
            self._identity = await asyncio.to_thread(claim_identity, self._home, name, "coordinator")
            resources.callback(self._identity.release)
            resources.callback(self._forget_what_failed)
            condition = await resources.enter_async_context(
                Condition(self._identity.folder, "coordinator", self._condition)
            )
            resources.enter_context(self._journal)
            self._epoch = await asyncio.to_thread(next_epoch, self._home)
            self._keys.set_named(await asyncio.to_thread(list_keys, self._home))
            self._catalogue = Catalogue(
                self._settings.models.cache,
                self._identity.swarm,
                lambda model_id, offset: fetch_piece(self._cluster, self._peers, model_id, offset),
            )
            resources.push_async_callback(self._catalogue.close)
            resources.push_async_callback(self._grammars.close)
            manifests = await asyncio.to_thread(self._catalogue.scan)
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    http = await _open_http(resources, wanted)
                    doors = self._doors = await open_doors(
                        resources,
                        wanted,
                        http.address,
                        self._settings.dht,
                        self._home,
                        self._identity,
                        self._on_hello,
                    )
                    self._spawn(doors.be_found(self._find_a_node), "announce this coordinator")
                    await asyncio.to_thread(doors.write_down, self._home, self._identity)
                    page = await self._open_page()  # which hears what is logged from here on
                    for manifest in manifests:
                        self._apply(ManifestKnown(manifest))
                    doors.log_them(epoch=self._epoch, has_key=self._keys.is_asked_for)
                    if page is not None:
                        log.info("page_listening", address=str(doors.api))
                    vitals = resources.enter_context(Vitals("coordinator", self._identity))
                    exposition = Exposition(
                        [self._figures.read, vitals.quick, lambda: dht(doors.directory)], [vitals.slow]
                    )
                    more = partial(_more_routes, page, exposition, LogsEndpoint(self._logs, self._keys))
                    api = Api(self._service(), self._settings.api, self._keys, more, self._figures.http)
                    serving = [self._tasks.create_task(http.serve(api.app), name="http")]
                    door = await _open_metrics(resources, self._settings.metrics, exposition)
                    if door is not None:
                        serving.append(self._tasks.create_task(door.run(), name="metrics"))
                    children = [
                        self._tasks.create_task(vitals.run(), name="vitals"),
                        self._tasks.create_task(self._tick(), name="tick"),
                        self._tasks.create_task(self._keep_planned(), name="plan"),
                        self._tasks.create_task(self._follow_revocations(), name="revocations"),
                        self._tasks.create_task(
                            follow_records(self._home.api_keys, API_KEYS, self._keys.set_named), name="API keys"
                        ),
                    ]
                    if doors.directory is not None:
                        seeders = Seeders(self._cluster, doors.directory)
                        looking = seeders.keep_known(self._standing.served, self._apply)
                        children.append(self._tasks.create_task(looking, name="seeders"))
                    if self._settings.placement.measure_links:
                        measuring = keep_measured(self._cluster, self._loader, time.monotonic)
                        children.append(self._tasks.create_task(measuring, name="measure"))
                    self._ready.set()
                    condition.look()
                    await self._stopping.wait()
                    condition.look()
                    await self._drain()
                    self._logs.close()
                    if page is not None:
                        page.feed.close()
                    http.stop()
                    if door is not None:
                        door.stop()
                    await asyncio.wait(serving, timeout=5)
                    self._is_over = True
                    raise _Stopped
            except BaseExceptionGroup as group:
                _, wrong = group.split(_Stopped)
                if wrong is not None:
                    raise first_of(wrong) from None

    def _forget_what_failed(self) -> None:
        """A coordinator that never listened, since another one has its ports, is no member."""
        if not self._ready.is_set():
            self._identity.forget_if_new()

    async def _drain(self) -> None:
        """Finish what runs, as far as time allows."""
        self._requests.refuse_new()
        log.info("coordinator_draining", requests=len(self._requests.running))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._requests.idle.wait()
        self._requests.fail_all()

    # -- core loops ----------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._apply(TimePassed(time.monotonic()))
            self._requests.on_time()

    async def _keep_planned(self) -> None:
        """Think placement over when something changed, once things have settled for a moment."""
        while True:
            await self._plan_needed.wait()
            await asyncio.sleep(self._settings.placement.debounce_s)
            self._plan_needed.clear()
            orders = self._standing.think_over()
            for order, options in orders:
                work = self._loader.load(order, options, self._settings.placement.load_deadline_s)
                self._spawn(work, f"load shard {order.shard_id} on {short(order.node_id)}")
            if orders:
                await asyncio.sleep(0)  # each load tells the cluster that it is under way before the next plan
            self._standing.plan_is_due &= self._plan_needed.is_set()  # the loads are under way
            self._standing.tell()

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
            self._check_not_copied(hello)
            self._visitors.add(hello.node_id, hello.run_id, hello.name, connection)
            connection.set_handler(
                lambda frame: self._frames.take_of_client(connection, frame),
                lambda _error: self._visitors.remove(hello.node_id, connection),
            )
            return self._welcome()
        if hello.role != "node":
            raise PeerRefused(f"this port takes nodes, not a {hello.role}: programs use the HTTP API")
        node_id = hello.node_id
        self._check_not_copied(hello)
        before = self._peers.add(node_id, connection)
        if before is not None:
            before.refuse(PeerRefused("this node connected anew"))
            self._apply(NodeLeft(time.monotonic(), node_id))  # no route goes to where it was, and what it ran is lost
            self._requests.on_node_lost(node_id)
        connection.set_handler(
            lambda frame: self._frames.take(node_id, connection, frame),
            lambda error: self._on_close(node_id, connection, error),
        )
        self._apply(NodeJoined(time.monotonic(), hello, time.time()))
        log.info("peer_joined", name=hello.name or short(node_id), node_id=short(node_id), shards=len(hello.held))
        return self._welcome()

    def _check_not_copied(self, hello: Hello) -> None:
        """Raises: PeerRefused if another process is connected with this node's key; one that died is dropped within seconds."""
        if hello.run_id is None:
            return
        first, connection = self._cluster.nodes.get(hello.node_id), self._peers.connection(hello.node_id)
        label, where = self._visitors.other_run(hello.node_id, hello.run_id), ""
        is_here = first is not None and connection is not None and connection.is_open
        if first is not None and is_here and first.run_id not in (None, hello.run_id):
            label, where = first.label, f" at {first.address}" if first.address else ""
        if label is not None:
            raise PeerRefused(
                f"a node with the same key runs already: {label}{where}. If this home is a copy of that one's, delete nodes/{hello.name} in it "
                "and run `shardnet join TOKEN` with a new token (at the owner's: start it again), for a key of its own; a node that has just "
                "died is forgotten within seconds",
                reason=COPIED,
            )

    def _welcome(self) -> Welcome:
        return Welcome(
            protocol=PROTOCOL_VERSION,
            node_id=self._identity.node_id,
            epoch=self._epoch,
            revoked=tuple(sorted(self._identity.revoked)),
            dht=self._doors.dht if self._doors is not None else None,
        )

    def _find_a_node(self) -> str | None:
        """Returns: the IP address of a node on another machine; while there is none, the last one's."""
        hosts = (node.address.host for node in self._cluster.nodes.values() if node.address is not None)
        self._a_node = next((host for host in hosts if not is_ours((host,))), self._a_node)
        return self._a_node

    def _on_close(self, node_id: str, connection: Connection, error: ShardnetError) -> None:
        node = self._cluster.nodes.get(node_id)
        is_known = self._peers.remove(node_id, connection, PeerLost(f"node {short(node_id)} is gone: {error}"))
        if not is_known or self._is_over:
            return
        if node is not None and node.draining:
            log.info("peer_left", name=node.label, node_id=short(node_id))
        elif node is not None:
            log.warning("peer_lost", name=node.label, node_id=short(node_id), reason=str(error))
        self._apply(NodeLeft(time.monotonic(), node_id))
        self._requests.on_node_lost(node_id)
        self._standing.tell()

    def _apply(self, event: Event) -> None:
        """Take an event into the cluster's state, and act on what follows."""
        version = self._cluster.version
        for effect in self._cluster.handle(event):
            match effect:
                case PlanNeeded():
                    self._plan_needed.set()
                    self._standing.plan_is_due |= isinstance(event, NodeJoined | NodeLeft | ManifestKnown)
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

    # -- what the API needs --------------------------------------------------------------------------------------------------

    def _service(self) -> Service:
        return Service(
            requests=self._requests,
            settings=self._settings.requests,
            epoch=self._epoch,
            manifests=self._standing.answering,
            options=self._standing.options,
            words=self._catalogue.words,
            status=self._status,
            health=lambda: views.health(self._standing),
            why_not_served=self._standing.why_not_served,
            awaits_manifest=self._standing.awaits_manifest,
            describe_stage=lambda route, index: views.describe_stage(self._cluster, route, index),
            check_grammar=self._grammars.check,
        )

    async def _open_page(self) -> Page | None:
        """Returns: the web page, if there is to be one."""
        if not self._settings.api.page:
            return None
        feed = Feed(self._status, lambda: meter.read(self._requests, self._cluster), self._enrol_address)
        self._spawn(feed.run(), "page")
        assets = await asyncio.to_thread(load_assets)
        return Page(feed, self._identity.swarm, self._keys, self._enrol_address, assets=assets)

    def _condition(self) -> tuple[State, str]:
        """Returns: how this coordinator is, for who watches over it."""
        if self._stopping.is_set():
            return "stopping", f"{len(self._requests.running)} requests to finish"
        if not self._ready.is_set():
            return "starting", "opening its ports"
        health = views.health(self._standing)
        n_ready = sum(1 for one in health["models"] if one["ready"])
        n_nodes = health["nodes"]
        said = f"{counted(n_nodes, 'node')}, {n_ready} of {len(health['models'])} models ready"
        return ("ready" if health["ready"] else "waiting"), said

    def _own_source(self) -> Source:
        return Source(self._identity.node_id, self._identity.name)

    def _enrol_address(self) -> Address | None:
        """Returns: where other machines are taken in, as they reach it."""
        enrol = self._doors.enrol if self._doors is not None else None
        return reach_of(Place(enrol)).listen if enrol is not None else None

    def _status(self) -> dict[str, Any]:
        at_s = time.monotonic()
        addresses = self._doors.addresses if self._doors is not None else {}
        about = {
            "node_id": self._identity.node_id,
            "swarm_id": self._identity.swarm.swarm_id,
            "version": __version__,
            "epoch": self._epoch,
            "uptime_s": round(at_s - self._began_s, 1),
            "clock_s": round(time.time(), 3),
            "dht_contacts": self._doors.n_dht_contacts if self._doors is not None else None,
            "refused": list(self._catalogue.refused),
            "models_cache": str(self._settings.models.cache.absolute()),
            "addresses": {what: str(address) if address else None for what, address in addresses.items()},
        }
        requests = views.requests_json(self._requests, relayed_steps=self._frames.relayed)
        requests["relayed_weight_bytes"] = self._weights.relayed_bytes
        return {"coordinator": about} | views.swarm_json(self._standing, at_s) | {"requests": requests}


async def _open_http(resources: AsyncExitStack, wanted: Wanted) -> HttpServer:
    """Open the HTTP API's port. Raises: SettingsError, with the flag to change, if it is taken."""
    try:
        http = await asyncio.to_thread(HttpServer.listen, wanted.api)
    except SettingsError as error:
        raise port_error(error, wanted.api, "--api") from error
    resources.callback(http.close)
    return http


async def _open_metrics(resources: AsyncExitStack, settings: MetricsSettings, exposition: Exposition) -> Door | None:
    """Open the port for figures alone, if there is to be one. Raises: SettingsError if it is taken."""
    if not settings.listen:
        return None
    door = await Door.open(settings, exposition)
    resources.callback(door.close)
    return door


def _more_routes(page: Page | None, exposition: Exposition, logs: LogsEndpoint, route: MakeRoute) -> list[Route]:
    """Returns: what the API serves beside its own."""
    return [metrics_route(route, exposition), *logs.routes(route), *(page.routes(route) if page is not None else [])]


class _Stopped(Exception):
    """Ends the task group once all is drained; it cancels what is left."""
