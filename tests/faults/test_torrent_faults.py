"""What goes wrong while shards travel: strangers, liars, full disks, killed processes, seeds that leave."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from structlog.testing import capture_logs

from shardnet.errors import NoRoomError, ShardCorrupt, ShardNotFound
from shardnet.torrent import download
from shardnet.torrent.alerts import PeerBanned
from shardnet.torrent.metainfo import info_hash
from shardnet.torrent.progress import TorrentStats
from shardnet.torrent.watchdog import Remedy
from tests.support.small_disks import fill, small_disk
from tests.support.torrent_world import Authority, Reached, Shard, World, make_shard, raw_session, with_flipped_bytes

pytestmark = pytest.mark.integration
MB = 1_000_000
RATE = 12 * MB


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return make_shard(tmp_path / "origin", 20 * MB)


def liar_folder(world: World, shard: Shard, *, every: int) -> Path:
    """Returns: a folder with the shard's file in which one byte of every `every` is flipped."""
    return with_flipped_bytes(shard.path, world.folder / "liar", every=every)


async def test_strangers_get_not_a_byte(world: World, tmp_path: Path) -> None:
    """One with a certificate of another authority, and one with none."""
    shard = make_shard(tmp_path / "origin", 2 * MB, world.authority.pem)
    seed = await world.session("seed", world.authority.member())
    await seed.seed(shard.torrent, shard.path, label="0")
    with ExitStack() as stack:
        handles = []
        for name, stranger in (("foreign", Authority("other").member()), ("bare", None)):
            folder = world.folder / name
            folder.mkdir()
            _, handle = stack.enter_context(raw_session(shard.torrent, folder, tls=stranger, seeding=False))
            handles.append(handle)
        for _ in range(6):
            for handle in handles:
                handle.connect_peer(("127.0.0.1", seed.port))
            await asyncio.sleep(0.25)
        for handle in handles:
            assert (await asyncio.to_thread(handle.status)).total_download == 0
    assert seed.stats()[info_hash(shard.torrent)].uploaded_bytes == 0
    member = await world.session("member", world.authority.member())
    await member.fetch(
        shard.torrent, world.target("m"), peers=[("127.0.0.1", seed.port)], deadline_s=20, **shard.wanted()
    )


async def test_a_stranger_cannot_give_anything_to_a_member(world: World, tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "origin", 2 * MB, world.authority.pem)
    member = await world.session("member", world.authority.member(), stall_timeout_s=1.0)
    with (
        raw_session(shard.torrent, shard.path.parent, tls=Authority("other").member(), seeding=True) as (port, _),
        pytest.raises(ShardNotFound),
    ):
        await member.fetch(
            shard.torrent, world.target("m"), peers=[("127.0.0.1", port)], deadline_s=2, **shard.wanted()
        )
    assert not world.target("m").exists()


async def test_when_one_of_two_seeds_leaves_the_other_finishes_the_job(world: World, shard: Shard) -> None:
    async with AsyncExitStack() as stack:
        leaving = await World(world.folder, stack).session("leaving", upload_limit_bytes_per_s=8 * MB)
        staying = await world.session("staying", upload_limit_bytes_per_s=8 * MB)
        for session in (leaving, staying):
            await session.seed(shard.torrent, shard.path, label="0")
        node = await world.session("node")
        holders = [("127.0.0.1", leaving.port), ("127.0.0.1", staying.port)]
        half = Reached(0.5)
        fetch = asyncio.create_task(
            node.fetch(
                shard.torrent, world.target("node"), peers=holders, deadline_s=30, on_progress=half, **shard.wanted()
            )
        )
        await half.wait()
    await fetch
    assert world.target("node").read_bytes() == shard.path.read_bytes()


