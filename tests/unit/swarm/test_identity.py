"""The home folder: who this machine is, and who may read its keys."""

from __future__ import annotations

import hashlib
import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from shardnet.errors import SettingsError, UnreachableError, UsageError
from shardnet.swarm import authority
from shardnet.swarm.home import Home, read_records, write_in_home, write_records
from shardnet.swarm.identity import claim_identity, ensure_swarm, open_swarm
from shardnet.swarm.membership import revoke
from shardnet.swarm.records import MEMBERS, Member
from shardnet.swarm.tls import client_context, server_context


@pytest.fixture
def here(home: Path) -> Home:
    return Home(home)


def modes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def members_of(home: Home) -> list[str]:
    members = read_records(home.members, MEMBERS, {})
    return list(members)


def test_the_first_daemon_makes_the_swarm_and_asks_nothing(here: Home) -> None:
    with claim_identity(here, None, "coordinator") as coordinator, claim_identity(here, None, "node") as node:
        assert (coordinator.name, node.name) == ("coordinator", "node")
        assert coordinator.swarm.swarm_id == node.swarm.swarm_id
        assert coordinator.is_owner
        assert coordinator.node_id != node.node_id


def test_node_id_is_the_hash_of_the_public_key(here: Home) -> None:
    with claim_identity(here, None, "node") as node:
        public = x509.load_pem_x509_certificate(node.certificate_pem).public_key()
        spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert node.node_id == hashlib.sha256(spki).hexdigest()[:40]


