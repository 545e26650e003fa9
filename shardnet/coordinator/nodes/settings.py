"""What can be said of the ports where the coordinator is found."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from shardnet.dht.settings import DhtSettings
from shardnet.settings import Section, as_fault
from shardnet.swarm.addresses import parse_host_port
from shardnet.swarm.whereabouts import advertised_address


class ListenSettings(Section):
    """Where the coordinator listens. Beyond loopback only where it is told so."""

    nodes: str = Field(default="127.0.0.1:7700", description="HOST:PORT for TLS links of nodes; port 0: any free one")
    advertise: str | None = Field(
        default=None,
        description="HOST:PORT at which nodes reach `nodes`, behind port forwarding; not set: where it listens",
    )
    enrol: str = Field(
        default="127.0.0.1:7701", description='HOST:PORT that takes in machines with a join token; "": nowhere'
    )
    api: str = Field(default="127.0.0.1:8080", description="HOST:PORT of the HTTP API (plain HTTP)")

    @field_validator("nodes", "api", "enrol")
    @classmethod
    def _are_addresses(cls, text: str, info: ValidationInfo) -> str:
        with as_fault():
            if text or info.field_name != "enrol":
                parse_host_port(text)
        return text

    @field_validator("advertise")
    @classmethod
    def _nodes_can_dial_it(cls, text: str | None) -> str | None:
        with as_fault():
            if text is not None:
                advertised_address(text, "listen.advertise")
        return text


class CoordinatorDhtSettings(DhtSettings):
    """Where nodes meet."""

    enabled: bool = Field(default=True, description="take part in the DHT, as the place where nodes begin")
    listen_host: str = Field(default="", description="IP address of the UDP socket; empty: the host of listen.nodes")
    listen_port: int = Field(default=7702, ge=0, le=65535, description="UDP port; 0: any free one")
