"""Home, keys, certificates and clock: may this machine take part in its swarm?"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from shardnet.doctor.findings import Finding
from shardnet.errors import ShardnetError
from shardnet.ids import short
from shardnet.swarm import authority
from shardnet.swarm.home import Home, read_private, read_public, read_records
from shardnet.swarm.identity import SWARM_KEY_BYTES, certificate_ends
from shardnet.swarm.records import REVOCATIONS, at

DAY_S = 86_400
SOON_S = authority.RENEW_BEFORE_DAYS * DAY_S
BACKDATED_S = authority.BACKDATED.total_seconds()
NOTICEABLE_S = 5.0
"""Clocks that differ by less than this only shuffle lines of a log."""


@dataclass(frozen=True, slots=True)
class HomeFacts:
    """The home folder.

    Attributes:
        mode: of the folder; None if it is not there.
        trouble: what cannot be read in it, a sentence each.
    """

    path: str
    mode: int | None
    is_mine: bool = True
    is_writable: bool = True
    swarm_id: str = ""
    is_owner: bool = False
    trouble: tuple[str, ...] = ()


def home_findings(facts: HomeFacts) -> list[Finding]:
    """Decide about the home folder."""
    if facts.mode is None:
        if not facts.is_writable:
            return [
                Finding(
                    "home",
                    "fault",
                    f"{facts.path} is not there and cannot be made",
                    "Set SHARDNET_HOME to a folder of yours",
                )
            ]
        return [_no_swarm(facts.path)]
    found = [Finding("home", "fault", one) for one in facts.trouble]
    if not facts.is_mine:
        found.append(
            Finding(
                "home",
                "fault",
                f"{facts.path} belongs to another user",
                "Run shardnet as that user, or set SHARDNET_HOME to a folder of yours",
            )
        )
    elif not facts.is_writable:
        found.append(
            Finding(
                "home",
                "fault",
                f"{facts.path} cannot be written to, so that no daemon can start",
                "Make it writable, or set SHARDNET_HOME to another folder",
            )
        )
    if facts.mode & 0o022:
        found.append(
            Finding(
                "home",
                "fault",
                f"others can change {facts.path} (mode {facts.mode:04o}), and with it which swarm this machine trusts",
                f"Run `chmod 700 {facts.path}`",
            )
        )
    elif facts.mode & 0o055:
        found.append(
            Finding(
                "home",
                "note",
                f"others can look into {facts.path} (mode {facts.mode:04o})",
                f"Run `chmod 700 {facts.path}`",
            )
        )
    if not facts.swarm_id and not facts.trouble:
        found.append(_no_swarm(facts.path))
    if not found:
        whose = "owns" if facts.is_owner else "is a member of"
        found.append(Finding("home", "ok", f"{facts.path} {whose} swarm {short(facts.swarm_id)}"))
    return found


def _no_swarm(path: str) -> Finding:
    return Finding(
        "home",
        "note",
        f"{path} belongs to no swarm yet",
        "The first daemon makes one; to join another machine's, run `shardnet join TOKEN`",
    )


def look_at_home(home: Home) -> HomeFacts:
    """Gather. Writes nothing."""
    path = home.path
    try:
        facts = path.stat()
    except OSError:
        parent = next((one for one in path.parents if one.exists()), Path("/"))
        return HomeFacts(str(path), None, is_writable=os.access(parent, os.W_OK | os.X_OK))
    trouble = []
    swarm_id = ""
    if home.has_swarm:
        try:
            certificate = authority.parse_certificate(read_public(home.ca_certificate), source=str(home.ca_certificate))
            swarm_id = authority.id_of(authority.p256(certificate.public_key()))
        except ShardnetError as error:
            trouble.append(str(error))
        for key in (home.swarm_key, *([home.ca_key] if home.is_owner else []), *sorted(home.nodes.glob("*/key.pem"))):
            try:
                content = read_private(key)
                if key == home.swarm_key and len(content) != SWARM_KEY_BYTES:
                    trouble.append(f"{key} holds {len(content)} bytes instead of {SWARM_KEY_BYTES}: restore it")
            except ShardnetError as error:
                trouble.append(str(error))
    return HomeFacts(
        str(path),
        facts.st_mode & 0o777,
        is_mine=facts.st_uid == os.getuid(),
        is_writable=os.access(path, os.W_OK | os.X_OK),
        swarm_id=swarm_id,
        is_owner=home.is_owner,
        trouble=tuple(trouble),
    )


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """A certificate on this machine: the swarm's own, or a member's.

    Attributes:
        name: of the identity; "" for the authority itself.
        begins_s, ends_s: Unix times.
        is_ours: made by this swarm's authority, for the key that lies beside it.
        revoked_at_s: when its owner said that it is no member any more.
    """

    name: str
    path: str
    begins_s: float = 0.0
    ends_s: float = 0.0
    is_ours: bool = True
    revoked_at_s: float | None = None


def certificate_findings(certificates: list[CertificateFacts], now_s: float, *, is_owner: bool) -> list[Finding]:
    """Decide about certificates. The owner's daemons renew their own as they start."""
    found = [one for facts in certificates for one in _about(facts, now_s, is_owner)]
    if certificates and not found:
        ends = min(certificates, key=lambda one: one.ends_s)
        found.append(
            Finding(
                "certificates",
                "ok",
                f"{len(certificates)} certificates hold; the first to end does at {at(ends.ends_s)}",
            )
        )
    return found