async def test_when_the_only_seed_leaves_the_fetch_says_so_and_goes_on_when_it_returns(
    world: World, shard: Shard
) -> None:
    node = await world.session("node", stall_timeout_s=0.5)
    async with AsyncExitStack() as stack:
        seed = await World(world.folder, stack).session("seed", upload_limit_bytes_per_s=8 * MB)
        port = seed.port
        half = Reached(0.5)
        await seed.seed(shard.torrent, shard.path, label="0")
        fetch = asyncio.create_task(
            node.fetch(
                shard.torrent, world.target("node"), peers=[("127.0.0.1", port)], on_progress=half, **shard.wanted()
            )
        )
        await half.wait()
        logs = stack.enter_context(capture_logs())
        await seed.remove(info_hash(shard.torrent))
        async with asyncio.timeout(30):
            while not any(line.get("remedy") == Remedy.READD.value for line in logs):  # the last of them  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert not fetch.done()
    back = await world.session("seed", listen_port=port)
    await back.seed(shard.torrent, shard.path, label="0")
    await asyncio.wait_for(fetch, 20)
    assert world.target("node").read_bytes() == shard.path.read_bytes()
    assert back.stats()[info_hash(shard.torrent)].uploaded_bytes < 0.6 * shard.size


async def test_a_lone_liar_ends_in_a_clear_error_and_no_file(
    world: World, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BANNED_GRACE_S", 0.5)
    node = await world.session("node")
    with (
        raw_session(shard.torrent, liar_folder(world, shard, every=100_000), seeding=True) as (port, _),
        pytest.raises(ShardCorrupt, match=r"every known peer .* sent bad pieces and was banned"),
    ):
        await node.fetch(shard.torrent, world.target("n"), peers=[("127.0.0.1", port)], deadline_s=30, **shard.wanted())
    assert not world.target("n").exists()


@pytest.mark.parametrize(("liars_host", "every"), [("127.0.0.1", 100_000), ("127.0.0.2", 5_000_000)])
async def test_with_an_honest_seed_beside_the_liar_the_shard_arrives_whole_and_the_liar_is_banned(
    world: World, shard: Shard, liars_host: str, every: int
) -> None:
    """How quick beside the quiet case, which the seed's limit makes four seconds, is printed, not asserted: a busy machine may hold it up."""
    seed = await world.session("seed", upload_limit_bytes_per_s=5 * MB)
    await seed.seed(shard.torrent, shard.path, label="0")
    node = await world.session("node")
    reports: list[TorrentStats] = []
    with (
        raw_session(shard.torrent, liar_folder(world, shard, every=every), host=liars_host, seeding=True) as (port, _),
        capture_logs() as logs,
    ):
        holders = [(liars_host, port), ("127.0.0.1", seed.port)]
        started = time.monotonic()
        await node.fetch(
            shard.torrent,
            world.target("n"),
            peers=holders,
            deadline_s=40,
            on_progress=reports.append,
            **shard.wanted(),
        )
        seconds = time.monotonic() - started
    assert world.target("n").read_bytes() == shard.path.read_bytes()
    print(f"beside a liar {seconds:.2f} s, without {shard.size / (5 * MB):.2f} s")  # noqa: T201 - a figure of table B
    banned = {line["peer"] for line in logs if line["event"] == "torrent_peer_banned"}
    if (
        every == 100_000
    ):  # a bad byte in every second piece; where there are few, they may all have come from the honest one
        assert banned
        assert 1 <= reports[-1].banned_peers <= len(banned)  # the last report may be older than the last ban


async def test_who_was_banned_where_several_could_be_to_blame_gets_a_chance_alone(world: World, shard: Shard) -> None:
    seeds = [await world.session(f"seed-{index}", upload_limit_bytes_per_s=8 * MB) for index in range(2)]
    for seed in seeds:
        await seed.seed(shard.torrent, shard.path, label="0")
    node = await world.session("node")
    begun = Reached(0.1)

    def tried() -> list[str]:
        return [line["peer"] for line in logs if line["event"] == "torrent_peer_tried_alone"]

    with capture_logs() as logs:
        holders = [("127.0.0.1", seed.port) for seed in seeds]
        fetch = asyncio.create_task(
            node.fetch(
                shard.torrent, world.target("n"), peers=holders, deadline_s=40, on_progress=begun, **shard.wanted()
            )
        )
        await begun.wait()
        for seed in seeds:
            await seed.remove(info_hash(shard.torrent))
        (entry,) = node._core.torrents.values()
        for host, port in holders:  # as libtorrent does where a piece that is bad had blocks of both
            node._core._take_torrent_event(entry, PeerBanned(0, host, port))
        async with asyncio.timeout(20):
            while not tried():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for seed in seeds:
            await seed.seed(shard.torrent, shard.path, label="0")
        await fetch
    assert world.target("n").read_bytes() == shard.path.read_bytes()
    assert set(tried()) <= {f"{host}:{port}" for host, port in holders}


async def test_a_seed_whose_file_rots_notices_stops_and_tells(world: World, shard: Shard) -> None:
    rotten: list[tuple[str, Path]] = []
    seed = await world.session("seed", on_rotten=lambda label, path: rotten.append((label, path)))
    node = await world.session("node", stall_timeout_s=1.0)
    with shard.path.open("r+b") as file:
        file.seek(7 * MB)
        file.write(b"rot")
    damaged = shard.path.read_bytes()
    await seed.seed(shard.torrent, shard.path, label="0")
    with pytest.raises(ShardNotFound):
        await node.fetch(
            shard.torrent, world.target("n"), peers=[("127.0.0.1", seed.port)], deadline_s=3, **shard.wanted()
        )
    assert rotten == [("0", shard.path)]
    assert seed.stats() == {}
    assert shard.path.read_bytes() == damaged
    assert not world.target("n").exists()


def start_fetcher(world: World, shard: Shard, port: int, **more: Any) -> subprocess.Popen[str]:
    job = {
        "state": str(world.folder / "killed" / "state"),
        "torrent": base64.b64encode(shard.torrent).decode(),
        "target": str(world.target("killed")),
        "sha256": shard.sha256,
        "size": shard.size,
        "port": port,
    } | more
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.torrent_fetcher", json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


async def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 30)
    facts: dict[str, Any] = json.loads(line) if line else {}
    return facts


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
async def test_kill_9_at_any_share_costs_next_to_nothing(world: World, tmp_path: Path, share: float) -> None:
    shard = make_shard(tmp_path / "origin", 30 * MB)
    seed, quick = await world.session("seed", upload_limit_bytes_per_s=RATE), await world.session("quick")
    await seed.seed(shard.torrent, shard.path, label="0")
    await quick.seed(shard.torrent, shard.path, label="0")
    process = start_fetcher(world, shard, seed.port)
    try:
        had = 0
        while had < shard.size * share:
            had = (await report_of(process))["bytes_done"]
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        assert process.stdout is not None
        process.stdout.close()
    if world.target("killed").exists():  # killed a moment after the end: then it must be whole
        assert share >= 0.9
        assert world.target("killed").read_bytes() == shard.path.read_bytes()
    node = await world.session("killed")
    reports: list[TorrentStats] = []
    await node.fetch(
        shard.torrent,
        world.target("killed"),
        peers=[("127.0.0.1", quick.port)],
        on_progress=reports.append,
        **shard.wanted(),
    )
    fetched_again = (reports[-1].downloaded_bytes if reports else 0) - (shard.size - had)
    print(f"killed at {had} of {shard.size} bytes, {fetched_again} fetched again")  # noqa: T201 - a figure of table B
    assert world.target("killed").read_bytes() == shard.path.read_bytes()
    # What came since the last flush is lost; on a busy machine that may be some time ago.
    assert fetched_again < shard.size // 2


