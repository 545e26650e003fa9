"""Addresses: which are taken, what is shown of them, and where a token may go."""

from __future__ import annotations

import pytest

from shardnet.errors import SettingsError, UnreachableError, UsageError
from shardnet.inference.remote.address import TOKEN_VARIABLE, is_url, parse_address, token_for


def test_only_http_and_https_are_addresses() -> None:
    assert is_url("HTTPS://host/m.gguf")
    assert not is_url("models/http/m.gguf")


def test_a_signature_is_sent_but_never_shown() -> None:
    address = parse_address("https://host/a/m%20x.gguf?signature=secret#top")
    assert address.shown == "https://host/a/m%20x.gguf"
    assert address.url == "https://host/a/m%20x.gguf?signature=secret"
    assert address.name == "m x.gguf"
    assert address.beside("n.gguf").url == "https://host/a/n.gguf?signature=secret"
    assert address.key == parse_address("https://host/a/m%20x.gguf?signature=other").key


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://host", "names no file"),
        ("https://host/a/", "names no file"),
        ("https:///m.gguf", "is no usable http or https address"),
        ("https://host:99999/m.gguf", "is no usable address"),
        ("https://me:hush@host/m.gguf", "a password in an address is not taken"),
        ("https://host/m .gguf", "is no usable http or https address"),
        ("https://xn--/m.gguf", "is no usable address"),
        ("https://[v1.a]/m.gguf", "is no usable address"),
        ("https://a..b/m.gguf", "is no usable address"),
        (f"https://{'a' * 64}.org/m.gguf", "is no usable address"),
    ],
)
def test_what_names_no_file_is_refused(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        parse_address(url)
    assert "hush" not in str(refusal.value)


def test_nobody_is_led_from_https_to_http() -> None:
    with pytest.raises(UnreachableError, match=r"from https to plain http"):
        parse_address("https://host/m.gguf").redirected("http://host/m.gguf")


@pytest.mark.parametrize("location", ["http://[::1/m", "http://host:99999/m", "http://xn--/m", "http://a..b/m"])
def test_nobody_is_led_where_nobody_can_be(location: str) -> None:
    with pytest.raises(UnreachableError, match=r"http://host/m.gguf leads to "):
        parse_address("http://host/m.gguf").redirected(location)


def test_a_token_does_not_travel_unencrypted() -> None:
    environ = {TOKEN_VARIABLE: "hush"}
    assert token_for(parse_address("https://host/m.gguf"), environ) == "hush"
    assert token_for(parse_address("http://127.0.0.1:80/m.gguf"), environ) == "hush"
    with pytest.raises(SettingsError, match=r"would go to host unencrypted"):
        token_for(parse_address("http://host/m.gguf"), environ)
    with pytest.raises(SettingsError, match=r"characters that no token has"):
        token_for(parse_address("https://host/m.gguf"), {TOKEN_VARIABLE: "a\nb"})
