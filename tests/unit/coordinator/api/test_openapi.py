"""The OpenAPI document is valid, whole and true: it tells of every route, of every field that is read, and of what really comes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any, cast

import jsonschema
import pytest
from pydantic import BaseModel

from shardnet.coordinator.api.endpoints import Api
from shardnet.coordinator.api.openapi import page
from shardnet.coordinator.api.openapi.document import document, endpoints_of
from shardnet.coordinator.api.openapi.fields import FIELDS, REFUSED
from shardnet.coordinator.api.openapi.operations import OPERATIONS
from shardnet.coordinator.api.service import Service
from shardnet.coordinator.api.settings import ApiSettings
from shardnet.swarm.api_keys import KeyRing
from tests.support.openapi_form import DOCUMENT, closed, parts_of
from tests.support.scripted_swarm import World, events_of

API = Api(cast(Service, None), ApiSettings(), KeyRing())
ROUTES = endpoints_of(API.routes)
TOLD = document(ROUTES)
SCHEMAS: dict[str, dict[str, Any]] = TOLD["components"]["schemas"]
ASKED = {key: one.asks for key, one in OPERATIONS.items() if one.asks is not None}


# -- the document ------------------------------------------------------------------------------------------------------------


def test_the_document_has_the_form_of_openapi() -> None:
    jsonschema.validate(TOLD, DOCUMENT)
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for part in parts_of(TOLD):
        if isinstance(ref := part.get("$ref"), str):
            at: Any = TOLD
            for name in ref.removeprefix("#/").split("/"):
                at = at[name]
    names = [operation["operationId"] for methods in TOLD["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


def test_every_route_is_told_of_in_words_and_nothing_else_is() -> None:
    assert set(ROUTES) == set(OPERATIONS), "describe it in shardnet/coordinator/api/openapi/operations.py"
    assert {(method.upper(), path) for path, methods in TOLD["paths"].items() for method in methods} == set(ROUTES)
    for (_, path), operation in OPERATIONS.items():
        assert set(operation.named) == set(re.findall(r"{(\w+)}", path))


def test_a_route_that_nobody_described_still_stands_in_the_document() -> None:
    told = document([*ROUTES, ("POST", "/v1/new/{name}")])["paths"]["/v1/new/{name}"]["post"]
    assert (told["operationId"], told["tags"]) == ("POST_v1_new_name", ["Others"])


@pytest.mark.parametrize("asked", list(dict.fromkeys(ASKED.values())), ids=lambda model: model.__name__)
def test_each_field_that_a_request_has_is_told_of_in_words_and_no_other(asked: type[BaseModel]) -> None:
    told = set(SCHEMAS[asked.__name__]["properties"])
    assert told == {field.alias or name for name, field in asked.model_fields.items()} - REFUSED
    untold = {name for name in told if not SCHEMAS[asked.__name__]["properties"][name].get("description")}
    assert not untold, "say what they mean in shardnet/coordinator/api/openapi/fields.py"


def test_what_is_said_of_fields_is_said_of_fields_that_there_are() -> None:
    fields = {(name, field) for name, schema in SCHEMAS.items() for field in schema.get("properties", {})}
    for name in FIELDS:
        model, _, field = name.rpartition(".")
        assert any(field == known and model in ("", of) for of, known in fields), name


@pytest.mark.parametrize(("method", "path"), sorted(ASKED))
def test_examples_fit_their_schemas_and_are_taken(method: str, path: str) -> None:
    operation, asked = OPERATIONS[method, path], ASKED[method, path]
    jsonschema.validate(dict(operation.example), closed(TOLD, asked.__name__))
    asked.model_validate(dict(operation.example))


# -- what really happens -----------------------------------------------------------------------------------------------------


async def test_the_body_that_is_told_of_is_the_one_that_is_read(
    make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[type[BaseModel]] = []
    body = Api._body

    async def noted(self: Api, request: Any, kind: type[BaseModel]) -> BaseModel:
        read.append(kind)
        return await body(self, request, kind)

    monkeypatch.setattr(Api, "_body", noted)
    async with make_world() as world:
        for method, path in ROUTES:
            if method == "POST":
                read.clear()
                await world.client.post(path, json={})
                assert read == [ASKED[method, path]], path


async def _answers(world: World) -> list[tuple[str, str, Any]]:
    """Returns: method, path and answer of all kinds of requests."""
    traced: dict[str, Any] = {"return_token_ids": True, "temperature": 0, "max_tokens": 5}
    chat = {"messages": [{"role": "user", "content": "hi"}]} | traced
    found: list[tuple[str, str, Any]] = []
    for path, body in (
        ("/v1/chat/completions", chat | {"logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", chat | {"n": 2}),
        ("/v1/completions", {"prompt": "hi", "logprobs": 2} | traced),
        ("/v1/completions", {"prompt": ["hi", "ho"], "max_tokens": 2}),
        ("/v1/embeddings", {"input": ["hi", "ho"]}),
        ("/v1/embeddings", {"input": [72, 73], "encoding_format": "base64", "pooling": "mean"}),
        ("/tokenize", {"prompt": "hi", "return_token_strs": True}),
        ("/tokenize", {"prompt": "hi", "with_pieces": True}),
        ("/detokenize", {"tokens": [72, 73]}),
        ("/v1/responses/input_tokens", {"input": "hi"}),
        ("/v1/messages/count_tokens", {"messages": chat["messages"]}),
    ):
        answer = await world.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found.append(("POST", path, answer.json()))
    for method, path in ROUTES:
        if method == "GET":
            found.append((method, path, (await world.client.get(path.replace("{model}", "tiny"))).json()))
    return found


async def test_what_comes_back_is_what_the_document_says_and_nothing_else(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        for method, path, answer in await _answers(world):
            model = OPERATIONS[method, path].answers
            assert model is not None or answer == TOLD
            if model is not None:
                jsonschema.validate(answer, closed(TOLD, model.__name__))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_events_of_a_stream_are_what_the_document_says(make_world: Callable[..., Any], path: str) -> None:
    operation = OPERATIONS["POST", path]
    assert operation.events is not None
    more = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        streamed = events_of(await world.client.post(path, json=dict(operation.example) | more))
        assert len(streamed) > 3
        for event in streamed:
            jsonschema.validate(event, closed(TOLD, operation.events.__name__))


async def test_errors_have_the_documents_shape_and_a_status_that_it_names(make_world: Callable[..., Any]) -> None:
    as_json = {"Content-Type": "application/json"}
    async with make_world(requests={"max_body_bytes": 2048}) as world:
        for path, body in (
            ("/v1/chat/completions", b"{"),
            ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "hi"}]}'),
            ("/v1/completions", b'{"model": "nope"}'),
            ("/v1/completions", b" " * 4000),
            ("/tokenize", b'{"prompt": 1}'),
            ("/detokenize", b'{"tokens": [-1]}'),
            ("/v1/responses", b'{"store": true}'),
            ("/v1/messages", b"{}"),
            ("/v1/messages/count_tokens", b" " * 4000),
        ):
            refused = await world.client.post(path, content=body, headers=as_json)
            assert refused.status_code in OPERATIONS["POST", path].errors
            jsonschema.validate(refused.json(), closed(TOLD, OPERATIONS["POST", path].refuses.__name__))


# -- who may see it, and the page --------------------------------------------------------------------------------------------


async def test_document_and_page_need_no_key_and_are_fenced_by_the_host(make_world: Callable[..., Any]) -> None:
    async with make_world(api={"key": "s3cret"}) as world:
        for path in ("/openapi.json", *page.PAGE):
            assert (await world.client.get(path)).status_code == 200
            assert (await world.client.get(path, headers={"Host": "evil.example"})).status_code == 403
        assert (await world.client.get("/openapi.json")).json() == TOLD


async def test_the_page_runs_nothing_but_its_own_files(make_world: Callable[..., Any]) -> None:
    async with make_world() as world:
        for path, (_, media_type) in page.PAGE.items():
            answer = await world.client.get(path)
            assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
            policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == "'self'"
            assert "unsafe" not in answer.headers["content-security-policy"]


class _Markup(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_has_nothing_inline_and_names_what_is_served_and_used() -> None:
    markup = _Markup()
    markup.feed(page._content("try.html").decode())
    script = page._content("try.js").decode()
    for tag, attributes in markup.tags:
        assert not {name for name in attributes if name == "style" or name.startswith("on")}
        assert tag != "style"
        link = attributes.get("src") or attributes.get("href") or "/"
        assert link in page.PAGE or link in ("/openapi.json", "/"), link
    assert [one for tag, one in markup.tags if tag == "script"] == [{"type": "module", "src": "/docs/try.js"}]
    ids = {attributes["id"] for _, attributes in markup.tags if "id" in attributes}
    classes = {name for _, one in markup.tags for name in (one.get("class") or "").split()}
    assert set(re.findall(r'find\("#([\w-]+)"', script)) <= ids
    assert set(re.findall(r'find\("\.([\w-]+)"', script)) <= classes
    assert "innerHTML" not in script
    assert "http://" not in script
    assert "https://" not in script
