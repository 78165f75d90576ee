"""Saving and opening whole agents: one directory with a folder for each part and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forethought.control.agent import Agent, AgentConfig
from forethought.control.models import ControlModel, read_model, write_model
from forethought.control.running.known import known
from forethought.core import files
from forethought.core.artefact import write_kind
from forethought.core.config import from_dict, to_dict
from forethought.core.errors import ArtefactError, ConfigError

KIND, FORMAT, DESCRIPTION = "control-agent", 1, "agent.json"
_PARTS = ("proposal", "dynamics", "value")


def save_agent(
    agent: Agent, directory: Path | str, *, replace: bool = False, facts: Mapping[str, Any] | None = None
) -> Path:
    """Publish an agent (see `Agent.save`); `facts` are plain JSON that its description holds too.

    Raises:
        ConfigError: proposal or dynamics is no model of this room.
    """
    directory = Path(directory)
    parts = {name: part for name in _PARTS if (part := getattr(agent, name)) is not None}
    for name, part in parts.items():
        if not isinstance(part, ControlModel):
            raise ConfigError(f"the {name} is a {type(part).__name__}, which cannot be saved; save its models apart")
    with files.staged(directory, replace=replace) as staging:
        write_kind(staging, KIND)
        description = {
            "format": FORMAT,
            "parts": sorted(parts),
            "settings": to_dict(agent.settings),
            "rest_action": agent.rest_A.tolist(),
            **dict(facts or {}),
        }
        files.write_bytes(staging / DESCRIPTION, files.dump_json(description))
        for name, part in parts.items():
            (staging / name).mkdir()
            write_model(part, staging / name)
    return directory


def load_agent(directory: Path | str, **options: Any) -> Agent:
    """Open an agent (see `Agent.load`).

    Raises:
        ArtefactError: the directory holds no agent, or a file in it is malformed.
        CheckpointError: a file is not the one that was written.
    """
    parts, defaults, _ = read_agent(directory)
    return Agent(parts["proposal"], parts["dynamics"], parts.get("value"), **{**defaults, **options})  # pyright: ignore


def read_agent(directory: Path | str) -> tuple[dict[str, ControlModel], dict[str, Any], dict[str, Any]]:
    """Return the parts of a saved agent, the options that it was made with, and its description.

    Raises:
        ArtefactError: the directory holds no agent, or a file in it is malformed.
        CheckpointError: a file is not the one that was written.
    """
    directory = Path(directory)
    files.verify(directory)
    description = files.read_json(directory / DESCRIPTION, what="description of an agent")
    named = description.get("parts")
    if description.get("format") != FORMAT or not isinstance(named, list) or not {"proposal", "dynamics"} <= set(named):
        raise ArtefactError(f"{directory / DESCRIPTION} describes no agent of format {FORMAT}; save the agent again")
    parts = {name: read_model(directory / name) for name in _PARTS if name in named}
    settings = from_dict(AgentConfig, description["settings"], source=str(directory / DESCRIPTION))
    facts = known(parts["proposal"].body.env_id)
    defaults: dict[str, Any] = {
        "settings": settings,
        "rest_action": description.get("rest_action"),
        "ended": None if facts is None else facts.ended,
    }
    return parts, defaults, description
