"""Enrolment, the newcomer's side: a join token becomes an identity. The exchange is told in `enrol_lines`."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from shardnet.errors import PeerRefused, RemoteProtocolError, SettingsError, UnreachableError
from shardnet.ids import short
from shardnet.log import get
from shardnet.messages import Address
from shardnet.mutual_tls import modern
from shardnet.swarm import authority
from shardnet.swarm.addresses import write_coordinator_addresses
from shardnet.swarm.enrol_lines import (
    MAX_LINE_BYTES,
    STEP_TIMEOUT_S,
    Admission,
    Answer,
    Authority,
    Request,
    close_line,
    read_line,
    write_line,
)
from shardnet.swarm.home import PUBLIC, Home, make_folder, write_in_home
from shardnet.swarm.identity import (
    SWARM_KEY_BYTES,
    Identity,
    add_member,
    claim_identity,
    held_folder,
    open_swarm,
    read_or_make_key,
)
from shardnet.swarm.naming import machine_name
from shardnet.swarm.tls import alert_reason
from shardnet.swarm.tokens import JoinToken

log = get("swarm")


async def enrol(token: JoinToken, home: Home, name: str | None = None, *, replace: bool = False) -> Identity:
    """Join the swarm that `token` invites to, and remember where its coordinator is.

    Args:
        name: what the member is to be called, this machine's host name if None; the swarm adds a number where a living member has that name.
        replace: move another swarm's keys in this home aside (nothing is deleted).

    Returns: the new identity, held: release it.
    Raises: PeerRefused for a token that is expired, used or unknown, and for a service that is not the swarm's; UnreachableError if nothing
        answers; SettingsError if this home belongs to another swarm already, or a daemon is running under that name.
    """
    token.check_fresh(time.time())
    name = machine_name() if name is None else name
    await asyncio.to_thread(_make_room, home, token, replace)
    with ExitStack() as held:
        folder = await asyncio.to_thread(held.enter_context, held_folder(home, name))
        key = await asyncio.to_thread(read_or_make_key, folder)
        request = authority.new_request(key)
        try:
            ca, admission = await _ask(token, request, name)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise _unreachable(token.address, error) from error
        certificate = _checked_admission(admission, ca, key)
        if admission.name is not None:
            folder = await asyncio.to_thread(_renamed, home, folder, admission.name)
        await asyncio.to_thread(_settle, home, folder, ca, admission, certificate, token.address)
    return await asyncio.to_thread(claim_identity, home, folder.name, "node")


async def _ask(token: JoinToken, request: str, name: str) -> tuple[x509.Certificate, Admission]:
    context = modern(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # checked below against the token, before anything is told
    async with asyncio.timeout(STEP_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(
            token.address.host, token.address.port, ssl=context, server_hostname="", limit=MAX_LINE_BYTES
        )
    try:
        offered = await read_line(reader, Authority)
        leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        ca = checked_authority(token, offered.certificate, leaf)
        await write_line(writer, Request(secret=base64.b64encode(token.secret).decode(), request=request, name=name))
        answer = await read_line(reader, Answer)
    except RemoteProtocolError as error:
        raise UnreachableError(
            f"{token.address} does not enrol nodes ({error}): is the token's address right?"
        ) from error
    finally:
        await close_line(writer)
    if answer.admission is None:
        raise answer.refused.to_error() if answer.refused else PeerRefused("the swarm gave no answer")
    return ca, answer.admission


def checked_authority(token: JoinToken, pem: str, leaf_der: bytes | None) -> x509.Certificate:
    """Returns: the swarm's certificate, when it is the token's and the service on the other end is that swarm's.

    Raises: PeerRefused if not; nothing secret was told by then.
    """
    imposter = (
        f"what answers at {token.address} is not the swarm that this token invites to: nothing was told to it. "
        "Check the address, or ask the swarm's owner for a new token"
    )
    try:
        ca = x509.load_pem_x509_certificate(pem.encode())
        leaf = x509.load_der_x509_certificate(leaf_der or b"")
    except ValueError:
        raise PeerRefused(imposter) from None
    is_ours = authority.fingerprint(ca) == token.ca_sha256
    if not (is_ours and authority.is_issued_by(leaf, ca) and authority.is_enrolment_service(leaf)):
        raise PeerRefused(imposter)
    if leaf.not_valid_after_utc <= datetime.now(UTC):
        raise PeerRefused(
            f"the enrolment service at {token.address} shows an expired certificate: restart the coordinator"
        )
    return ca


def _checked_admission(admission: Admission, ca: x509.Certificate, key: authority.PrivateKey) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(admission.certificate.encode())
        is_ours = authority.id_of(authority.p256(certificate.public_key())) == authority.id_of(key.public_key())
        key_bytes = len(base64.b64decode(admission.swarm_key, validate=True))
    except ValueError:
        is_ours, key_bytes = False, 0
    if not is_ours or key_bytes != SWARM_KEY_BYTES or not authority.is_issued_by(certificate, ca):
        raise PeerRefused("the swarm answered with a certificate that is not for this machine's key")
    return certificate


def _make_room(home: Home, token: JoinToken, replace: bool) -> None:
    """See to it that this home belongs to no swarm, or to the token's as a guest."""
    if not home.has_swarm:
        make_folder(home.path)
        return
    here = open_swarm(home)
    if authority.fingerprint(here.ca) == token.ca_sha256:
        if here.is_owner:
            raise SettingsError(f"{home.path} owns this swarm: its daemons need no token, just start them")
        return
    if not replace:
        raise SettingsError(
            f"{home.path} already belongs to swarm {short(here.swarm_id)}: add --replace to move its keys aside and join the other swarm, "
            "or set SHARDNET_HOME to another folder"
        )
    aside = home.path / f"before-join-{int(time.time())}"
    with ExitStack() as held:
        for path in sorted(home.nodes.glob("*/lock")):
            held.enter_context(held_folder(home, path.parent.name))
        with home.locked():
            make_folder(aside)
            for folder in (home.swarm, home.nodes):
                if folder.exists():
                    folder.rename(aside / folder.name)
    log.info("swarm_moved_aside", swarm_id=short(here.swarm_id), path=str(aside))


