"""Errors as clients see them: OpenAI's JSON form, a fixed vocabulary, and never a trace, a path or an input echoed."""

from __future__ import annotations

import json
from collections.abc import Mapping

from typing_extensions import TypedDict

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "service_unavailable_error",
}


class ErrorDetail(TypedDict):
    """What went wrong: `param` names the field at fault, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer other than success, raised anywhere in a request's course."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> ErrorBody:
        """Return the JSON body."""
        return error_body(self.status, self.message, param=self.param, code=self.code)


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> ErrorBody:
    """Return the body for a status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def encoded(body: ErrorBody) -> bytes:
    """Return the body as compact JSON."""
    return json.dumps(body, separators=(",", ":")).encode()


def bad_field(param: str, message: str) -> ApiError:
    """Return a 400 that names the field at fault."""
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")


def engine_failed() -> ApiError:
    """Return the answer to a request that the engine could not carry out through no fault of the client's."""
    return ApiError(500, "the engine failed while working on this request; send it again", code="engine_error")


def unavailable(why: str, retry_after: int) -> ApiError:
    """Return a 503 with the seconds after which another try may succeed."""
    return ApiError(503, why, code="unavailable", headers={"Retry-After": str(retry_after)})
