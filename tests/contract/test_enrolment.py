"""Joining by token: once, in time, at the right swarm, and with a clear word in every other case."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shardnet.errors import PeerRefused, SettingsError, ShardnetError, UnreachableError
from shardnet.messages import Address
from shardnet.swarm import authority, enrol_lines
from shardnet.swarm.addresses import read_coordinator_addresses, write_coordinator_addresses
from shardnet.swarm.enrol import enrol
from shardnet.swarm.enrol_service import EnrolmentServer
from shardnet.swarm.home import Home, read_records
from shardnet.swarm.identity import claim_identity, open_swarm
from shardnet.swarm.membership import follow_revocations, invite, remember_revoked, revoke
from shardnet.swarm.records import MEMBERS, REVOCATIONS
from shardnet.swarm.tokens import JoinToken
from shardnet.transport import dial, listen
from tests.support.swarm_world import LOOPS, World, hello_of, plain_client, run, until

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=sorted(LOOPS))
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[EnrolmentServer]:
    async with EnrolmentServer(world.home, world.server, LOOPBACK) as server:
        yield server


def token_for(world: World, address: Address, lifetime_s: float = 3600) -> JoinToken:
    return invite(open_swarm(world.home), address, lifetime_s=lifetime_s)


async def failure(token: JoinToken, home: Path, name: str = "node") -> ShardnetError:
    with pytest.raises(ShardnetError) as caught:
        (await enrol(token, Home(home), name)).release()
    return caught.value


def test_a_new_machine_joins_and_takes_part(world: World, loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        write_coordinator_addresses(world.home, nodes=Address(host="127.0.0.1", port=7070))
        async with serving(world) as server:
            identity = await enrol(token_for(world, server.address), Home(tmp_path / "new"), "laptop")
        with identity:
            assert identity.name == "laptop"
            assert identity.swarm.swarm_id == world.server.swarm.swarm_id
            assert identity.swarm.swarm_key == world.server.swarm.swarm_key
            assert not identity.is_owner
            assert read_records(world.home.members, MEMBERS, {})[identity.node_id].how == "invited"
            assert read_coordinator_addresses(identity.home).nodes == Address(host="127.0.0.1", port=7070)
            for key in (identity.key_path, identity.home.swarm_key):
                assert stat.S_IMODE(key.stat().st_mode) == 0o600
            async with await listen(world.server, LOOPBACK, world.on_hello) as listener:
                connection = await dial(identity, listener.address, hello_of(identity))
                await connection.close()

    run(loop, main())


def test_machines_with_one_host_name_are_told_apart_by_number(
    world: World, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every invited machine was called `node`."""
    monkeypatch.setattr(socket, "gethostname", lambda: "raspberrypi.local")

    async def main() -> None:
        async with serving(world) as server:
            for number, expected in enumerate(["raspberrypi", "raspberrypi-2", "raspberrypi-3"]):
                home = Home(tmp_path / f"home-{number}")
                with await enrol(token_for(world, server.address), home) as identity:
                    assert identity.name == identity.key_path.parent.name == expected
                    assert read_records(world.home.members, MEMBERS, {})[identity.node_id].name == expected
                    assert [one.name for one in read_records(home.members, MEMBERS, {}).values()] == [expected]
                with claim_identity(home, None, "node") as again:  # what `shardnet node` does
                    assert again.name == expected
            revoke(open_swarm(world.home), "raspberrypi-2")
            with await enrol(token_for(world, server.address), Home(tmp_path / "home-9")) as identity:
                assert identity.name == "raspberrypi-2"  # nobody living has it

    run(loop, main())