def _about(facts: CertificateFacts, now_s: float, is_owner: bool) -> list[Finding]:
    def finding(level: str, what: str, remedy: str) -> list[Finding]:
        return [Finding("certificates", "fault" if level == "fault" else "warning", what, remedy)]

    if not facts.name:
        if facts.ends_s <= now_s:
            return finding(
                "fault",
                f"the swarm's own certificate ended at {at(facts.ends_s)}",
                "Make a new swarm: move the home away and run `shardnet swarm init`",
            )
        if facts.begins_s > now_s:
            return finding(
                "fault",
                f"the swarm's own certificate begins at {at(facts.begins_s)} only",
                "Correct this machine's clock",
            )
        if facts.ends_s - now_s < 12 * SOON_S:
            return finding(
                "warning",
                f"the swarm's own certificate ends at {at(facts.ends_s)}",
                "Plan a new swarm: members have to join it anew",
            )
        return []
    again = f"Run `shardnet join TOKEN --name {facts.name}` with a new token from the swarm's owner"
    if facts.revoked_at_s is not None:
        return finding(
            "fault",
            f"{facts.name} was revoked at {at(facts.revoked_at_s)}",
            f"Move {Path(facts.path).parent} away and join again, or start with another --name",
        )
    if not facts.is_ours:
        if is_owner:
            return []
        return finding("fault", f"{facts.path} is no certificate of this machine's key in this swarm", again)
    if facts.begins_s > now_s:
        return finding(
            "fault",
            f"the certificate of {facts.name} begins at {at(facts.begins_s)}, and the clock here says {at(now_s)}",
            "Correct this machine's clock",
        )
    if is_owner and facts.ends_s - now_s < SOON_S:
        return finding(
            "warning",
            f"the certificate of {facts.name} ends at {at(facts.ends_s)}",
            "Start that daemon again: it makes itself a new one then",
        )
    if facts.ends_s <= now_s:
        return finding("fault", f"the certificate of {facts.name} ended at {at(facts.ends_s)}", again)
    if facts.ends_s - now_s < SOON_S:
        return finding("warning", f"the certificate of {facts.name} ends at {at(facts.ends_s)}", again)
    return []


def look_at_certificates(home: Home) -> list[CertificateFacts]:
    """Gather. Raises: SettingsError for files that cannot be read."""
    if not home.has_swarm:
        return []
    ca = authority.parse_certificate(read_public(home.ca_certificate), source=str(home.ca_certificate))
    found = [
        CertificateFacts(
            "", str(home.ca_certificate), ca.not_valid_before_utc.timestamp(), ca.not_valid_after_utc.timestamp()
        )
    ]
    revoked = read_records(home.revoked, REVOCATIONS, {})
    for path in sorted(home.nodes.glob("*/cert.pem")):
        name, source = path.parent.name, str(path)
        try:
            key = authority.parse_key(read_private(path.with_name("key.pem")), source=source)
        except ShardnetError:
            continue  # the check of the home tells of it
        node_id = authority.id_of(key.public_key())
        gone_s = revoked[node_id].revoked_at_s if node_id in revoked else None
        ends = certificate_ends(read_public(path), ca, node_id)
        if ends is None:
            found.append(CertificateFacts(name, source, is_ours=False, revoked_at_s=gone_s))
            continue
        begins = authority.parse_certificate(read_public(path), source=source).not_valid_before_utc
        found.append(CertificateFacts(name, source, begins.timestamp(), ends.timestamp(), revoked_at_s=gone_s))
    return found


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """This machine's clock.

    Attributes:
        now_s: what it says.
        written_s: when it itself last wrote a file into the home, by its own word; 0: never.
        coordinator_s: what the coordinator's says at the same moment; None: nobody could be asked.
        dht_skew_s: datagrams of the DHT that are stamped further away are refused.
    """

    now_s: float
    written_s: float = 0.0
    coordinator_s: float | None = None
    dht_skew_s: float = 30.0


def clock_findings(facts: ClockFacts) -> list[Finding]:
    """Decide about the clock."""
    if facts.written_s > facts.now_s + DAY_S:
        return [
            Finding(
                "clock",
                "fault",
                f"it says {at(facts.now_s)}, but files in the home were written at {at(facts.written_s)}",
                "Set this machine's clock, best by NTP",
            )
        ]
    if facts.coordinator_s is None:
        return [Finding("clock", "ok", f"it says {at(facts.now_s)}; there is no coordinator's to compare it with")]
    off_s = facts.now_s - facts.coordinator_s
    told = f"it is {abs(off_s):.1f} s {'ahead of' if off_s > 0 else 'behind'} the coordinator's"
    remedy = "Set both clocks, best by NTP"
    if off_s < -BACKDATED_S:
        return [Finding("clock", "fault", f"{told}: certificates that are made there are not valid here yet", remedy)]
    if abs(off_s) > facts.dht_skew_s:
        return [
            Finding(
                "clock",
                "warning",
                f"{told}: the DHT refuses what is stamped more than {facts.dht_skew_s:g} s away, so that holders are not found there",
                remedy,
            )
        ]
    if abs(off_s) > NOTICEABLE_S:
        return [Finding("clock", "note", f"{told}, which only logs show", remedy)]
    return [Finding("clock", "ok", f"{told}")]


def look_at_clock(home: Home, coordinator_s: float | None, dht_skew_s: float) -> ClockFacts:
    """Gather."""
    written = [
        path.stat().st_mtime
        for path in (home.ca_certificate, home.coordinator, *home.nodes.glob("*/cert.pem"))
        if path.exists()
    ]
    return ClockFacts(time.time(), max(written, default=0.0), coordinator_s, dht_skew_s)
