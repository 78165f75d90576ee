"""The methods that D-MPC is measured against, as policies made of the same trained parts.

dmpc        diffusion proposals, multi-step dynamics                              (arXiv 2410.05364)
one-step    the same proposals, one-step dynamics fed their own predictions
mbop        a cloned policy with noise, one-step dynamics, a soft mean of plans   (arXiv 2008.05556)
joint       actions and states drawn together, the best draw wins                 (arXiv 2205.09991)
proposal    one diffusion proposal, nothing scored: Diffusion Policy              (arXiv 2303.04137)
cloned      behaviour cloning
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from forethought.control.agent import Agent, AgentConfig
from forethought.control.models import ControlModel, JointHalves, MBOPProposal
from forethought.control.objectives import Objective
from forethought.control.running.policies import Policy, ReactivePolicy
from forethought.control.situation import Situation
from forethought.core.errors import ConfigError, unknown_name

PARTS_OF: dict[str, tuple[str, ...]] = {
    "dmpc": ("proposal.diffusion", "dynamics.diffusion", "value"),
    "one-step": ("proposal.diffusion", "dynamics.one-step", "value"),
    "mbop": ("policy.cloning", "dynamics.one-step", "value"),
    "joint": ("joint.diffusion", "value"),
    "proposal": ("proposal.diffusion",),
    "cloned": ("policy.cloning",),
}
METHODS = tuple(PARTS_OF)
_SOFT = 0.1


def method(
    name: str,
    parts: Mapping[str, ControlModel],
    *,
    settings: AgentConfig | None = None,
    noise: float = 0.2,
    num_robots: int = 1,
    **options: Any,
) -> Policy:
    """Return a method as a policy; `parts` are trained models by name, as `control train --baselines` makes them.

    `noise` is that of MBOP's proposals, in standard deviations of the data's actions; `options` are those of `Agent`.

    Raises:
        ConfigError: there is no such method, or a part that it needs is missing.
    """
    if name not in PARTS_OF:
        raise unknown_name("method of control", name, METHODS)
    found = [_part(name, wanted, parts) for wanted in PARTS_OF[name]]
    if name == "cloned":
        return ReactivePolicy(found[0], num_robots=num_robots)  # pyright: ignore[reportArgumentType]
    wish = settings or AgentConfig()
    options = {**options, "num_robots": num_robots, "body": found[0].body}
    if name == "proposal":
        wish = replace(wish, planner=replace(wish.planner, num_samples=1, ranking="best", warm_start=False))
        return Agent(found[0], _nowhere, settings=wish, **{**options, "objective": _nothing()})
    if name == "joint":
        halves, wish = JointHalves(found[0]), replace(wish, planner=replace(wish.planner, warm_start=False))  # pyright: ignore
        return Agent(halves.propose, halves.predict, found[1], settings=wish, **options)  # pyright: ignore
    if name == "mbop":
        soft = replace(wish.planner, ranking="soft", temperature=_SOFT)
        proposal = MBOPProposal(found[0], found[1], noise=noise)  # pyright: ignore[reportArgumentType]
        return Agent(proposal, proposal.predict, found[2], settings=replace(wish, planner=soft), **options)  # pyright: ignore
    return Agent(found[0], found[1], found[2], settings=wish, **options)  # pyright: ignore[reportArgumentType]


def _part(name: str, wanted: str, parts: Mapping[str, ControlModel]) -> ControlModel:
    """Return a part by its name, or by the place it takes where any kind will do."""
    for known, model in parts.items():
        if known == wanted or known.partition(".")[0] == wanted:
            return model
    raise ConfigError(
        f"the method {name} needs {wanted}, which was not trained ({', '.join(sorted(parts)) or 'nothing'} was); run "
        "`forethought control train` with --baselines"
    )


def _nowhere(start: Situation, actions_BNFA: Tensor) -> Tensor:
    """Return the present observation for every step: one candidate is done wherever it leads."""
    return start.obs_BO[:, None, None].expand(-1, *actions_BNFA.shape[1:3], -1)


def _nothing() -> Objective:
    """Return an objective that prefers nothing: what is drawn is done."""
    return Objective.of_step(lambda before, action, after: 0.0 * after[..., 0], name="nothing")