def test_a_token_lets_in_one_machine_once(world: World, loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(world) as server:
            token = token_for(world, server.address)
            (await enrol(token, Home(tmp_path / "first"))).release()
            with capture_logs() as logs:
                error = await failure(token, tmp_path / "second")
            assert isinstance(error, PeerRefused)
            assert "this join token was already used at " in str(error)
            assert "ask the swarm's owner for another" in str(error)
            assert [entry["event"] for entry in logs] == ["enrolment_refused"]
            assert not Home(tmp_path / "second").has_swarm
            (
                await enrol(token, Home(tmp_path / "first"))
            ).release()  # the same machine again: its answer may have been lost

    run(loop, main())


def test_of_many_who_hold_the_same_token_one_is_let_in(world: World, loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(world) as server:
            token = token_for(world, server.address)
            results = await asyncio.gather(
                *(enrol(token, Home(tmp_path / f"home-{number}")) for number in range(8)), return_exceptions=True
            )
            joined = [one for one in results if not isinstance(one, BaseException)]
            assert len(joined) == 1
            joined[0].release()
            assert all("already used" in str(one) for one in results if isinstance(one, BaseException))

    run(loop, main())


def test_an_expired_token_is_refused_here_and_by_the_service(
    world: World, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(world) as server:
            token = token_for(world, server.address, lifetime_s=-1)
            assert "this join token expired at " in str(await failure(token, tmp_path / "new"))
            monkeypatch.setattr(JoinToken, "check_fresh", lambda *_: None)  # a machine whose clock is wrong
            error = await failure(token, tmp_path / "new")
            assert isinstance(error, PeerRefused)
            assert "this join token expired at " in str(error)
            assert "shardnet swarm invite" in str(error)

    run(loop, main())


def test_a_token_with_a_guessed_secret_is_refused(world: World, loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(world) as server:
            real = token_for(world, server.address)
            forged = JoinToken(real.address, real.ca_sha256, b"\0" * 16, real.expires_at_s)
            assert "never made this join token" in str(await failure(forged, tmp_path / "new"))

    run(loop, main())


def test_the_secret_is_told_to_nobody_but_the_tokens_swarm(
    world: World, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def main() -> None:
        monkeypatch.setattr("shardnet.swarm.enrol_service.admit", lambda *args: asked.append(args))
        async with EnrolmentServer(world.other, world.stranger, LOOPBACK) as imposter:
            error = await failure(token_for(world, imposter.address), tmp_path / "new")
            assert isinstance(error, PeerRefused)
            assert "is not the swarm that this token invites to: nothing was told to it" in str(error)
        assert asked == []

    run(loop, main())


def test_a_member_cannot_pose_as_the_enrolment_service(world: World, loop: str, tmp_path: Path) -> None:
    """It has the swarm's certificate and one of its own: still not the mark that only the owner can give."""
    heard: list[bytes] = []

    async def main() -> None:
        async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ca = world.client.swarm.ca_pem.decode()
            writer.write(enrol_lines.Authority(certificate=ca).model_dump_json().encode() + b"\n")
            heard.append(await reader.read())
            writer.close()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(world.client.certificate_path, world.client.key_path)
        server = await asyncio.start_server(pose, "127.0.0.1", 0, ssl=context)
        address = Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        error = await failure(token_for(world, address), tmp_path / "new")
        assert "is not the swarm that this token invites to" in str(error)
        await until(lambda: heard == [b""])
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_a_wrong_or_dead_address_is_named(world: World, loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(world) as server:
            gone = server.address
        error = await failure(token_for(world, gone), tmp_path / "new")
        assert type(error) is UnreachableError
        assert f"nothing answers at {gone}" in str(error)
        async with await listen(world.server, LOOPBACK, world.on_hello) as nodes:
            error = await failure(token_for(world, nodes.address), tmp_path / "new")
            assert type(error) is UnreachableError
            assert str(nodes.address) in str(error)
            assert "is the token's address right?" in str(error)

    run(loop, main())


def test_a_home_of_another_swarm_is_left_alone_unless_told(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as server:
            token = token_for(world, server.address)
            before = world.other.ca_certificate.read_bytes()
            error = await failure(token, world.other.path)
            assert isinstance(error, SettingsError)
            assert "already belongs to swarm" in str(error)
            assert "--replace" in str(error)
            with pytest.raises(SettingsError, match="in use by another running daemon"):
                await enrol(token, world.other, replace=True)  # world.stranger runs there
            world.stranger.release()
            (await enrol(token, world.other, replace=True)).release()
            (aside,) = world.other.path.glob("before-join-*")
            assert (aside / "swarm" / "ca.pem").read_bytes() == before
            assert open_swarm(world.other).swarm_id == world.server.swarm.swarm_id

    run(loop, main())


def test_the_owners_own_machine_needs_no_token(world: World, loop: str) -> None:
    async def main() -> None:
        async with serving(world) as server:
            error = await failure(token_for(world, server.address), world.home.path)
            assert "owns this swarm: its daemons need no token" in str(error)

    run(loop, main())


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"{}\n",
        b"x" * 40_000,
        b'{"type":"REQUEST"}\n',
        b"\xff\n",
        b'{"type":"REQUEST","secret":"' + b"A" * 17_000,
    ],
)
def test_nonsense_ends_the_exchange_with_one_log_line(world: World, loop: str, data: bytes) -> None:
    async def main() -> None:
        async with serving(world) as server:
            with capture_logs() as logs:
                reader, writer = await asyncio.open_connection(
                    server.address.host, server.address.port, ssl=plain_client(), server_hostname=""
                )
                writer.write(data)
                await asyncio.gather(reader.read(), return_exceptions=True)
                writer.transport.abort()
                await until(lambda: bool(logs))
            assert [entry["event"] for entry in logs] == ["enrolment_refused"]

    run(loop, main())


def test_a_silent_newcomer_is_let_go_and_does_not_block_others(
    world: World, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrol_lines, "STEP_TIMEOUT_S", 0.5)

    async def main() -> None:
        async with serving(world) as server:
            began_s = time.monotonic()
            mute = [
                await asyncio.open_connection(
                    server.address.host, server.address.port, ssl=plain_client(), server_hostname=""
                )
                for _ in range(20)
            ]
            (await enrol(token_for(world, server.address), Home(tmp_path / "new"))).release()
            for reader, writer in mute:
                await asyncio.gather(reader.read(), return_exceptions=True)
                writer.transport.abort()
            assert time.monotonic() - began_s < 8

    run(loop, main())


def test_a_request_for_another_kind_of_key_is_refused(world: World) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(ShardnetError, match="not an ECDSA P-256 key"):
        authority.key_of_request(authority.to_pem(request).decode())
    with pytest.raises(ShardnetError, match="malformed"):
        authority.key_of_request("no request")


def test_a_revocation_by_another_process_reaches_a_running_daemon(world: World, loop: str) -> None:
    async def main() -> None:
        changes: list[frozenset[str]] = []
        following = asyncio.ensure_future(follow_revocations(world.server, changes.append, interval_s=0.02))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(revoke, open_swarm(world.home), world.client.node_id)
        await until(lambda: world.client.node_id in world.server.revoked)
        world.home.revoked.write_text("{")
        await asyncio.sleep(0.1)
        assert world.server.revoked == {world.client.node_id}, "a damaged file lets nobody back in"
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert changes == [frozenset({world.client.node_id})]

    run(loop, main())


def test_a_revoked_key_cannot_join_again(world: World, loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(world) as server:
            home = tmp_path / "new"
            with await enrol(token_for(world, server.address), Home(home)) as identity:
                revoke(open_swarm(world.home), identity.node_id)
            error = await failure(token_for(world, server.address), home, identity.name)
            assert "was revoked" in str(error)

    run(loop, main())


def test_guests_remember_whom_the_coordinator_revoked(world: World, loop: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(world) as server:
            with await enrol(token_for(world, server.address), Home(tmp_path / "new")) as guest:
                remember_revoked(guest, frozenset({"a" * 40}))
                remember_revoked(world.server, frozenset({"a" * 40}))
            kept = read_records(guest.home.revoked, REVOCATIONS, {})
            assert set(kept) == {"a" * 40}
            assert not world.home.revoked.exists(), "the owner's own file is the authority"
            with claim_identity(guest.home, None, "node") as again:
                assert again.revoked == {"a" * 40}

    run(loop, main())


async def shardnet(home: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shardnet",
        *arguments,
        env=os.environ | {"SHARDNET_HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.integration
def test_a_machine_whose_name_was_taken_is_told_what_it_is_called(world: World, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(world) as server:
            (await enrol(token_for(world, server.address), Home(tmp_path / "first"), "laptop")).release()
            token = str(token_for(world, server.address))
            code, told, _ = await shardnet(tmp_path / "twin", "join", token, "--name", "laptop")
        assert code == 0
        assert "as laptop-2 (" in told
        assert "Another member is called laptop" in told

    run("asyncio", main(), within_s=60)


@pytest.mark.integration
def test_the_commands_from_init_to_revoke(tmp_path: Path) -> None:
    owner, guest = tmp_path / "owner", tmp_path / "guest"

    async def main() -> None:
        assert (await shardnet(owner, "swarm", "list"))[0] == 5
        code, out, _ = await shardnet(owner, "swarm", "init", "--json")
        assert code == 0
        swarm_id = json.loads(out)["swarm_id"]
        code, _, err = await shardnet(owner, "swarm", "init")
        assert (code, "already owns swarm" in err) == (2, True)
        code, _, err = await shardnet(owner, "swarm", "invite")
        assert (code, "give --address HOST:PORT" in err) == (2, True)

        with claim_identity(Home(owner), None, "coordinator") as coordinator:
            async with EnrolmentServer(Home(owner), coordinator, LOOPBACK) as server:
                write_coordinator_addresses(
                    Home(owner), nodes=Address(host="127.0.0.1", port=7070), enrol=server.address
                )
                code, out, err = await shardnet(owner, "swarm", "invite")
                assert code == 0
                assert "this machine only" in err
                assert "called by its host name" in err
                token = out.strip()
                code, out, err = await shardnet(guest, "join", token, "--name", "laptop", "--json")
                assert code == 0, err
                joined = json.loads(out)
                assert (joined["swarm_id"], joined["coordinator"]) == (swarm_id, "127.0.0.1:7070")
                code, _, err = await shardnet(tmp_path / "third", "join", token)
                assert (code, "already used at" in err) == (5, True)
                code, _, err = await shardnet(tmp_path / "third", "join", token[:-9])
                assert (code, "mistyped or cut off" in err) == (2, True)
                code, out, _ = await shardnet(owner, "swarm", "invite", "--expires", "1s", "--json")
                await asyncio.sleep(max(0, json.loads(out)["expires_at_s"] - time.time() + 0.05))
                code, _, err = await shardnet(tmp_path / "third", "join", json.loads(out)["token"])
                assert (code, "expired at" in err) == (5, True)
                assert "Traceback" not in err

        code, out, _ = await shardnet(owner, "swarm", "list", "--json")
        names = {member["node_id"]: member["name"] for member in json.loads(out)["members"]}
        assert names[joined["node_id"]] == "laptop"
        assert (await shardnet(owner, "swarm", "revoke", "laptop"))[0] == 0
        code, out, _ = await shardnet(owner, "swarm", "list")
        assert "REVOKED" in out
        code, _, err = await shardnet(guest, "swarm", "revoke", "laptop")
        assert (code, "only the machine that made the swarm" in err) == (2, True)
        code, _, err = await shardnet(owner, "swarm", "revoke", "nobody")
        assert (code, "no node of this swarm is called 'nobody'" in err) == (2, True)

    run("asyncio", main(), within_s=60)