async def fetch_after_the_kill(world: World, shard: Shard) -> list[TorrentStats]:
    """Fetch, from a quick seed, into the place where the killed process worked. Returns: the reports."""
    quick, node = await world.session("quick"), await world.session("killed")
    await quick.seed(shard.torrent, shard.path, label="0")
    reports: list[TorrentStats] = []
    target = world.target("killed")
    holders = [("127.0.0.1", quick.port)]
    await node.fetch(shard.torrent, target, peers=holders, deadline_s=30, on_progress=reports.append, **shard.wanted())
    assert target.read_bytes() == shard.path.read_bytes()
    assert [path.name for path in target.parent.iterdir() if path.is_file()] == ["shard-0.gguf"]
    assert not list((world.folder / "killed" / "state").rglob("*.tmp"))
    return reports


async def run_until_it_kills_itself(world: World, shard: Shard, port: int, **job: Any) -> None:
    process = await asyncio.to_thread(start_fetcher, world, shard, port, **job)
    try:
        await asyncio.wait_for(asyncio.to_thread(process.communicate), 60)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "moment", ["verified, not flushed", "flushed, not compared with the manifest", "renamed, the folder not synced"]
)
async def test_kill_9_between_the_last_piece_and_the_end_leaves_what_the_next_fetch_makes_whole(
    world: World, tmp_path: Path, moment: str
) -> None:
    shard = make_shard(tmp_path / "origin", 30 * MB)
    # How much is lost between two flushes depends on how quickly it comes; behind the last flush it does not matter.
    rate = RATE if moment == "verified, not flushed" else 0
    seed = await world.session("seed", upload_limit_bytes_per_s=rate)
    await seed.seed(shard.torrent, shard.path, label="0")
    await run_until_it_kills_itself(world, shard, seed.port, die_at=moment)
    assert world.target("killed").exists() == (moment == "renamed, the folder not synced")
    reports = await fetch_after_the_kill(world, shard)
    fetched_again = max((report.downloaded_bytes for report in reports), default=0)
    print(f"killed when {moment}: {fetched_again} of {shard.size} bytes fetched again")  # noqa: T201 - a figure of table B
    if moment != "verified, not flushed":
        assert fetched_again == 0
    assert fetched_again < shard.size // 2


