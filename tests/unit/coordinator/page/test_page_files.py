"""What the page is made of: little, of our own, and nothing that a text could turn into markup."""

from __future__ import annotations

import re

from shardnet.coordinator.page.endpoints import POLICY, STATIC, load_assets

MOST_BYTES = 150_000
ASSETS = load_assets()
TEXTS = {name: asset.body.decode() for name, asset in ASSETS.items()}


def test_the_page_is_small() -> None:
    assert sum(len(asset.body) for asset in ASSETS.values()) < MOST_BYTES
    assert {path.name for path in STATIC.iterdir()} == set(ASSETS)


def test_nothing_is_named_that_lies_elsewhere() -> None:
    for name, text in TEXTS.items():
        addresses = set(re.findall(r"https?://[\w.-]+", text)) - {"http://www.w3.org"}
        assert not addresses, (name, addresses)


def test_no_text_ever_becomes_markup_and_nothing_stands_inline() -> None:
    for name, text in TEXTS.items():
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert sink not in text, (name, sink)
    html = TEXTS["index.html"]
    assert "<style" not in html
    assert not re.search(r"\sstyle=|\son\w+=", html)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html))
    for word in ("unsafe", "data:", "http:", "https:", "*"):
        assert word not in POLICY


def test_every_file_that_is_asked_for_is_there() -> None:
    for name, text in TEXTS.items():
        wanted = re.findall(r'from "\./([\w.]+)"', text) + re.findall(r'(?:src|href)="page/([\w.]+)"', text)
        assert set(wanted) <= set(ASSETS), name
    loaded = set(re.findall(r'(?:src|href)="page/([\w.]+)"', TEXTS["index.html"]))
    assert {name for name in ASSETS if name.endswith(".js")} <= loaded  # none is found out late


def test_every_id_that_a_script_looks_for_is_in_the_page() -> None:
    there = set(re.findall(r'id="([\w-]+)"', TEXTS["index.html"]))
    for name, text in TEXTS.items():
        wanted = set(re.findall(r'byId\("([\w-]+)"\)', text)) - {"make-token"}
        assert wanted <= there, (name, wanted - there)


def test_every_field_has_a_label() -> None:
    html = TEXTS["index.html"]
    labelled = set(re.findall(r'<label[^>]* for="([\w-]+)"', html)) | {"warnings"}
    fields = set(re.findall(r'<(?:input|select|textarea) id="([\w-]+)"', html))
    assert fields <= labelled
