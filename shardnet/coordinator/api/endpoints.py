"""The HTTP API: OpenAI's completions and chats, streamed or whole, beside `/healthz` and `/status`. Starlette routes over `Service`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shardnet.coordinator.api.anthropic.errors import anthropic_response
from shardnet.coordinator.api.anthropic.request import CountRequest, MessagesRequest
from shardnet.coordinator.api.bodies import read_body
from shardnet.coordinator.api.embeddings import EmbeddingsRequest
from shardnet.coordinator.api.errors import error_response
from shardnet.coordinator.api.http_counts import OTHER, HttpCounts
from shardnet.coordinator.api.large_json import LargeJSONResponse
from shardnet.coordinator.api.make_route import MoreRoutes
from shardnet.coordinator.api.openapi.document import document, endpoints_of
from shardnet.coordinator.api.openapi.page import PAGE, page_part
from shardnet.coordinator.api.responses.request import ResponsesRequest
from shardnet.coordinator.api.schemas import (
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from shardnet.coordinator.api.service import Answering, Service
from shardnet.coordinator.api.settings import ApiSettings
from shardnet.coordinator.api.streaming import UNEXPECTED, events, streamed_response, until_gone, whole, whole_response
from shardnet.coordinator.api.traces import HEADER, Traces
from shardnet.coordinator.api.turns import answer_turn, count_turn
from shardnet.coordinator.api.wording import Wordings, chat_wordings, completion_wordings
from shardnet.coordinator.requests.recording import TRACED
from shardnet.errors import ShardnetError, UsageError
from shardnet.log import get
from shardnet.swarm.api_keys import KeyRing

MAX_HEADER_WAIT_S = 30.0
MAX_DISCARDED_BYTES = 16 << 20
"""How much of a body that is too large is read and thrown away: a connection closed under a client that still sends is reset, and the client
never sees why."""

MAX_NAME = 256
CLIENT_GONE = 499

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")
log = get("api")


class Api:
    """The routes."""

    def __init__(
        self,
        service: Service,
        settings: ApiSettings,
        keys: KeyRing,
        more: MoreRoutes | None = None,
        counts: HttpCounts | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._keys = keys
        self._counts = counts or HttpCounts()
        self._traces = Traces(service)
        self._started_s = int(time.time())
        routes = [
            self._route("GET", "/v1/models", self._models),
            self._route("GET", "/v1/models/{model:path}", self._model),
            self._route("POST", "/v1/completions", self._completions),
            self._route("POST", "/v1/chat/completions", self._chat),
            self._route("POST", "/v1/responses", self._responses),
            self._route("POST", "/v1/responses/input_tokens", self._count_response),
            self._route("POST", "/v1/messages", self._messages, told=anthropic_response),
            self._route("POST", "/v1/messages/count_tokens", self._count_message, told=anthropic_response),
            self._route("POST", "/v1/embeddings", self._embeddings),
            self._route("POST", "/tokenize", self._tokenize),
            self._route("POST", "/detokenize", self._detokenize),
            self._route("GET", "/status", self._status),
            self._route("GET", "/healthz", self._health, open_to_all=True),
            self._route("GET", "/openapi.json", self._openapi, needs_key=False),
            *(self._route("GET", path, page_part, needs_key=False, in_document=False) for path in PAGE),
            *self._traces.routes(self._route),
            *(more(self._route) if more is not None else []),
        ]
        self.routes = routes
        for route in routes:
            if route.include_in_schema:
                self._counts.expect(route.path)
        app = Starlette(routes=routes, exception_handlers={HTTPException: self._no_route})
        app.router.redirect_slashes = False  # a redirect would name whatever Host was sent
        self.app: ASGIApp = WithoutTrailingSlash(app)
        if settings.allowed_origins:
            self.app = CORSMiddleware(
                self.app,
                allow_origins=settings.allowed_origins,
                allow_methods=("GET", "HEAD", "POST"),
                allow_headers=("*",),
                expose_headers=("Retry-After",),
                max_age=600,
            )

    # -- what is common ------------------------------------------------------------------------------------------------------

    def _route(
        self,
        method: str,
        path: str,
        handler: Callable[[Request], Awaitable[Response]],
        *,
        open_to_all: bool = False,
        told: Callable[[ShardnetError], Response] = error_response,
        needs_key: bool = True,
        in_document: bool = True,
        takes_metrics_keys: bool = False,
    ) -> Route:
        """The named edge of every request: who may ask, and what errors become.

        Args:
            open_to_all: load balancers ask with any Host, and no key.
            told: words errors.
            needs_key: false for what says nothing of this swarm: a browser that opens a page sends no key.
            in_document: false for pages and their parts, which `/openapi.json` leaves out.
            takes_metrics_keys: a key that opens nothing else opens this.
        """
        allowed = {"Allow": f"{'GET, HEAD' if method == 'GET' else method}, OPTIONS"}

        async def endpoint(request: Request) -> Response:
            traced = self._traces.begin(request) if method == "POST" else None
            if traced is None:
                response = await answer(request)
            else:
                TRACED.set(traced)  # of this request's task, and of those that it starts
                response = await answer(request)
                self._traces.keep(traced)
                response.headers[HEADER] = traced.trace_id
            self._counts.note(path, response.status_code)
            return response

        async def answer(request: Request) -> Response:
            try:
                if not open_to_all:
                    self._check_host(request)
                if request.method == "OPTIONS":
                    return Response(status_code=204, headers=allowed)
                if needs_key and not open_to_all:
                    self._check_key(request, takes_metrics_keys=takes_metrics_keys)
                return await handler(request)
            except ShardnetError as error:
                return told(error)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Exception:
                log.exception("api_request_failed", path=request.url.path)
                return told(ShardnetError(UNEXPECTED))

        return Route(path, endpoint, methods=[method, "OPTIONS"], include_in_schema=in_document)

    def _check_host(self, request: Request) -> None:
        """A page that rebinds its DNS name to this machine sends its own name here."""
        allowed = self._settings.allowed_hosts
        host = request.headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if "*" not in allowed and name.lower() not in allowed:
            raise UsageError(f"host {name[:100]!r} is not answered here: add it to api.allowed_hosts", http_status=403)

    def _check_key(self, request: Request, *, takes_metrics_keys: bool) -> None:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        both = [bearer if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")]
        given = [one.strip() for one in both]
        if not self._keys.is_asked_for or any(self._keys.name_of(one) is not None for one in given):
            return
        is_metrics_key = any(map(self._keys.opens_metrics_alone, given))
        if is_metrics_key and not takes_metrics_keys:
            raise UsageError("this key opens /metrics and nothing else: `shardnet key add` makes one", http_status=403)
        if not is_metrics_key:
            raise UsageError(
                "this API wants a key (`shardnet key add` makes one): send the header 'Authorization: Bearer KEY'",
                http_status=401,
            )

    async def _body(self, request: Request, kind: type[R]) -> R:
        """Raises: UsageError for a body that is too large, not declared as JSON (a browser could send it across sites), or not usable."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UsageError("send the body as JSON, with the header 'Content-Type: application/json'")
        most = self._service.settings.max_body_bytes
        too_large = UsageError(f"the body is larger than {most} bytes", http_status=413)
        declared = request.headers.get("content-length", "0")
        fits = not (declared.isdecimal() and int(declared) > most)
        if not fits and int(declared) > most + MAX_DISCARDED_BYTES:
            raise too_large
        body, received = bytearray(), 0
        try:
            async with asyncio.timeout(MAX_HEADER_WAIT_S):
                async for chunk in request.stream():
                    received += len(chunk)
                    fits = fits and received <= most
                    if fits:
                        body += chunk
                        continue
                    body.clear()
                    if received > most + MAX_DISCARDED_BYTES:
                        raise too_large
        except TimeoutError:
            raise UsageError("the body did not arrive in time", http_status=408) from None
        if not fits:
            raise too_large
        return await read_body(bytes(body), kind)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        response = _http_error(request, error)
        self._counts.note(OTHER, response.status_code)
        return response

    # -- models and state ----------------------------------------------------------------------------------------------------

    async def _models(self, _request: Request) -> Response:
        cards: dict[str, dict[str, Any]] = {}
        for one in self._health_models():  # of several with one name the first is meant by it
            name = one["model_id"] if one["model"] in cards else one["model"]
            cards[name] = self._model_card(one) | {"id": name}
        return JSONResponse({"object": "list", "data": list(cards.values())})

    async def _model(self, request: Request) -> Response:
        meant = self._service.named(request.path_params["model"][:MAX_NAME]).model_id
        for one in self._health_models():
            if one["model_id"] == meant:
                return JSONResponse(self._model_card(one))
        raise UsageError(str(self._service.why_not_served(meant)), unknown_model=meant)

    def _health_models(self) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = self._service.health()["models"]
        return models

    def _model_card(self, one: dict[str, Any]) -> dict[str, Any]:
        card = {"id": one["model"], "object": "model", "created": self._started_s, "owned_by": "shardnet"}
        return card | {"shardnet": one}

    async def _status(self, _request: Request) -> Response:
        return JSONResponse(self._service.status())

    async def _health(self, _request: Request) -> Response:
        health = self._service.health()
        return JSONResponse(health, status_code=200 if health["ready"] else 503)

    @cached_property
    def _document(self) -> bytes:
        """The OpenAPI document, made when it is first asked for."""
        return bytes(JSONResponse(document(endpoints_of(self.routes))).body)

    async def _openapi(self, _request: Request) -> Response:
        return Response(await asyncio.to_thread(lambda: self._document), media_type="application/json")

    # -- answers -------------------------------------------------------------------------------------------------------------

    async def _completions(self, request: Request) -> Response:
        asked = await self._body(request, CompletionRequest)
        answers = await until_gone(request, self._service.answer(asked))
        return await self._respond(request, asked, answers, completion_wordings(answers, asked))

    async def _chat(self, request: Request) -> Response:
        asked = await self._body(request, ChatRequest)
        answers = await until_gone(request, self._service.answer(asked))
        return await self._respond(request, asked, answers, chat_wordings(answers, asked))

    async def _responses(self, request: Request) -> Response:
        return await answer_turn(request, await self._body(request, ResponsesRequest), self._service)

    async def _count_response(self, request: Request) -> Response:
        counted = await count_turn(await self._body(request, ResponsesRequest), self._service)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": counted})

    async def _messages(self, request: Request) -> Response:
        return await answer_turn(request, await self._body(request, MessagesRequest), self._service)

    async def _count_message(self, request: Request) -> Response:
        return JSONResponse({"input_tokens": await count_turn(await self._body(request, CountRequest), self._service)})

    async def _respond(
        self, request: Request, asked: CommonRequest, answers: list[Answering], wordings: Wordings
    ) -> Response:
        describe = self._service.describe_stage
        if not asked.stream:
            return await whole_response(request, answers, whole(wordings, describe))
        wants_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        return await streamed_response(request, answers, events(wordings, describe, wants_usage=wants_usage))

    async def _embeddings(self, request: Request) -> Response:
        asked = await self._body(request, EmbeddingsRequest)
        return Response(await until_gone(request, self._service.embed(asked)), media_type="application/json")

    async def _tokenize(self, request: Request) -> Response:
        asked = await self._body(request, TokenizeRequest)
        tokens, words = await self._service.tokenize(asked)

        def worded() -> Response:
            body: dict[str, Any] = {"tokens": tokens, "count": len(tokens)}
            text = words.vocabulary.text
            if asked.return_token_strs:
                body["token_strs"] = (text([token]) for token in tokens)
            if asked.with_pieces:
                body["tokens"] = ({"id": token, "piece": text([token])} for token in tokens)
            return LargeJSONResponse(body)

        return await asyncio.to_thread(worded)  # a million tokens take seconds, in which others are answered

    async def _detokenize(self, request: Request) -> Response:
        text = await self._service.detokenize(await self._body(request, DetokenizeRequest))
        return await asyncio.to_thread(LargeJSONResponse, {"content": text, "prompt": text})


class WithoutTrailingSlash:
    """`/v1/models/` is `/v1/models`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and len(scope["path"]) > 1:
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same shape as everything else."""
    assert isinstance(error, HTTPException)
    path, headers = request.scope["path"][:MAX_NAME], dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(headers.get("Allow", "").split(", ")))
        told = f"{path!r} does not take {request.method[:MAX_NAME]}: it takes {headers['Allow']}"
    else:
        paths = dict.fromkeys(path for _, path in endpoints_of(request.app.routes))
        told = f"there is nothing at {path!r}: this API has {', '.join(paths)}, and a page to try it at /docs"
    is_anthropics = f"{path}/".startswith("/v1/messages/")
    refused = UsageError(told, http_status=error.status_code)
    answer = anthropic_response(refused) if is_anthropics else error_response(refused)
    answer.headers.update(headers)
    return answer
