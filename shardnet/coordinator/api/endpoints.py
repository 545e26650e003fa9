"""The HTTP API: OpenAI's completions and chats, streamed or whole, beside `/healthz` and `/status`. Starlette routes over `Service`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shardnet.coordinator.api.errors import error_response
from shardnet.coordinator.api.openapi.document import document, endpoints_of
from shardnet.coordinator.api.openapi.page import PAGE, page_part
from shardnet.coordinator.api.schemas import (
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    usage_error,
)
from shardnet.coordinator.api.service import Answering, Service
from shardnet.coordinator.api.settings import ApiSettings
from shardnet.coordinator.api.streaming import EventStream, events, until_gone, whole
from shardnet.coordinator.api.wording import Wordings, chat_wordings, completion_wordings
from shardnet.errors import ShardnetError, UsageError
from shardnet.log import get
from shardnet.swarm.api_keys import KeyRing

PATHS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/status", "/healthz")
PEEK_S = 0.3
"""Errors that come so soon get a status of their own, rather than an event in a stream that says 200."""
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

    def __init__(self, service: Service, settings: ApiSettings, keys: KeyRing) -> None:
        self._service = service
        self._settings = settings
        self._keys = keys
        self._started_s = int(time.time())
        routes = [
            self._route("GET", "/v1/models", self._models),
            self._route("GET", "/v1/models/{model:path}", self._model),
            self._route("POST", "/v1/completions", self._completions),
            self._route("POST", "/v1/chat/completions", self._chat),
            self._route("POST", "/tokenize", self._tokenize),
            self._route("POST", "/detokenize", self._detokenize),
            self._route("GET", "/status", self._status),
            self._route("GET", "/healthz", self._health, open_to_all=True),
            self._route("GET", "/openapi.json", self._openapi, needs_key=False),
            *(self._route("GET", path, page_part, needs_key=False, in_document=False) for path in PAGE),
        ]
        self.routes = routes
        app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
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
        needs_key: bool = True,
        in_document: bool = True,
    ) -> Route:
        """The named edge of every request: who may ask, and what errors become.

        Args:
            open_to_all: load balancers ask with any Host, and no key.
            needs_key: false for what says nothing of this swarm: a browser that opens a page sends no key.
            in_document: false for pages and their parts, which `/openapi.json` leaves out.
        """
        allowed = {"Allow": f"{'GET, HEAD' if method == 'GET' else method}, OPTIONS"}

        async def endpoint(request: Request) -> Response:
            try:
                if not open_to_all:
                    self._check_host(request)
                if request.method == "OPTIONS":
                    return Response(status_code=204, headers=allowed)
                if needs_key and not open_to_all:
                    self._check_key(request)
                return await handler(request)
            except ShardnetError as error:
                return error_response(error)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Exception:
                log.exception("api_request_failed", path=request.url.path)
                return error_response(ShardnetError("an unexpected error in the coordinator; its log says more"))

        return Route(path, endpoint, methods=[method, "OPTIONS"], include_in_schema=in_document)

    def _check_host(self, request: Request) -> None:
        """A page that rebinds its DNS name to this machine sends its own name here."""
        allowed = self._settings.allowed_hosts
        host = request.headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if "*" not in allowed and name.lower() not in allowed:
            raise UsageError(f"host {name[:100]!r} is not answered here: add it to api.allowed_hosts", http_status=403)

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_known = scheme.lower() == "bearer" and self._keys.name_of(given.strip()) is not None
        if self._keys.is_asked_for and not is_known:
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
        try:
            return kind.model_validate_json(bytes(body))
        except ValidationError as error:
            raise usage_error(error) from None

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

    async def _respond(
        self, request: Request, asked: CommonRequest, answers: list[Answering], wordings: Wordings
    ) -> Response:
        def close() -> None:
            for one in answers:
                one.running.close()

        try:
            if not asked.stream:
                return JSONResponse(await until_gone(request, whole(wordings, self._service.describe_stage)))
            first = answers[0].running
            if await until_gone(request, first.wait(PEEK_S)) and first.generation.error is not None:
                raise first.generation.error
            wants_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
            return EventStream(events(wordings, self._service.describe_stage, wants_usage=wants_usage), close)
        except BaseException:
            close()
            raise

    async def _tokenize(self, request: Request) -> Response:
        asked = await self._body(request, TokenizeRequest)
        tokens, words = await self._service.tokenize(asked)

        def worded() -> Response:
            body: dict[str, Any] = {"tokens": tokens, "count": len(tokens)}
            if asked.return_token_strs or asked.with_pieces:
                texts = [words.vocabulary.text([token]) for token in tokens]
                if asked.return_token_strs:
                    body["token_strs"] = texts
                if asked.with_pieces:
                    body["tokens"] = [{"id": token, "piece": text} for token, text in zip(tokens, texts, strict=True)]
            return JSONResponse(body)

        return await asyncio.to_thread(worded)  # a million tokens take seconds, in which others are answered

    async def _detokenize(self, request: Request) -> Response:
        text = await self._service.detokenize(await self._body(request, DetokenizeRequest))
        return await asyncio.to_thread(JSONResponse, {"content": text, "prompt": text})


class WithoutTrailingSlash:
    """`/v1/models/` is `/v1/models`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and len(scope["path"]) > 1:
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


async def _http_error(_request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same shape as everything else."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: this API has {', '.join(PATHS)}"
    kind: dict[str, Any] = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": kind}, status_code=error.status_code, headers=error.headers)
