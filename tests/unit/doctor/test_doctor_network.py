"""Addresses, families and proxies."""

from __future__ import annotations

from shardnet.doctor.network import (
    AddressFacts,
    FamilyFacts,
    address_findings,
    family_findings,
    look_at_address,
    look_at_families,
    proxy_findings,
)
from shardnet.messages import Address


def test_a_node_on_loopback_with_a_coordinator_elsewhere_is_told_as_the_node_itself_would() -> None:
    facts = look_at_address("a node", ("127.0.0.1", 0), None, "192.0.2.9", "node.advertise")
    (found,) = address_findings([facts])
    assert found.level == "warning"
    assert "it listens at 127.0.0.1, which only its own machine can dial: start it with --listen" in found.what


def test_an_advertised_name_that_nothing_resolves_is_a_warning() -> None:
    named = Address(host="nowhere.invalid", port=7710)
    (found,) = address_findings([look_at_address("a node", ("0.0.0.0", 7710), named, None, "node.advertise")])
    assert found.level == "warning"
    assert "node.advertise names nowhere.invalid, which nothing here can resolve" in found.what


def test_an_advertised_address_that_is_not_this_machines_is_a_note() -> None:
    named = Address(host="192.0.2.77", port=7710)
    (found,) = address_findings([look_at_address("a node", ("0.0.0.0", 7710), named, None, "node.advertise")])
    assert found.level == "note"
    assert "192.0.2.77:7710" in found.what
    assert "port forwarding" in found.remedy


def test_a_node_for_this_machine_alone_is_well() -> None:
    (found,) = address_findings([AddressFacts("a node", "127.0.0.1", is_private=True)])
    assert found.level == "ok"


def test_a_listening_address_without_its_family_is_a_fault() -> None:
    assert family_findings(FamilyFacts(has_ipv6=False, own_ipv4="10.0.0.1", listens=("::",)))[0].level == "fault"
    assert family_findings(FamilyFacts(has_ipv6=False, own_ipv4="10.0.0.1", listens=("0.0.0.0",)))[0].level == "ok"
    assert family_findings(FamilyFacts(has_ipv6=True))[0].level == "note"
    assert look_at_families(("127.0.0.1",)).listens == ("127.0.0.1",)


def test_a_proxy_that_would_take_calls_of_this_machines_api_is_a_warning() -> None:
    (found,) = proxy_findings({"http_proxy": "http://proxy:3128"}, "127.0.0.1")
    assert found.level == "warning"
    assert "export NO_PROXY=127.0.0.1" in found.remedy
    bypassed = {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "localhost,127.0.0.1"}
    assert proxy_findings(bypassed, "127.0.0.1")[0].level == "ok"
    assert proxy_findings({"https_proxy": "http://proxy:3128"}, "127.0.0.1")[0].level == "ok"
