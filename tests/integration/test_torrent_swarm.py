"""Real sessions on loopback: a shard travels, whole and verified."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from shardnet.errors import Busy, DeadlineExceeded, ManifestError, SettingsError, ShardCorrupt, ShardNotFound
from shardnet.hosts import is_ours
from shardnet.torrent.metainfo import info_hash
from shardnet.torrent.native import Piece
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.session import TorrentSession
from tests.support.torrent_world import Authority, Reached, Shard, World, make_shard

pytestmark = pytest.mark.integration
MB = 1_000_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return make_shard(tmp_path / "origin", 20 * MB)


async def test_a_fetched_shard_is_whole_the_moment_fetch_returns_and_is_seeded_on(world: World, shard: Shard) -> None:
    first, second, third = [await world.session(name) for name in ("first", "second", "third")]
    await first.seed(shard.torrent, shard.path, label="0")
    reports: list[TorrentStats] = []
    holders = [("127.0.0.1", first.port)]
    target = world.target("second")
    await second.fetch(shard.torrent, target, peers=holders, on_progress=reports.append, **shard.wanted())
    assert target.read_bytes() == shard.path.read_bytes()
    assert sorted(path.name for path in target.parent.iterdir() if path.is_file()) == ["shard-0.gguf"]
    assert reports[-1].fraction == 1
    assert reports[-1].is_seeding
    await first.remove(info_hash(shard.torrent))
    assert first.stats() == {}
    await third.fetch(shard.torrent, world.target("third"), peers=[("127.0.0.1", second.port)], **shard.wanted())
    assert world.target("third").read_bytes() == shard.path.read_bytes()


async def test_members_of_one_swarm_exchange_shards_over_tls(world: World, tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "origin", 20 * MB, world.authority.pem)
    first = await world.session("first", world.authority.member())
    second = await world.session("second", world.authority.member())
    await first.seed(shard.torrent, shard.path, label="0")
    target = world.target("second")
    await second.fetch(shard.torrent, target, peers=[("127.0.0.1", first.port)], deadline_s=20, **shard.wanted())
    assert target.read_bytes() == shard.path.read_bytes()


async def test_another_swarms_torrent_is_refused_before_anything_is_dialled(world: World, tmp_path: Path) -> None:
    inside = make_shard(tmp_path / "inside", MB, world.authority.pem)
    outside = make_shard(tmp_path / "outside", MB, Authority("other").pem)
    plain = make_shard(tmp_path / "plain", MB)
    member, stranger = await world.session("member", world.authority.member()), await world.session("stranger")
    for session, shard in ((member, outside), (member, plain), (stranger, inside)):
        with pytest.raises(ManifestError, match="this session only takes"):
            await session.fetch(shard.torrent, world.target("x"), **shard.wanted())
        with pytest.raises(ManifestError, match="this session only takes"):
            await session.seed(shard.torrent, shard.path, label="0")


async def test_peers_may_be_named_while_a_fetch_waits(world: World, shard: Shard) -> None:
    first, second = await world.session("first"), await world.session("second")
    await first.seed(shard.torrent, shard.path, label="0")
    begun = Reached(0)
    fetch = asyncio.create_task(
        second.fetch(shard.torrent, world.target("second"), on_progress=begun, **shard.wanted())
    )
    await begun.wait()
    with pytest.raises(Busy):
        await second.fetch(shard.torrent, world.target("second"), **shard.wanted())
    odd = [("localhost", 1), ("127.0.0.1", 0), ("127.0.0.1", 70_000), ("::::", 5), ("127.0.0.1", second.port)]
    second.add_peers(info_hash(shard.torrent), [*odd, ("127.0.0.1", first.port)])
    second.add_peers("0" * 64, [("127.0.0.1", first.port)])
    await asyncio.wait_for(fetch, 20)


async def test_a_fetch_without_holders_ends_at_its_deadline_with_a_clear_sentence(world: World, shard: Shard) -> None:
    alone = await world.session("alone", stall_timeout_s=0.5)
    with pytest.raises(ShardNotFound, match="no peer has 0: no peer known; it goes on when one appears"):
        await alone.fetch(shard.torrent, world.target("alone"), deadline_s=0.8, **shard.wanted())
    assert alone.stats() == {}


async def test_a_slow_fetch_is_told_apart_from_one_without_holders_and_keeps_what_it_has(
    world: World, shard: Shard
) -> None:
    first, quick = await world.session("first", upload_limit_bytes_per_s=4 * MB), await world.session("quick")
    second = await world.session("second")
    await first.seed(shard.torrent, shard.path, label="0")
    target, holders = world.target("second"), [("127.0.0.1", first.port)]
    with pytest.raises(DeadlineExceeded, match="is not complete"):
        await second.fetch(shard.torrent, target, peers=holders, deadline_s=3, **shard.wanted())
    assert not target.exists()
    kept = second  # the same session goes on without hashing: its resume data is true
    await quick.seed(shard.torrent, shard.path, label="0")
    reports: list[TorrentStats] = []
    holders = [("127.0.0.1", quick.port)]
    await kept.fetch(shard.torrent, target, peers=holders, on_progress=reports.append, **shard.wanted())
    assert not any(report.is_checking for report in reports)
    assert 0 < reports[-1].downloaded_bytes < 0.8 * shard.size
    assert target.read_bytes() == shard.path.read_bytes()


async def test_a_cancelled_fetch_is_resumed_by_the_next_session_without_fetching_twice(
    world: World, shard: Shard
) -> None:
    first = await world.session("first", upload_limit_bytes_per_s=8 * MB)
    await first.seed(shard.torrent, shard.path, label="0")
    target, holders = world.target("second"), [("127.0.0.1", first.port)]
    async with AsyncExitStack() as stack:
        second = await World(world.folder, stack).session("second")
        half = Reached(0.5)
        fetch = asyncio.create_task(
            second.fetch(shard.torrent, target, peers=holders, on_progress=half, **shard.wanted())
        )
        await half.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
    again, quick = await world.session("second"), await world.session("quick")
    await quick.seed(shard.torrent, shard.path, label="0")
    holders = [("127.0.0.1", quick.port)]
    reports: list[TorrentStats] = []
    await again.fetch(shard.torrent, target, peers=holders, on_progress=reports.append, **shard.wanted())
    assert reports[-1].downloaded_bytes < 0.52 * shard.size
    assert target.read_bytes() == shard.path.read_bytes()


async def test_closing_the_session_ends_its_fetches(world: World, shard: Shard) -> None:
    async with AsyncExitStack() as stack:
        session = await World(world.folder, stack).session("x")
        begun = Reached(0)
        fetch = asyncio.create_task(
            session.fetch(shard.torrent, world.target("x"), on_progress=begun, **shard.wanted())
        )
        await begun.wait()
    with pytest.raises(asyncio.CancelledError):
        await fetch


async def test_a_shard_that_is_already_there_is_seeded_at_once(world: World, shard: Shard) -> None:
    session = await world.session("x")
    await session.fetch(shard.torrent, shard.path, **shard.wanted())
    await session.fetch(shard.torrent, shard.path, **shard.wanted())
    await session.seed(shard.torrent, shard.path, label="0")
    assert [stats.is_seeding for stats in session.stats().values()] == [True]


async def test_only_the_bad_pieces_of_a_damaged_shard_are_fetched_again(world: World, shard: Shard) -> None:
    first, second = await world.session("first"), await world.session("second")
    await first.seed(shard.torrent, shard.path, label="0")
    target = world.target("second")
    target.parent.mkdir(parents=True)
    damaged = bytearray(shard.path.read_bytes())
    damaged[5 * MB] ^= 1
    target.write_bytes(damaged + b"and something behind the end")
    reports: list[TorrentStats] = []
    holders = [("127.0.0.1", first.port)]
    await second.fetch(shard.torrent, target, peers=holders, on_progress=reports.append, **shard.wanted())
    assert target.read_bytes() == shard.path.read_bytes()
    assert reports[-1].downloaded_bytes <= 2 * 65_536


async def test_a_torrent_of_other_bytes_than_the_manifest_promises_leaves_no_file(world: World, shard: Shard) -> None:
    first, second = await world.session("first"), await world.session("second")
    await first.seed(shard.torrent, shard.path, label="0")
    target = world.target("second")
    wanted = shard.wanted() | {"expect_sha256": "0" * 64}
    with pytest.raises(ShardCorrupt, match="not those that the manifest promises"):
        await second.fetch(shard.torrent, target, peers=[("127.0.0.1", first.port)], **wanted)
    assert [path for path in target.parent.iterdir() if path.is_file()] == []


async def test_what_is_no_regular_file_is_never_written_to(world: World, shard: Shard) -> None:
    session = await world.session("x")
    victim = world.folder / "victim"
    victim.write_bytes(b"precious")
    for name in ("shard-0.gguf", "shard-0.gguf.partial"):
        folder = world.folder / f"in-{name}"
        folder.mkdir()
        (folder / name).symlink_to(victim)
        with pytest.raises(ShardCorrupt, match="is in the way and a link"):
            await session.fetch(shard.torrent, folder / "shard-0.gguf", **shard.wanted())
        with pytest.raises(ShardCorrupt):
            await session.seed(shard.torrent, folder / name, label="0")
    assert victim.read_bytes() == b"precious"


async def test_limits_hold_on_loopback_too(world: World, shard: Shard) -> None:
    free = [await world.session(f"free-{index}") for index in range(2)]
    sends = await world.session("sends", upload_limit_bytes_per_s=8 * MB)
    takes = await world.session("takes", download_limit_bytes_per_s=8 * MB)

    async def seconds(seed: TorrentSession, node: TorrentSession, name: str) -> float:
        await seed.seed(shard.torrent, shard.path, label="0")
        started = time.monotonic()
        await node.fetch(shard.torrent, world.target(name), peers=[("127.0.0.1", seed.port)], **shard.wanted())
        return time.monotonic() - started

    both = await asyncio.gather(seconds(sends, free[0], "sent"), seconds(free[1], takes, "taken"))
    assert min(both) > 2.0, "20 MB at 8 MB/s, less what a full bucket lets through"


async def test_three_capped_seeds_add_up(world: World, tmp_path: Path) -> None:
    """Small: all three give at once. What it gains is for `bench_torrent` to say, on a quiet machine."""
    shard = make_shard(tmp_path / "origin", 16 * MB)
    seeds = [await world.session(f"seed-{index}", upload_limit_bytes_per_s=4 * MB) for index in range(3)]
    for seed in seeds:
        await seed.seed(shard.torrent, shard.path, label="0")
    node = await world.session("node")
    holders = [("127.0.0.1", seed.port) for seed in seeds]
    await node.fetch(shard.torrent, world.target("node"), peers=holders, deadline_s=30, **shard.wanted())

    def sent() -> list[int]:
        return [seed.stats()[info_hash(shard.torrent)].uploaded_bytes for seed in seeds]

    async with asyncio.timeout(10):
        while sum(sent()) < shard.size:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert max(sent()) < shard.size / 1.3, sent()  # a third of it on a quiet machine


async def test_a_taken_port_is_named_in_the_error(world: World) -> None:
    first = await world.session("first")
    with pytest.raises(SettingsError, match=f"port {first.port}"):
        await world.session("second", listen_port=first.port)
    with pytest.raises(SettingsError, match="IP address"):
        await world.session("third", listen_host="localhost")


@pytest.fixture
def web_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "web"
    folder.mkdir()

    class Ranged(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = (folder / Path(self.path).name).read_bytes()
            wanted = self.headers["Range"].removeprefix("bytes=").split("-")
            part = content[int(wanted[0]) : int(wanted[1]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {wanted[0]}-{wanted[1]}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranged)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["open", "swarm"])
async def test_web_seeds_give_the_shard_where_they_are_allowed(
    world: World, tmp_path: Path, web_folder: tuple[Path, str], kind: str
) -> None:
    folder, address = web_folder
    tls = world.authority.member() if kind == "swarm" else None
    shard = make_shard(folder, 5 * MB, world.authority.pem if tls else None)
    url = f"{address}/shard-0.gguf"
    forbidden = await world.session("forbidden", tls, stall_timeout_s=0.5)
    with pytest.raises(ShardNotFound):
        await forbidden.fetch(shard.torrent, world.target("f"), web_seeds=[url], deadline_s=0.8, **shard.wanted())
    allowed = await world.session("allowed", tls, web_seeds_allowed=True)
    await allowed.fetch(shard.torrent, world.target("a"), web_seeds=[url], deadline_s=30, **shard.wanted())
    assert world.target("a").read_bytes() == shard.path.read_bytes()


async def test_the_first_holder_sends_little_more_than_one_copy_however_many_want_it(
    world: World, shard: Shard
) -> None:
    holder = await world.session("holder", upload_limit_bytes_per_s=10 * MB)
    nodes = [await world.session(f"node-{index}") for index in range(4)]
    await holder.seed(shard.torrent, shard.path, label="0")
    everybody = [("127.0.0.1", session.port) for session in (holder, *nodes)]
    fetches = [
        node.fetch(shard.torrent, world.target(f"node-{index}"), peers=everybody, deadline_s=30, **shard.wanted())
        for index, node in enumerate(nodes)
    ]
    await asyncio.gather(*fetches)
    for index in range(len(nodes)):
        assert world.target(f"node-{index}").read_bytes() == shard.path.read_bytes()
    async with asyncio.timeout(10):
        while (sent := holder.stats()[info_hash(shard.torrent)].uploaded_bytes) < shard.size:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert sent < 1.4 * shard.size


async def pieces_of(session: TorrentSession, shard: Shard) -> list[Piece]:
    """Returns: what is missing, once the session has looked."""
    while not (found := await session.missing(info_hash(shard.torrent))):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return found


async def test_who_waits_for_a_slot_of_a_seed_gets_no_piece_meanwhile(world: World, tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "origin", 4 * MB, world.authority.pem)  # private: they do not hear of each other
    seed = await world.session("seed", world.authority.member(), upload_limit_bytes_per_s=2 * MB)
    await seed.seed(shard.torrent, shard.path, label="0")
    seen = [Reached(0.3), Reached(0.3)]
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Any]] = [group.create_task(one.wait()) for one in seen]
        for index, reached in enumerate(seen):
            node, target = await world.session(f"node-{index}", world.authority.member()), world.target(f"node-{index}")
            peers = [("127.0.0.1", seed.port)]
            fetch = node.fetch(shard.torrent, target, peers=peers, on_progress=reached, **shard.wanted())
            tasks.append(group.create_task(fetch))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        assert min(one.reports[-1].downloaded_bytes for one in seen) == 0


async def test_pieces_that_came_another_way_are_proved_and_complete_a_download_without_any_peer(
    world: World, tmp_path: Path
) -> None:
    shard = make_shard(tmp_path / "origin", 300_001)
    content, target = shard.path.read_bytes(), world.target("alone")
    session = await world.session("alone")
    fetching = asyncio.create_task(session.fetch(shard.torrent, target, **shard.wanted()))
    missing = await pieces_of(session, shard)
    assert sum(piece.n_bytes for piece in missing) == shard.size
    session.put(info_hash(shard.torrent), missing[0], bytes(missing[0].n_bytes))
    session.put(info_hash(shard.torrent), missing[-1], content[missing[-1].offset :] + b"more than the file has")
    for piece in missing[1:-1]:
        session.put(info_hash(shard.torrent), piece, content[piece.offset :][: piece.n_bytes])
    async with asyncio.timeout(20):
        while await session.missing(info_hash(shard.torrent)) != [missing[0], missing[-1]]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    for piece in (missing[0], missing[-1]):
        session.put(info_hash(shard.torrent), piece, content[piece.offset :][: piece.n_bytes])
    async with asyncio.timeout(20):
        await fetching
    assert target.read_bytes() == content
    session.put(info_hash(shard.torrent), missing[0], b"")  # harmless when all is here


async def test_one_port_that_the_system_chose_takes_transfers_at_every_address_and_over_both_families(
    world: World, shard: Shard
) -> None:
    if not is_ours(("::1",)):
        pytest.skip("this machine has no IPv6")
    first = await world.session("first", listen_host="::")
    await first.seed(shard.torrent, shard.path, label="0")
    for number, host in enumerate(("127.0.0.1", "::1")):
        other = await world.session(f"other-{number}", listen_host=host)
        target = world.target(f"other-{number}")
        await other.fetch(shard.torrent, target, peers=[(host, first.port)], deadline_s=20, **shard.wanted())
        assert target.read_bytes() == shard.path.read_bytes()
