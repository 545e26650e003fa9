"""The page over HTTP: who may see what, what a browser is told, and a join token that lets somebody in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from shardnet.coordinator.page.endpoints import POLICY
from shardnet.swarm.api_keys import make_key
from shardnet.swarm.enrol import enrol
from shardnet.swarm.home import Home
from shardnet.swarm.tokens import parse_token
from tests.support.page_world import PageWorld, page_world

AS_JSON = {"Content-Type": "application/json"}


def client_of(world: PageWorld, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=world.url, timeout=10, trust_env=False, headers=headers)


async def test_the_page_comes_with_its_files_and_a_strict_policy(home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, client_of(world) as client:
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == POLICY
        assert page.headers["content-encoding"] == "gzip"
        script = await client.get("/page/main.js", headers={"Accept-Encoding": "identity"})
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert "content-encoding" not in script.headers
        again = await client.get("/page/main.js", headers={"If-None-Match": script.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await client.head("/")).status_code == 200
        for wrong in ("/page/none.js", "/page/..%2Fendpoints.py", "/page/%2e%2e/endpoints.py"):
            assert (await client.get(wrong)).status_code == 404
        assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 403


async def test_one_snapshot_and_a_stream_say_the_same(home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, world.node("a", 0, 1), client_of(world) as client:
        state = (await client.get("/page/state")).json()
        assert set(state) == {"picture", "pulse", "samples", "log"}
        async with client.stream("GET", "/page/events") as answer, asyncio.timeout(10):
            assert answer.headers["content-type"].startswith("text/event-stream")
            names: list[str] = []
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                elif line.startswith("data: ") and names == ["all"]:
                    found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    assert set(found) == set(state)
                if "pulse" in names:
                    break
            assert names[0] == "all"


async def test_a_key_is_wanted_for_the_state_and_not_for_the_page_that_asks_for_it(home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path, api={"key": "s3cret"}) as world, client_of(world) as client:
        for path in ("/", "/page/main.js", "/page/style.css"):
            assert (await client.get(path)).status_code == 200
        for path in ("/page/state", "/page/events"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/page/join-token", json={})).status_code == 401
        assert (await client.get("/page/state", headers={"Authorization": "Bearer s3cret"})).status_code == 200


async def test_without_the_page_there_is_none(home: Path, tmp_path: Path) -> None:
    async with page_world(tmp_path, api={"page": False}) as world, client_of(world) as client:
        assert [(await client.get(path)).status_code for path in ("/", "/page/state")] == [404, 404]


async def test_a_token_made_by_the_button_lets_a_machine_in_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with page_world(tmp_path) as world, client_of(world, Origin=world.url) as client:
        answer = await client.post("/page/join-token", json={})
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert answer.headers["cache-control"] == "no-store"
        assert made["only_this_machine"]
        token = parse_token(made["token"])
        joined = await enrol(token, Home(tmp_path / "other"), "other", replace=False)
        joined.release()
        told = json.dumps((await client.get("/page/state")).json())
        assert made["token"] not in told


async def test_a_token_is_not_made_for_everybody_who_may_ask_a_model(home: Path, tmp_path: Path) -> None:
    asks, invites = make_key(Home(), "asks"), make_key(Home(), "invites", may_invite=True)
    async with page_world(tmp_path) as world:
        proxied = {"X-Forwarded-For": "10.0.0.7"}
        async with client_of(world, Authorization=f"Bearer {asks}") as client:
            assert (await client.post("/page/join-token", json={}, headers=proxied)).status_code == 403
            elsewhere = {"Origin": "https://evil.example"}
            assert (await client.post("/page/join-token", json={}, headers=elsewhere)).status_code == 403
            plain = {"Content-Type": "text/plain"}
            assert (await client.post("/page/join-token", content=b"{}", headers=plain)).status_code == 400
            assert (await client.get("/page/join-token")).status_code in (404, 405)
        async with client_of(world, Authorization=f"Bearer {invites}") as client:
            assert (await client.post("/page/join-token", json={}, headers=proxied)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "rebound.example:8080", "Origin": "http://rebound.example:8080"},
        {"Host": "[", "Origin": "http://["},
        {"Via": "1.1 proxy"},
    ],
    ids=str,
)
async def test_no_page_of_another_site_makes_a_token_where_there_are_no_keys(
    home: Path, tmp_path: Path, headers: dict[str, str]
) -> None:
    everywhere = {"allowed_hosts": ("*",), "allowed_origins": ("*",)}
    async with page_world(tmp_path, api=everywhere) as world, client_of(world, **headers) as client:
        assert (await client.post("/page/join-token", json={})).status_code == 403


async def test_a_coordinator_that_takes_nobody_in_says_so(home: Path, tmp_path: Path) -> None:
    listen = {"nodes": "127.0.0.1:0", "api": "127.0.0.1:0", "enrol": ""}
    async with page_world(tmp_path, listen=listen) as world, client_of(world) as client:
        refused = await client.post("/page/join-token", json={})
        assert refused.status_code == 403
        assert "takes in no machines" in refused.json()["error"]["message"]
