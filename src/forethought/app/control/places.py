"""What the verbs of control are given: environments by id, changes of a body, policies by what stands at a path."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forethought.control import Agent, load_agent, load_model
from forethought.control.models import ClonedPolicy, ControlModel
from forethought.control.running import Policy, RandomPolicy, ReactivePolicy, known, method, open_sb3
from forethought.control.running.bodies import scale_friction, scale_mass
from forethought.core.artefact import read_kind, resolve
from forethought.core.errors import ConfigError, unknown_name
from forethought.core.extras import require

MakeEnvironment = Callable[[], Any]


def environment(env_id: str, changes: tuple[str, ...] = (), *, render: bool = False) -> MakeEnvironment:
    """Return a function that makes an environment, with its body changed as asked.

    Raises:
        MissingExtraError: gymnasium (or what the environment needs) is not installed.
        ConfigError: there is no such environment or change.
    """
    gymnasium: Any = require("gymnasium", extra="control", purpose="running an environment")
    importlib.import_module("forethought.envs")  # the built-in environments register themselves

    try:
        gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        known = sorted(gymnasium.registry)
        raise (
            unknown_name("environment", env_id, known)
            if len(known) < 50
            else ConfigError(f"no environment {env_id!r}: {error}; give a Gymnasium id such as Hopper-v5")
        ) from error
    makers = [change(text) for text in changes]
    if render and not os.environ.get("DISPLAY"):
        # Without a display MuJoCo draws only where it is told how; EGL needs no window.
        os.environ.setdefault("MUJOCO_GL", "egl")

    def make() -> Any:
        try:
            env = gymnasium.make(env_id, render_mode="rgb_array" if render else None)
        except gymnasium.error.DependencyNotInstalled as error:
            raise ConfigError(f"{env_id} needs more than is installed: {error}") from error
        for wrap in makers:
            env = wrap(env)
        return env

    return make


def change(text: str) -> Callable[[Any], Any]:
    """Return a wrapper from text such as actuator:2:-0.5:0.5, gain:-1, mass:1.5, friction:0.5 or delay:2.

    Raises:
        ConfigError: the change is unknown or its numbers do not fit.
    """
    from forethought.envs import wrappers

    name, *numbers = text.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError as error:
        raise ConfigError(f"the change {text!r} needs numbers after its name, such as actuator:2:-0.5:0.5") from error
    shapes: dict[str, tuple[int, Callable[..., Any]]] = {
        "actuator": (
            3,
            lambda env, index, low, high: wrappers.ActuatorLimit(env, int(index), low, high),
        ),
        "gain": (1, lambda env, gain: wrappers.ActionGain(env, gain)),
        "mass": (1, scale_mass),
        "friction": (1, scale_friction),
        "delay": (1, lambda env, steps: wrappers.ActionDelay(env, int(steps))),
    }
    if name not in shapes:
        raise unknown_name("change of a body", name, shapes)
    wanted, wrap = shapes[name]
    if len(values) != wanted:
        raise ConfigError(f"the change {text!r} has {len(values)} numbers; {name} takes {wanted}")
    return lambda env: wrap(env, *values)


def agent_at(directory: Path, **options: Any) -> Agent:
    """Open the agent of a training run or an agent's own directory.

    Raises:
        ArtefactError: it holds none.
        ConfigError: it holds something else.
    """
    kind, place = resolve(directory)
    if kind != "control-agent":
        raise ConfigError(f"{directory} holds a {kind}, not an agent; give what `forethought control train` made")
    return load_agent(place, **options)


def model_at(directory: Path) -> ControlModel:
    """Open the model of a part's run or its own directory; of an agent, its dynamics.

    Raises:
        ConfigError: it holds no model of control.
    """
    kind, place = resolve(directory)
    if kind == "control-agent":
        return load_agent(place).dynamics
    if kind != "control-model":
        raise ConfigError(f"{directory} holds a {kind}, not a model of control; give what train or adapt made")
    return load_model(place)


def method_at(directory: Path, name: str, make: MakeEnvironment, *, num_robots: int, options: dict[str, Any]) -> Policy:
    """Return a method that D-MPC is measured against, made of the parts of a training run.

    Raises:
        ConfigError: there is no such method, a part of it was not trained, or it does not fit the environment.
    """
    parts = {path.parent.name: load_model(path) for path in sorted((directory / "parts").glob("*/model"))}
    facts = known(next(iter(parts.values())).body.env_id) if parts else None
    if facts is not None and name != "cloned":
        options = {"ended": facts.ended, **options}
    made = method(name, parts, num_robots=num_robots, **options)
    if isinstance(made, Agent):
        env = make()
        try:
            made.check_spaces(env.observation_space, env.action_space)
        finally:
            env.close()
    return made


def policy_at(given: str, make: MakeEnvironment, *, seed: int, num_robots: int, options: dict[str, Any]) -> Policy:
    """Return the policy that a word or a path names: random, an agent, a distilled policy, or an SB3 .zip.

    Raises:
        ConfigError: the policy does not fit the environment.
    """
    env = make()
    try:
        if given == "random":
            space = env.action_space
            return RandomPolicy(space.low, space.high, seed=seed, num_robots=num_robots)
        if given.endswith(".zip"):
            return open_sb3(given, num_robots=num_robots)
        directory = Path(given)
        _, place = resolve(directory)
        if read_kind(place) == "control-model":
            model = load_model(place)
            if not isinstance(model, ClonedPolicy):
                raise ConfigError(f"{given} holds a {model.part} model; give an agent, or a cloned or distilled policy")
            return ReactivePolicy(model, num_robots=num_robots)
        agent = agent_at(directory, num_robots=num_robots, **options)
        agent.check_spaces(env.observation_space, env.action_space)
        return agent
    finally:
        env.close()
