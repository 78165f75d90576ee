"""Where a server listens, what it is called, and who may use it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from forethought.core import files
from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.serve.limits import Limits

KEY_VARIABLE = "FORETHOUGHT_API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_KEY_BYTES = 4096


@config
class ServerConfig:
    """How a server presents itself.

    `name` is what clients give as `model`; None means the directory's name. `chat_template` stands in for the
    directory's own. `seed` is the start of the seeds of requests that give none; None draws one when the server starts.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    chat_template: str | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    limits: Limits = Limits()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in _LOOPBACK


def read_key(path: Path | None, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the key that clients must show: the content of a file, else of FORETHOUGHT_API_KEY, else None.

    `environment` is this process's unless given.

    Raises:
        ConfigError: the file cannot be read, or the key is empty or holds anything but printable ASCII without spaces.
        ArtefactError: the file is too large, or no regular file.
    """
    environment = os.environ if environment is None else environment
    if path is not None:
        source = f"the key file {path}"
        key = read_text(path, what="key file", limit=_MAX_KEY_BYTES).strip()
    elif KEY_VARIABLE in environment:
        source, key = f"the variable {KEY_VARIABLE}", environment[KEY_VARIABLE]
    else:
        return None
    if not key or not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"{source} must hold a key of printable ASCII characters without spaces, for example 32 hex")
    return key


def read_text(path: Path, *, what: str, limit: int) -> str:
    """Return the content of a file that the operator named.

    Raises:
        ConfigError: it cannot be read.
        ArtefactError: it is too large, or no regular file.
    """
    try:
        return files.read_bounded(path, what=what, limit=limit).decode("utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read ({error.strerror}); give another") from error
