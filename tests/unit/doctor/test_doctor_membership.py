"""Home, keys, certificates and clock, with real files and harmless faults."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shardnet.doctor import membership
from shardnet.doctor.findings import Finding, worst
from shardnet.doctor.membership import DAY_S, CertificateFacts, ClockFacts
from shardnet.swarm import authority
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity

NOW_S = 1_800_000_000.0


def told(findings: list[Finding]) -> str:
    return " | ".join(one.line() for one in findings)


def looked(home: Home) -> str:
    return told(membership.home_findings(membership.look_at_home(home)))


@pytest.fixture
def owner(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    claim_identity(home, None, "coordinator").release()
    return home


def test_a_home_as_shardnet_makes_it_is_well_and_so_are_its_certificates(owner: Home) -> None:
    assert worst(membership.home_findings(membership.look_at_home(owner))) == "ok"
    found = membership.certificate_findings(membership.look_at_certificates(owner), time.time(), is_owner=True)
    assert [one.level for one in found] == ["ok"], told(found)


def test_a_home_that_is_not_there_is_a_note_and_one_that_cannot_be_made_a_fault(tmp_path: Path) -> None:
    assert "belongs to no swarm yet" in looked(Home(tmp_path / "none"))
    facts = membership.HomeFacts("/x", None, is_writable=False)
    assert worst(membership.home_findings(facts)) == "fault"


def test_a_key_that_others_can_read_is_a_fault_with_the_command_that_mends_it(owner: Home) -> None:
    key = next(owner.nodes.glob("*/key.pem"))
    key.chmod(0o644)
    assert f"✗ home: others can read the key file {key} (mode 0644): run `chmod 600 {key}`" in looked(owner)


def test_a_home_that_others_can_change_is_a_fault(owner: Home) -> None:
    owner.path.chmod(0o777)
    assert f"✗ home: others can change {owner.path} (mode 0777)" in looked(owner)
    owner.path.chmod(0o755)
    assert worst(membership.home_findings(membership.look_at_home(owner))) == "note"


def test_a_damaged_authority_and_a_short_swarm_key_are_told_together(owner: Home) -> None:
    owner.ca_certificate.write_text("nonsense")
    owner.swarm_key.write_bytes(b"short")
    owner.swarm_key.chmod(0o600)
    text = looked(owner)
    assert "is not a certificate" in text
    assert "holds 5 bytes instead of 32" in text


def test_a_read_only_home_and_somebody_elses_are_faults() -> None:
    for facts in (
        membership.HomeFacts("/x", 0o700, is_writable=False, swarm_id="a" * 40),
        membership.HomeFacts("/x", 0o700, is_mine=False, swarm_id="a" * 40),
    ):
        assert worst(membership.home_findings(facts)) == "fault"


def test_a_certificate_of_another_swarm_is_a_fault_on_a_members_machine_and_made_anew_at_the_owners(
    owner: Home, tmp_path: Path
) -> None:
    stranger = Home(tmp_path / "other")
    claim_identity(stranger, "node", "node").release()
    claim_identity(owner, "node", "node").release()
    (owner.nodes / "node/cert.pem").write_bytes((stranger.nodes / "node/cert.pem").read_bytes())
    found = membership.look_at_certificates(owner)
    text = told(membership.certificate_findings(found, time.time(), is_owner=False))
    assert "is no certificate of this machine's key in this swarm. Run `shardnet join TOKEN --name node`" in text
    assert worst(membership.certificate_findings(found, time.time(), is_owner=True)) == "ok"


def test_ends_and_beginnings_of_a_certificate_are_told_with_what_to_do() -> None:
    def about(begins_days: float, ends_days: float, *, is_owner: bool = False, name: str = "node") -> Finding:
        facts = CertificateFacts(name, "/x/cert.pem", NOW_S + begins_days * DAY_S, NOW_S + ends_days * DAY_S)
        return membership.certificate_findings([facts], NOW_S, is_owner=is_owner)[0]

    assert about(-10, 300).level == "ok"
    assert about(-10, 29).level == "warning"
    assert about(-10, -1).level == "fault"
    assert about(1, 300).remedy == "Correct this machine's clock"
    assert "Start that daemon again" in about(-10, -1, is_owner=True).remedy
    assert about(-10, -1, name="").level == "fault"
    assert about(-10, 100, name="").level == "warning"


def test_a_revoked_identity_is_told_before_anything_else() -> None:
    facts = CertificateFacts("node", "/x/node/cert.pem", NOW_S - DAY_S, NOW_S + DAY_S, revoked_at_s=NOW_S - 1)
    (found,) = membership.certificate_findings([facts], NOW_S, is_owner=False)
    assert "was revoked" in found.what
    assert "Move /x/node away" in found.remedy


def test_clocks_are_compared_by_the_swarms_own_rules() -> None:
    def level(ahead_s: float) -> str:
        return membership.clock_findings(ClockFacts(NOW_S, coordinator_s=NOW_S - ahead_s))[0].level

    assert [level(off) for off in (0, 4, -4)] == ["ok"] * 3
    assert [level(off) for off in (20, -20)] == ["note"] * 2
    assert [level(off) for off in (40, -40, 9e4)] == ["warning"] * 3
    assert level(-authority.BACKDATED.total_seconds() - 1) == "fault"


def test_a_clock_that_went_back_behind_its_own_files_is_a_fault(owner: Home) -> None:
    os.utime(owner.ca_certificate, (time.time() + 3 * DAY_S,) * 2)
    (found,) = membership.clock_findings(membership.look_at_clock(owner, None, 30))
    assert found.level == "fault"
    assert "files in the home were written at" in found.what
