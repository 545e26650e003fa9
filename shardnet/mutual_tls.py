"""The rules of every TLS context in shardnet: version 1.3 alone, and members of the swarm at both ends. For daemons and their engines alike."""

from __future__ import annotations

import ssl
from os import PathLike


def modern(context: ssl.SSLContext) -> ssl.SSLContext:
    """Returns: the context, for TLS 1.3 alone. Without session tickets: links live long, and each ticket would be two more writes."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def mutual_context(
    *, is_server: bool, authority: str, certificate: str | PathLike[str], key: str | PathLike[str]
) -> ssl.SSLContext:
    """Returns: a context that shows a certificate and takes members of the swarm only. Reads two files.

    Args:
        authority: the certificate of the swarm's authority, PEM.

    Raises: OSError for files that cannot be used.
    """
    context = modern(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = False  # nodes have no names; the key says who it is
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority)
    context.load_cert_chain(certificate, key)
    return context