def test_certificate_suits_tls_both_ways_and_libtorrent(here: Home) -> None:
    with claim_identity(here, None, "node") as node:
        certificate = x509.load_pem_x509_certificate(node.certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["*"]
        assert node.node_id in certificate.subject.rfc4514_string()
        assert node.swarm.swarm_id in certificate.subject.rfc4514_string()
        assert node.swarm.ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
        assert datetime.now(UTC) - certificate.not_valid_before_utc > timedelta(hours=1)
        server_context(node), client_context(node)


def test_keys_are_for_their_owner_only(here: Home) -> None:
    with claim_identity(here, None, "node"):
        found = modes(here.path)
    private = {"swarm/ca.key", "swarm/swarm.key", "nodes/node/key.pem"}
    assert {name for name, mode in found.items() if name in private and mode == "0o600"} == private


@pytest.mark.parametrize("key", ["swarm/ca.key", "swarm/swarm.key", "nodes/node/key.pem"])
def test_a_key_that_others_can_read_stops_the_start(here: Home, key: str) -> None:
    claim_identity(here, None, "node").release()
    (here.path / key).chmod(0o640)
    with pytest.raises(SettingsError, match=rf"others can read .*{key} \(mode 0640\): run `chmod 600"):
        claim_identity(here, None, "node")


def test_an_identity_is_held_by_one_process_and_kept_for_the_next(here: Home) -> None:
    first = claim_identity(here, None, "node")
    with claim_identity(here, None, "node") as second:
        assert second.name == "node-2"
    with pytest.raises(SettingsError, match=r"'node' is in use by another running daemon \(process \d+\)"):
        claim_identity(here, "node", "node")
    first.release()
    with claim_identity(here, None, "node") as again:
        assert (again.name, again.node_id) == (first.name, first.node_id)


def test_a_new_identity_is_forgotten_where_its_start_failed_and_an_old_one_is_not(here: Home) -> None:
    """A second coordinator whose ports were taken was a member for good: `coordinator-2`."""
    with claim_identity(here, None, "coordinator") as first:
        with claim_identity(here, None, "coordinator") as second:
            assert (second.name, second.is_new) == ("coordinator-2", True)
            second.forget_if_new()
        assert members_of(here) == [first.node_id]
        assert [path.name for path in here.nodes.iterdir()] == ["coordinator"]
    with claim_identity(here, None, "coordinator") as again:
        again.forget_if_new()
    assert members_of(here) == [first.node_id]


def test_a_local_daemon_does_not_take_the_name_of_an_invited_machine(here: Home) -> None:
    ensure_swarm(here)
    guest = Member(name="node", joined_at_s=0, how="invited", expires_at_s=datetime.now(UTC).timestamp() + 99)
    write_records(here.members, MEMBERS, {"a" * 40: guest})
    with claim_identity(here, None, "node") as node:
        assert node.name == "node-2"


@pytest.mark.parametrize("name", ["../x", "", ".", "a/b", "x" * 64, "-x", "a b"])
def test_a_name_cannot_lead_out_of_the_home(here: Home, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a node's name"):
        claim_identity(here, name, "node")


def _start(home: Path, gate: object, found: object) -> None:
    with claim_identity(Home(home), None, "node") as node:
        found.put((node.swarm.swarm_id, node.node_id))  # type: ignore[attr-defined]
        gate.wait()  # type: ignore[attr-defined]


def test_daemons_started_in_the_same_instant_agree_on_one_swarm(here: Home) -> None:
    spawn = multiprocessing.get_context("fork")
    gate, found = spawn.Event(), spawn.Queue()
    daemons = [spawn.Process(target=_start, args=(here.path, gate, found)) for _ in range(6)]
    for daemon in daemons:
        daemon.start()
    seen = [found.get(timeout=30) for _ in daemons]
    gate.set()
    for daemon in daemons:
        daemon.join(30)
        assert daemon.exitcode == 0
    assert len({swarm for swarm, _ in seen}) == 1
    assert len({node for _, node in seen}) == 6
    members = read_records(here.members, MEMBERS, {})
    assert set(members) == {node for _, node in seen}


def test_a_creation_that_broke_off_is_begun_again(here: Home) -> None:
    ensure_swarm(here)
    here.ca_certificate.unlink()
    with claim_identity(here, None, "node") as node:
        assert node.swarm.ca.public_key() == open_swarm(here).ca_key().public_key()


def test_certificates_are_renewed_before_they_end_and_keep_the_node_id(here: Home) -> None:
    claim_identity(here, None, "node").release()
    swarm = open_swarm(here)
    path = here.nodes / "node" / "cert.pem"
    key = x509.load_pem_x509_certificate(path.read_bytes()).public_key()
    old = authority.issue(swarm.ca_key(), swarm.ca, authority.p256(key), days=10)
    write_in_home(path, authority.to_pem(old))
    with claim_identity(here, None, "node") as node:
        renewed = x509.load_pem_x509_certificate(node.certificate_pem)
        assert renewed.public_key() == key
        assert renewed.not_valid_after_utc - datetime.now(UTC) > timedelta(days=300)


def guest(here: Home) -> Home:
    """This home without the authority's key: as a machine that joined by token has it."""
    here.ca_key.unlink()
    return here


def test_a_guest_without_certificate_is_told_to_join(here: Home) -> None:
    ensure_swarm(here)
    for name in (None, "node"):
        with pytest.raises(UnreachableError, match=r"certificate.*run `shardnet join TOKEN"):
            claim_identity(guest(here) if here.is_owner else here, name, "node")


def test_a_guest_takes_the_identities_it_was_given(here: Home) -> None:
    claim_identity(here, "laptop", "node").release()
    guest(here)
    with claim_identity(here, None, "node") as node:
        assert node.name == "laptop"
        assert not node.is_owner
        with pytest.raises(SettingsError, match=r"every identity .* in use"):
            claim_identity(here, None, "node")
        with pytest.raises(SettingsError, match="does not hold the key of swarm"):
            node.swarm.ca_key()


@pytest.mark.parametrize("days", [-1, 400])
def test_a_guest_whose_certificate_expired_is_told_so(here: Home, days: int) -> None:
    claim_identity(here, None, "node").release()
    swarm, path = open_swarm(here), here.nodes / "node" / "cert.pem"
    key = authority.p256(x509.load_pem_x509_certificate(path.read_bytes()).public_key())
    certificate = authority.issue(
        swarm.ca_key(), swarm.ca, key, days=1, now=datetime.now(UTC) - timedelta(days=2 if days < 0 else 0)
    )
    write_in_home(path, authority.to_pem(certificate))
    guest(here)
    if days < 0:
        with pytest.raises(SettingsError, match=r"expired at .*run `shardnet join TOKEN --name node`"):
            claim_identity(here, None, "node")
    else:
        claim_identity(here, None, "node").release()


def test_a_revoked_identity_does_not_start(here: Home) -> None:
    claim_identity(here, None, "node").release()
    assert revoke(open_swarm(here), "node")[2]
    with pytest.raises(SettingsError, match="was revoked at"):
        claim_identity(here, None, "node")


def test_damaged_records_name_the_file(here: Home) -> None:
    ensure_swarm(here)
    here.revoked.write_text("{")
    with pytest.raises(SettingsError, match=r"revoked\.json is damaged"):
        claim_identity(here, None, "node")


def test_a_home_that_cannot_be_made_says_which(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot create .*SHARDNET_HOME"):
        ensure_swarm(Home(tmp_path / "file" / "home"))


def test_watchers_learn_of_each_change_once(here: Home) -> None:
    with claim_identity(here, None, "node") as node:
        seen: list[frozenset[str]] = []
        unwatch = node.watch_revocations(seen.append)
        node.set_revoked(["a" * 40])
        node.set_revoked({"a" * 40})
        unwatch()
        node.set_revoked([])
        assert seen == [frozenset({"a" * 40})]


def test_a_home_without_a_swarm_makes_none_where_the_user_named_another_machines(here: Home) -> None:
    with pytest.raises(UnreachableError, match=r"no member of the swarm of alpha:7700 yet: run `shardnet join TOKEN`"):
        claim_identity(here, None, "node", peers=("127.0.0.1:7702", "alpha:7700"))
    assert not here.has_swarm
    with claim_identity(here, None, "node", peers=("localhost:7700",)) as identity:
        assert identity.name == "node"
    with claim_identity(here, None, "node", peers=("alpha:7700",)):
        assert here.has_swarm
