"""`shardnet generate` and `shardnet status`: where they look, what they print, how they end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.cli.status import lines
from shardnet.coordinator.api.client import ApiClient, AsyncApiClient, find_api
from shardnet.errors import PlacementError, UnreachableError, UsageError
from shardnet.messages import Address
from shardnet.swarm.addresses import write_coordinator_addresses
from shardnet.swarm.home import Home
from shardnet.swarm.identity import claim_identity
from shardnet.transport import listen

ANSWERS: dict[str, tuple[int, str]] = {}
ASKED: list[dict[str, Any]] = []
"""Bodies that came."""


class Canned(BaseHTTPRequestHandler):
    """Answers each path with what the test put into ANSWERS."""

    def do_GET(self) -> None:
        status, body = ANSWERS[self.path]
        body_read = self.rfile.read(int(self.headers.get("content-length", 0)))
        ASKED.extend([json.loads(body_read)] if body_read else [])
        self.send_response(status)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    ANSWERS.clear()
    ASKED.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def stream_of(*events: dict[str, Any], done: bool = True) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if done else "")


def part(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "choices": [{"delta": {"content": text}, "finish_reason": reason} | more]}


def test_the_api_is_found_by_flag_environment_home_and_default(home: Path) -> None:
    assert find_api(None, {}, home) == "http://127.0.0.1:8080"
    write_coordinator_addresses(Home(), api=Address(host="127.0.0.1", port=1234))
    assert find_api(None, {}) == "http://127.0.0.1:1234"
    assert find_api(None, {"SHARDNET_API": "10.0.0.1:80/v1/"}) == "http://10.0.0.1:80"
    assert find_api("https://x/v1", {"SHARDNET_API": "y"}) == "https://x"


def test_generate_prints_the_answer(api: str) -> None:
    ANSWERS["/v1/chat/completions"] = 200, ": computing\n\n" + stream_of(part("Hel"), part("lo", "stop"))
    result = CliRunner().invoke(app, ["generate", "hi", "--api", api])
    assert (result.exit_code, result.stdout) == (0, "Hello\n")


def test_generate_as_json_tells_everything(api: str) -> None:
    first = {"model": "tiny", "choices": [{"text": ""}], "prompt_token_ids": [7]}
    ANSWERS["/v1/completions"] = (
        200,
        stream_of(first, {"choices": [{"text": "ab", "token_ids": [1, 2]}]}, part("", "length")),
    )
    result = CliRunner().invoke(app, ["generate", "hi", "--raw", "--json", "--api", api])
    found = json.loads(result.stdout)
    assert (found["text"], found["token_ids"], found["finish_reason"]) == ("ab", [1, 2], "length")
    assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_generate_asks_for_a_structure(api: str, tmp_path: Path) -> None:
    ANSWERS["/v1/chat/completions"] = 200, stream_of(part("1", "stop"))
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text('{"type": "integer"}')
    grammar.write_text("root ::= [a-z]+")
    for flag, given, sent in (
        ("--json-schema", str(schema), {"json_schema": {"type": "integer"}}),
        ("--json-schema", '{"type": "string"}', {"json_schema": {"type": "string"}}),
        ("--regex", "[a-z]+", {"regex": "[a-z]+"}),
        ("--grammar", str(grammar), {"grammar": "root ::= [a-z]+"}),
    ):
        assert CliRunner().invoke(app, ["generate", "hi", flag, given, "--api", api]).exit_code == 0
        assert sent.items() <= ASKED[-1].items()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["hi", "--json-schema", "{]"],
            "--json-schema is not JSON: a name in double quotes is missing (line 1, column 2)",
        ),
        (["hi", "--json-schema", "missing.json"], "--json-schema missing.json cannot be read: No such file"),
        (
            ["hi", "--json-schema", "text.txt"],
            "--json-schema text.txt is not JSON: a value is missing, or is none that JSON has (line 1, column 1)",
        ),
        (["hi", "--json-schema", '{"a":' * 3000], "--json-schema"),
        (["hi", "--grammar", "bytes.bin"], "--grammar bytes.bin is no text in UTF-8"),
        (["hi", "--grammar", "."], "--grammar . cannot be read: Is a directory"),
        (["\udcff"], "the prompt is no text in UTF-8"),
        (["hi", "--stop", "\udcff"], "--stop is no text in UTF-8"),
        (["-"], "what came from standard input is no text in UTF-8"),
    ],
)
def test_what_generate_cannot_read_is_wrong_usage_in_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("no JSON")
    Path("bytes.bin").write_bytes(b"\xff\xfe")
    result = CliRunner().invoke(app, ["generate", *arguments, "--api", "http://127.0.0.1:9"], input=b"\xff")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(said)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "\ud800"}, "prompt: is no text in UTF-8"),
        ({"temperature": float("nan")}, "temperature: cannot be sent as JSON"),
        ({"json_schema": {1, 2}}, "json_schema: cannot be sent as JSON"),
    ],
)
def test_what_json_cannot_carry_is_named_before_anything_is_sent(body: dict[str, Any], said: str) -> None:
    with ApiClient("http://127.0.0.1:9") as client, pytest.raises(UsageError, match=said):
        next(client.stream("/v1/completions", body))


def test_the_coordinators_own_error_is_raised_with_its_class(api: str) -> None:
    ANSWERS["/v1/x"] = (
        503,
        json.dumps({"error": {"message": "layers [0, 2) are missing", "shardnet_code": "NO_PLACEMENT"}}),
    )
    with ApiClient(api) as client, pytest.raises(PlacementError, match="layers"):
        list(client.stream("/v1/x", {}))


def test_an_error_in_the_middle_of_a_stream_is_raised(api: str) -> None:
    ANSWERS["/v1/x"] = (
        200,
        stream_of(part("a"), {"error": {"message": "gone", "shardnet_code": "PEER_LOST"}}, done=False),
    )
    with ApiClient(api) as client, pytest.raises(UnreachableError, match="gone"):
        list(client.stream("/v1/x", {}))


def test_a_stream_that_breaks_off_is_no_whole_answer(api: str) -> None:
    ANSWERS["/v1/x"] = 200, stream_of(part("a"), done=False)
    with ApiClient(api) as client, pytest.raises(UnreachableError, match="went away"):
        list(client.stream("/v1/x", {}))


def test_no_coordinator_is_said_with_what_to_do() -> None:
    result = CliRunner().invoke(app, ["status", "--api", "http://127.0.0.1:1"])
    assert isinstance(result.exception, UnreachableError)
    assert "shardnet coordinator" in str(result.exception)
    assert result.exception.exit_code == 5


def test_something_else_at_the_address_is_said_so(api: str) -> None:
    ANSWERS["/status"] = 200, "<html>"
    with ApiClient(api) as client, pytest.raises(UnreachableError, match="not a shardnet coordinator"):
        client.get("/status")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://x", "not reached by ftp"),
        ("unix:///run/x", "not reached by unix"),
        ("http://", "names no host"),
        ("http://x:99999", "no port 99999"),
        ("http://x:y", "is no address"),
    ],
)
def test_an_address_that_no_web_server_can_have_is_wrong_usage(address: str, reason: str) -> None:
    for command in (["status"], ["generate", "hi"]):
        result = CliRunner().invoke(app, [*command, "--api", address])
        assert isinstance(result.exception, UsageError), result.exception
        assert reason in str(result.exception)
        assert "http://HOST:PORT" in str(result.exception)
    with pytest.raises(UsageError, match="SHARDNET_API"):
        find_api(None, {"SHARDNET_API": address})


def test_a_port_that_wants_tls_is_told_from_a_coordinator_that_went_away(home: Path) -> None:
    identity = claim_identity(Home(home), None, "coordinator")
    found: list[BaseException] = []

    async def main() -> None:
        async with await listen(identity, ("127.0.0.1", 0), lambda _connection, _hello: pytest.fail("let in")) as door:
            port = door.address.port
            for command in (["status"], ["generate", "hi"]):
                for scheme in ("http", "https"):
                    arguments = [*command, "--api", f"{scheme}://127.0.0.1:{port}"]
                    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
                    assert result.exception is not None
                    found.append(result.exception)
            async with AsyncApiClient(f"http://127.0.0.1:{port}") as client:
                with pytest.raises(UnreachableError, match="wants TLS"):
                    await client.get("/status")

    with identity:
        asyncio.run(main())
    assert all(isinstance(error, UnreachableError) for error in found)
    for plain in found[::2]:
        assert "wants TLS and is not the HTTP API" in str(plain)
    for secure in found[1::2]:
        assert "write http://" in str(secure)


def test_status_shows_every_layer_and_who_holds_it() -> None:
    found = {
        "coordinator": {
            "node_id": "ab" * 20,
            "swarm_id": "cd" * 20,
            "uptime_s": 5,
            "refused": ["shard-9.gguf is a link"],
            "addresses": {"nodes": "127.0.0.1:7700", "api": "127.0.0.1:8080"},
        },
        "requests": {
            "running": 1,
            "queued": 0,
            "finished": 2,
            "failed": 0,
            "prompt_tokens": 90,
            "prefix_tokens_reused": 40,
            "prefix_hits": 1,
            "prefix_copies": 1,
            "prefix_waits": 0,
            "sequences_kept": 2,
        },
        "models": [
            {
                "model": "tiny",
                "model_id": "ef" * 32,
                "ready": False,
                "reason": "layers are missing",
                "architecture": "llama",
                "quantisation": "F16",
                "n_layers": 6,
                "n_shards": 3,
                "total_bytes": 3_000_000,
                "layers": [
                    {
                        "first": 0,
                        "end": 4,
                        "first_shard": 0,
                        "end_shard": 2,
                        "holders": [
                            {"node": "a", "state": "ready", "progress": None},
                            {"node": "b", "state": "fetch", "progress": 0.42},
                        ],
                    },
                    {"first": 4, "end": 6, "first_shard": 2, "end_shard": 3, "holders": []},
                ],
                "pipelines": [
                    [
                        {"node": "a", "layers": "[0, 4)", "relayed": False},
                        {"node": "b", "layers": "[4, 6)", "relayed": True},
                    ]
                ],
                "notes": ["a split is quicker"],
                "proved": False,
                "unproved_reason": "it was cut from an address",
            }
        ],
        "kept_out": [{"model": "m", "model_id": "ab" * 32, "reason": "model m is kept out: nobody proved it"}],
        "nodes": [],
    }
    text = "\n".join(lines(found))
    for expected in (
        "NOT READY",
        "a (ready), b (fetch 42 %)",
        "nobody",
        "a [0, 4) -> b [4, 6)",
        "No node is connected",
        "a split is quicker",
        "NOT PROVED: it was cut from an address",
        "KEPT OUT: model m is kept out: nobody proved it",
        "The coordinator's models cache: shard-9.gguf is a link",
    ):
        assert expected in text


@pytest.mark.parametrize(
    "url", ["http://", "ftp://x", "http://xn--/", "http://a..b", "http://[::1", "http://127.0.0.1:99999", "http://h:0"]
)
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"is no usable address of the HTTP API"):
        ApiClient(url)


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDNET_API__KEY", "sk-ä\n")
    with pytest.raises(UsageError, match=r"holds characters that no key has") as refusal:
        ApiClient("http://127.0.0.1:1")
    assert "ä" not in str(refusal.value)
