"""Whether anybody could be asked at a web address. The HTTP library and the resolver find out when it is too late to say so in one sentence.

Refuses to know what is asked there.
"""

from __future__ import annotations

from urllib.parse import urlsplit


def has_host(url: str) -> bool:
    """Returns: whether an address names a host, and no port that means none. Raises: ValueError for a host or a port that cannot be."""
    import httpx  # takes its time, and not everybody who may be given an address is

    parts = urlsplit(url)
    try:
        name = httpx.URL(url).host and httpx.URL(url).raw_host.decode()  # httpx decodes the host,
        name.encode("idna")  # and the resolver encodes it
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(str(error)) from error
    return bool(name) and parts.port != 0
