"""The routes put together: one door for all of them, one form of error, and an OpenAPI of what is really taken."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from forethought import __version__
from forethought.serve.bridge import Bridge
from forethought.serve.errors import ApiError, ErrorBody, error_body
from forethought.serve.fields import ChatBody, CompletionBody
from forethought.serve.guard import Guard
from forethought.serve.page import add_page
from forethought.serve.service import Service
from forethought.serve.settings import ServerConfig
from forethought.serve.shapes import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Health,
    ModelCard,
    ModelList,
    Version,
)
from forethought.serve.worker import State

_log = logging.getLogger("forethought.serve")

_REF = "#/components/schemas/{model}"
_HEADERS = {"x-content-type-options": "nosniff"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered; `param` names the field at fault."},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer now."},
}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_application(bridge: Bridge, config: ServerConfig, *, key: str | None = None) -> FastAPI:
    """Return the ASGI application over an opened bridge; every path but /health wants the key, where there is one.

    `application.state.service` is the service behind it.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        bridge.attach()
        yield
        await bridge.close()

    application = FastAPI(
        title="forethought", version=__version__, lifespan=life, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    service = Service(bridge, config)
    application.state.service = service
    _add_errors(application)
    _add_generation(application, service)
    _add_information(application, service)
    add_page(application)
    application.openapi = lambda: _described(application)  # type: ignore[method-assign]
    local_only = key is None and config.is_loopback
    application.add_middleware(Guard, limits=config.limits, key=key, local_only=local_only)  # type: ignore[arg-type]
    return application


def _add_generation(application: FastAPI, service: Service) -> None:
    def add(path: str, endpoint: Any, body: str, answer: Any, chunk: str, summary: str) -> None:
        application.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_class=Response,
            summary=summary,
            responses={
                **_ERRORS,
                200: {
                    "description": "The whole answer, or with `stream` its chunks as server-sent events.",
                    "content": {
                        "application/json": {"schema": TypeAdapter(answer).json_schema(ref_template=_REF)},
                        "text/event-stream": {"schema": _event(chunk)},
                    },
                },
            },
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": _REF.format(model=body)}}},
                }
            },
        )

    async def completions(request: Request) -> Response:
        return await service.complete(request)

    async def chat(request: Request) -> Response:
        return await service.chat(request)

    add("/v1/completions", completions, "CompletionBody", Completion, "Completion", "Continue prompts")
    add("/v1/chat/completions", chat, "ChatBody", ChatCompletion, "ChatChunk", "Answer in a conversation")


def _event(chunk: str) -> dict[str, Any]:
    """The shape of one event; its data is JSON, but for the last one's."""
    data = {"type": "string", "description": f"A {chunk} as JSON, or [DONE]."}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _add_information(application: FastAPI, service: Service) -> None:
    def card() -> ModelCard:
        return {
            "id": service.name,
            "object": "model",
            "created": service.created,
            "owned_by": "forethought",
            "max_model_len": service.bridge.model.max_length,
        }

    @application.get("/v1/models", responses=_ERRORS)
    async def models() -> ModelList:  # pyright: ignore[reportUnusedFunction]
        """List the one model that is served."""
        return {"object": "list", "data": [card()]}

    @application.get("/v1/models/{name:path}", responses=_ERRORS)
    async def model(name: str) -> ModelCard:  # pyright: ignore[reportUnusedFunction]
        """Tell of a model."""
        if name != service.name:
            raise ApiError(404, "there is no model of that name here", param="model", code="model_not_found")
        return card()

    @application.get("/health", responses={503: {"model": Health, "description": "Requests are not taken now."}})
    async def health() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Say whether requests are taken."""
        status = service.status
        return JSONResponse(Health(status=status), 200 if status == State.READY.value else 503)

    @application.get("/version", responses=_ERRORS)
    async def version() -> Version:  # pyright: ignore[reportUnusedFunction]
        """Tell the version."""
        return {"version": __version__}

    @application.get("/metrics", response_class=Response, responses=_ERRORS)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Tell counts and times in Prometheus' text form."""
        return Response(service.metrics.text(await service.bridge.metrics()), media_type=_METRICS_TYPE)


def _add_errors(application: FastAPI) -> None:
    def answer(status: int, body: ErrorBody, headers: Mapping[str, str] | None) -> JSONResponse:
        return JSONResponse(body, status, {**_HEADERS, **(headers or {})})

    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return answer(error.status, error.body(), error.headers)
        if isinstance(error, HTTPException):
            return answer(error.status_code, error_body(error.status_code, error.detail), error.headers)
        return answer(500, error_body(500, "the server failed on this request"), None)

    for kind in (ApiError, HTTPException, Exception):
        application.add_exception_handler(kind, refused)


def _described(application: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that are read by hand and the chunks that are not answers of their own."""
    if application.openapi_schema is None:
        document = FastAPI.openapi(application)
        schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
        for body in (CompletionBody, ChatBody):
            _lift(schemas, body.__name__, body.model_json_schema(ref_template=_REF))
        for shape in (Completion, ChatCompletion, ChatChunk):
            _lift(schemas, shape.__name__, TypeAdapter(shape).json_schema(ref_template=_REF))
        for path in document["paths"].values():
            for operation in path.values():
                for response in operation["responses"].values():
                    for content in response.get("content", {}).values():
                        content["schema"].pop("$defs", None)
        application.openapi_schema = document
    return application.openapi_schema


def _lift(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Put a schema and what it refers to among the document's own."""
    for inner, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(inner, definition)
    schemas[name] = schema
