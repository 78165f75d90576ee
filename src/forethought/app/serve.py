"""The verb that serves a model over HTTP, in the form that OpenAI's clients speak."""

from __future__ import annotations

import gc
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from forethought.app.arguments import parse, say
from forethought.core.errors import ConfigError
from forethought.core.extras import require

if TYPE_CHECKING:
    from forethought.serve import GracefulServer, ServerConfig

_MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class ServeArguments:
    """Serve a model to OpenAI's clients and to a browser; with a draft the same law, in fewer passes of the model.

    The key that clients must show (Authorization: Bearer KEY) is the variable FORETHOUGHT_API_KEY or --key-file; a
    browser that opens the page asks for it as a password, with any user name. SIGTERM lets open requests finish.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """A run of `pretrain fit`, a model directory of this library, or a Hugging Face one (Llama, Qwen2, Qwen3)."""
    draft: Path | None = None
    """A smaller model with the same tokenizer, for the methods draft and ssd."""
    method: Literal["ssd", "draft", "ngram", "none"] | None = None
    """How to speculate; ssd where a draft is given, else none."""
    num_speculative_tokens: int | None = None
    """Tokens proposed a round; chosen from measurements unless given."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 is every interface of this machine."""
    port: int = 8000
    """0 takes a free one; the line that says where the server listens names it."""
    key_file: Path | None = None
    """A file with the key; it stands before the variable FORETHOUGHT_API_KEY."""
    name: str | None = None
    """What clients give as the model's name; the directory's name unless given."""
    chat_template: Path | None = None
    """A Jinja file that stands in for the directory's chat template."""
    max_model_len: int | None = None
    """The longest text, prompt included; the model's whole context unless given."""
    max_num_seqs: int = 16
    """So many texts are worked on at once; others wait."""
    max_open_requests: int = 256
    """So many texts may run or wait; a request beyond them is answered 429."""
    max_request_cost: int = 1 << 18
    """The most that prompt tokens + n * max_tokens * (1 + logprobs) of one request may be."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision of the weights; auto keeps bfloat16 where they are stored so."""
    device: str = "cpu"
    """Where the model runs, such as cpu, cuda or cuda:1; a draft runs there too."""
    num_threads: int | None = None
    """Threads of the model; all cores but those of a draft process unless given."""
    grace: float = 30.0
    """Seconds that open requests have once the server is asked to stop."""
    seed: int | None = None
    """The start of the seeds of requests that give none; drawn at the start unless given."""
    json: bool = False
    """Print what was served as one last line on standard output, everything else on standard error."""


def serve_verb(arguments: list[str]) -> dict[str, Any]:
    """Run `forethought serve` until it is asked to stop, and return what was served.

    Raises:
        InputError: a flag or a directory cannot be used, or the address is taken.
        MissingExtraError: the packages of the extra "serve" are not installed.
    """
    given = parse(ServeArguments, arguments, verb="serve")
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, extra="serve", purpose="the server")
    from forethought.serve import Bridge, create_application, make_server, read_key

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    config, key = server_config(given), read_key(given.key_file)
    if key is None and not config.is_loopback:
        say(f"warning: without a key, whoever reaches {given.host} can use this server", as_json=True)
    bridge = Bridge(lambda: _open(given), step_seconds=config.limits.step)
    bridge.open()
    server = make_server(create_application(bridge, config, key=key), config)
    _run(server, given)
    service = server.service
    # The interpreter's last collection walks over all of torch, most of a second of the time there is to end in.
    gc.freeze()
    return {"kind": "serve", "requests": service.metrics.totals(), "restarts": bridge.num_restarts}


def server_config(given: ServeArguments) -> ServerConfig:
    """Return what the flags say of the server; the others are about the engine.

    Raises:
        ConfigError: one is out of range, or the template's file cannot be read.
    """
    from forethought.serve import Limits, ServerConfig, read_text

    template = None
    if given.chat_template is not None:
        template = read_text(given.chat_template, what="chat template", limit=_MAX_TEMPLATE_BYTES)
    return ServerConfig(
        host=given.host,
        port=given.port,
        name=given.name,
        chat_template=template,
        seed=given.seed,
        limits=Limits(open_requests=given.max_open_requests, cost=given.max_request_cost, grace=given.grace),
    )


def _open(given: ServeArguments) -> Any:
    from forethought.decode.llm import LLM
    from forethought.serve import ServedLanguageModel

    method = given.method or ("none" if given.draft is None else "ssd")
    if method in ("draft", "ssd") and given.draft is None:
        raise ConfigError(f"the method {method} needs a draft model; give --draft DIR, or --method ngram or none")
    speculation: dict[str, Any] = {"method": None if method == "none" else method}
    if method in ("draft", "ssd"):
        speculation["model"] = str(given.draft)
    if given.num_speculative_tokens is not None:
        speculation["num_speculative_tokens"] = given.num_speculative_tokens
    llm = LLM(
        given.directory,
        speculative_config=speculation,
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        dtype=given.dtype,
        device=given.device,
        num_threads=given.num_threads,
    )
    return ServedLanguageModel(llm)


def _run(server: GracefulServer, given: ServeArguments) -> None:
    def announce(port: int) -> None:
        host = f"[{given.host}]" if ":" in given.host else given.host
        say(f"serving {given.directory.name} at http://{host}:{port} (Ctrl-C stops)", as_json=given.json)
        (sys.stderr if given.json else sys.stdout).flush()

    try:
        server.run_announced(announce)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {given.host}:{given.port} ({error.strerror}); give --host or --port"
        ) from None