async def test_kill_9_while_resume_data_is_written_costs_a_look_at_the_bytes_and_nothing_else(
    world: World, shard: Shard
) -> None:
    seed = await world.session("seed", upload_limit_bytes_per_s=RATE)
    await seed.seed(shard.torrent, shard.path, label="0")
    await run_until_it_kills_itself(world, shard, seed.port, die_at="resume data half written", cancel_at=0.5)
    assert list((world.folder / "killed" / "state").rglob("*.tmp"))
    reports = await fetch_after_the_kill(world, shard)
    assert reports[-1].downloaded_bytes <= 0.52 * shard.size


@pytest.mark.parametrize("damage", ["cut short", "no bencoding", "bencoded, but no resume data"])
async def test_damaged_resume_data_is_as_good_as_none(world: World, shard: Shard, damage: str) -> None:
    seed = await world.session("seed", upload_limit_bytes_per_s=RATE)
    await seed.seed(shard.torrent, shard.path, label="0")
    async with AsyncExitStack() as stack:
        node = await World(world.folder, stack).session("killed")
        half = Reached(0.5)
        fetch = asyncio.create_task(
            node.fetch(
                shard.torrent,
                world.target("killed"),
                peers=[("127.0.0.1", seed.port)],
                on_progress=half,
                **shard.wanted(),
            )
        )
        await half.wait()
        fetch.cancel()
        with suppress(asyncio.CancelledError):
            await fetch
    (resume,) = (world.folder / "killed" / "state").rglob("*.resume")
    whole = resume.read_bytes()
    match damage:
        case "cut short":
            resume.write_bytes(whole[: len(whole) // 2])
        case "no bencoding":
            resume.write_bytes(b"\x00" * len(whole))
        case _:
            document: Any = lt.bdecode(whole)
            resume.write_bytes(lt.bencode({b"resume": b"d4:junki1ee", b"stamp": document[b"stamp"]}))
    reports = await fetch_after_the_kill(world, shard)
    assert reports[-1].downloaded_bytes <= 0.52 * shard.size


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB of its own."""
    with small_disk(tmp_path / "small", "32m"):
        yield tmp_path / "small"


async def test_too_small_a_disk_is_refused_before_the_first_byte(world: World, disk: Path, tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "origin", 40 * MB)
    node = await world.session("node")
    with pytest.raises(NoRoomError, match="are free") as caught:
        await node.fetch(shard.torrent, disk / "shard-0.gguf", **shard.wanted())
    assert caught.value.facts["needed_bytes"] == shard.size
    assert os.listdir(disk) == []  # noqa: PTH208 - a folder of nothing


async def test_a_disk_that_fills_up_on_the_way_is_a_clear_error_and_no_loss(
    world: World, disk: Path, shard: Shard
) -> None:
    seed = await world.session("seed", upload_limit_bytes_per_s=8 * MB)
    node = await world.session("node")
    await seed.seed(shard.torrent, shard.path, label="0")
    target, holders = disk / "shard-0.gguf", [("127.0.0.1", seed.port)]
    begun = Reached(0.2)
    fetch = asyncio.create_task(
        node.fetch(shard.torrent, target, peers=holders, deadline_s=30, on_progress=begun, **shard.wanted())
    )
    await begun.wait()
    hog = disk / "hog"
    fill(hog, 1 << 16)
    with pytest.raises(NoRoomError, match="is full"):
        await fetch
    assert not target.exists()
    assert node.stats() == {}
    hog.unlink()
    quick = await world.session("quick")
    await quick.seed(shard.torrent, shard.path, label="0")
    reports: list[TorrentStats] = []
    holders = [("127.0.0.1", quick.port)]
    await node.fetch(shard.torrent, target, peers=holders, deadline_s=30, on_progress=reports.append, **shard.wanted())
    assert target.read_bytes() == shard.path.read_bytes()
    assert reports[-1].downloaded_bytes < 0.9 * shard.size


async def test_a_disk_that_is_full_when_resume_data_is_written_costs_a_look_at_the_bytes_and_nothing_else(
    world: World, disk: Path, shard: Shard
) -> None:
    (world.folder / "node").mkdir()
    (world.folder / "node" / "state").symlink_to(disk)  # the shard itself goes to a disk with room
    seed = await world.session("seed", upload_limit_bytes_per_s=RATE)
    node = await world.session("node")
    await seed.seed(shard.torrent, shard.path, label="0")
    target, holders = world.target("node"), [("127.0.0.1", seed.port)]
    fill(disk / "hog")
    half = Reached(0.5)
    fetch = asyncio.create_task(node.fetch(shard.torrent, target, peers=holders, on_progress=half, **shard.wanted()))
    await half.wait()
    fetch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetch
    assert node.stats() == {}
    assert os.listdir(disk / "resume") == []  # noqa: PTH208 - a folder of nothing
    reports: list[TorrentStats] = []
    await node.fetch(shard.torrent, target, peers=holders, deadline_s=30, on_progress=reports.append, **shard.wanted())
    assert target.read_bytes() == shard.path.read_bytes()
    assert reports[-1].downloaded_bytes <= 0.52 * shard.size


async def test_cancelling_at_any_moment_leaves_a_state_from_which_the_next_fetch_succeeds(
    world: World, shard: Shard
) -> None:
    seed, node = await world.session("seed"), await world.session("node")
    await seed.seed(shard.torrent, shard.path, label="0")
    target, holders = world.target("node"), [("127.0.0.1", seed.port)]
    chance = random.Random(7)
    for _ in range(12):
        fetch = asyncio.create_task(node.fetch(shard.torrent, target, peers=holders, **shard.wanted()))
        await asyncio.sleep(chance.uniform(0, 0.3))
        fetch.cancel()
        with suppress(asyncio.CancelledError):
            await fetch
        assert not target.exists() or target.read_bytes() == shard.path.read_bytes()
    await node.fetch(shard.torrent, target, peers=holders, deadline_s=30, **shard.wanted())
    assert target.read_bytes() == shard.path.read_bytes()


async def test_a_seed_whose_file_cannot_be_read_for_a_moment_is_not_taken_for_rotten(
    world: World, shard: Shard
) -> None:
    rotten: list[str] = []
    gone = asyncio.Event()
    seed = await world.session(
        "seed", on_rotten=lambda label, _path: rotten.append(label), on_unreadable=lambda _label, _path: gone.set()
    )
    node = await world.session("node", stall_timeout_s=1.0)
    await seed.seed(shard.torrent, shard.path, label="0")
    folder, away = shard.path.parent, shard.path.parent.with_name("away")
    folder.rename(away)
    peers = [("127.0.0.1", seed.port)]
    fetch = asyncio.create_task(
        node.fetch(shard.torrent, world.target("n"), peers=peers, deadline_s=60, **shard.wanted())
    )
    async with asyncio.timeout(30):
        await gone.wait()
    assert seed.stats() == {}
    away.rename(folder)
    await seed.seed(shard.torrent, shard.path, label="0")
    await fetch
    assert rotten == []
    assert world.target("n").read_bytes() == shard.path.read_bytes()