def _renamed(home: Home, folder: Path, name: str) -> Path:
    """Returns: the identity's folder, called as the swarm calls the member; as before if this home has that name already."""
    target = home.nodes / name
    with home.locked():
        if target.exists():
            return folder
        return folder.rename(target)  # its lock goes with it


def _settle(
    home: Home,
    folder: Path,
    ca: x509.Certificate,
    admission: Admission,
    certificate: x509.Certificate,
    service: Address,
) -> None:
    make_folder(home.swarm)
    with home.locked():
        write_in_home(folder / "cert.pem", authority.to_pem(certificate), mode=PUBLIC)
        add_member(home, authority.id_of(authority.p256(certificate.public_key())), folder.name, "invited", certificate)
        write_in_home(home.swarm_key, base64.b64decode(admission.swarm_key))
        write_in_home(home.ca_certificate, authority.to_pem(ca), mode=PUBLIC)
    if admission.nodes_port is not None:
        # The port is the coordinator's word, the host the one that this machine has just reached.
        nodes = Address(host=service.host, port=admission.nodes_port)
        write_coordinator_addresses(home, nodes=nodes, enrol=service)


def _unreachable(address: Address, error: BaseException) -> UnreachableError:
    if isinstance(error, ssl.SSLError):
        why = alert_reason(error) or "it does not speak shardnet's TLS"
        return UnreachableError(f"{address} does not enrol nodes ({why}): is the token's address right?")
    if isinstance(error, asyncio.IncompleteReadError | ConnectionResetError):
        return UnreachableError(f"{address} closed the connection before answering: is the token's address right?")
    return UnreachableError(
        f"nothing answers at {address}, where this token's swarm takes in machines: "
        "is the coordinator running, does it listen there, and is the port open in its firewall?"
    )
