"""The built-in page at /: three small files that ask for nothing outside this server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def add_page(application: FastAPI) -> None:
    """Add the page's files to an application."""
    for path, (name, media_type) in _FILES.items():
        application.add_api_route(path, _sender(name, media_type), methods=["GET"], include_in_schema=False)


def _sender(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    content = resources.files("forethought.serve").joinpath("static", name).read_bytes()
    headers = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def send() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return send
