"""Several machines on one: network namespaces, joined by a bridge in the test's own, with addresses that can change and cables that can be cut.

Only for root, and where the kernel has namespaces, bridges and pairs of virtual interfaces; elsewhere the test is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

SUBNETS = 250
"""Of 198.18.0.0/15, which is for tests of networks (RFC 2544)."""


def ip(*arguments: str) -> None:
    """Run ip(8). Raises: CalledProcessError."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Machine:
    """One of them.

    Attributes:
        address: its IPv4 address now.
        port: the bridge's end of its cable.
    """

    name: str
    address: str
    port: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Returns: what makes a command run there."""
        return ("ip", "netns", "exec", self.name)

    def ip(self, *arguments: str) -> None:
        """Run ip(8) there."""
        ip("-n", self.name, *arguments)

    def move(self, address: str) -> None:
        """It gets another address, and has the old one no more."""
        self.ip("address", "del", f"{self.address}/24", "dev", "eth0")
        self.ip("address", "add", f"{address}/24", "dev", "eth0")
        self.address = address

    def cut(self) -> None:
        """Nothing gets through any more, in either direction."""
        ip("link", "set", self.port, "down")

    def mend(self) -> None:
        """Everything gets through again."""
        ip("link", "set", self.port, "up")

    def nft(self, rules: str) -> None:
        """Load rules of nft(8) there."""
        subprocess.run([*self.prefix, "nft", "-f", "-"], input=rules, text=True, check=True, capture_output=True)


@dataclass
class Lan:
    """A network of them. `host`: the address of the test's own machine in it."""

    tag: str
    subnet: str
    subnet6: str
    machines: list[Machine] = field(default_factory=list)
    host_number: int = 1

    @property
    def host(self) -> str:
        return f"{self.subnet}.{self.host_number}"

    @property
    def host6(self) -> str:
        return f"{self.subnet6}::1"

    def move_host(self, number: int) -> None:
        """The test's own machine gets another address, and has the old one no more."""
        ip("address", "del", f"{self.host}/24", "dev", self.tag)
        self.host_number = number
        ip("address", "add", f"{self.host}/24", "dev", self.tag)

    def add(self, number: int, *, ipv6: bool = False) -> Machine:
        """A machine with that number as the last part of its address; with `ipv6`, an address of that family and no other."""
        machine = Machine(f"{self.tag}-{number}", f"{self.subnet}.{number}", f"{self.tag}p{number}")
        ip("netns", "add", machine.name)
        self.machines.append(machine)
        ip("link", "add", machine.port, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
        ip("link", "set", machine.port, "master", self.tag)
        ip("link", "set", machine.port, "up")
        machine.ip("link", "set", "lo", "up")
        machine.ip("link", "set", "eth0", "up")
        if ipv6:
            machine.address = f"{self.subnet6}::{number}"
            machine.ip("address", "add", f"{machine.address}/64", "dev", "eth0", "nodad")
        else:
            machine.ip("address", "add", f"{machine.address}/24", "dev", "eth0")
        return machine

    def add_behind(self, router: Machine, subnet: str) -> Machine:
        """A machine that only `router` reaches, in a network of their own; what becomes of its packets there is the router's business."""
        machine = Machine(f"{router.name}-in", f"{subnet}.2", f"{router.port}i")
        ip("netns", "add", machine.name)
        self.machines.append(machine)
        ip("link", "add", "inside", "netns", router.name, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
        router.ip("address", "add", f"{subnet}.1/24", "dev", "inside")
        router.ip("link", "set", "inside", "up")
        subprocess.run([*router.prefix, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True, capture_output=True)
        machine.ip("link", "set", "lo", "up")
        machine.ip("link", "set", "eth0", "up")
        machine.ip("address", "add", f"{machine.address}/24", "dev", "eth0")
        machine.ip("route", "add", "default", "via", f"{subnet}.1")
        return machine


@contextmanager
def lan() -> Iterator[Lan]:
    """A bridge with the test's own machine at it. Skips the test where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip(8), for network namespaces")
    number = os.getpid() % SUBNETS
    found = Lan(f"sn{number}", f"198.18.{number}", f"fd5e:d:{number:x}")
    try:
        ip("link", "add", found.tag, "type", "bridge", "forward_delay", "0")
        ip("address", "add", f"{found.host}/24", "dev", found.tag)
        ip("address", "add", f"{found.host6}/64", "dev", found.tag, "nodad")
        ip("link", "set", found.tag, "up")
        ip("netns", "add", f"{found.tag}-try")
        ip("netns", "del", f"{found.tag}-try")
    except (OSError, subprocess.CalledProcessError) as error:
        subprocess.run(["ip", "link", "del", found.tag], check=False, capture_output=True)
        pytest.skip(f"network namespaces cannot be made here ({error})")
    try:
        yield found
    finally:
        for machine in found.machines:
            subprocess.run(["ip", "netns", "del", machine.name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", machine.port], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", found.tag], check=False, capture_output=True)
