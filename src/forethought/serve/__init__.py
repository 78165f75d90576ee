"""The HTTP server: OpenAI's routes over one engine, guarded against slow, greedy and vanished clients."""

from forethought.serve.application import create_application
from forethought.serve.bridge import Bridge
from forethought.serve.engine import Engine, ServedLanguageModel, ServedModel
from forethought.serve.limits import Gate, Limits, request_cost
from forethought.serve.server import GracefulServer, make_server
from forethought.serve.settings import ServerConfig, read_key, read_text

__all__ = [
    "Bridge",
    "Engine",
    "Gate",
    "GracefulServer",
    "Limits",
    "ServedLanguageModel",
    "ServedModel",
    "ServerConfig",
    "create_application",
    "make_server",
    "read_key",
    "read_text",
    "request_cost",
]
