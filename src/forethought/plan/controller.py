"""Receding-horizon control: plan, execute a part, look again, plan again.

Legend: B environments, H horizon (blocks), A numbers a block, K actions a block, E numbers an action (A = K E).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.core.rng import torch_generator
from forethought.plan.problem import Plan, Planner, Problem


def from_blocks(blocks_BHA: Tensor, block: int) -> Tensor:
    """Split blocks (..., H, K E) into the actions one after the other, (..., H K, E).

    Raises:
        ConfigError: the last axis cannot be split into `block` actions.
    """
    *lead, horizon, width = blocks_BHA.shape
    if block < 1 or width % block:
        raise ConfigError(f"a block of {width} numbers cannot be split into {block} actions of one size")
    return blocks_BHA.reshape(*lead, horizon * block, width // block)


def to_blocks(actions_BTE: Tensor, block: int) -> Tensor:
    """Join actions (..., H K, E) into blocks of `block` consecutive ones, (..., H, K E).

    Raises:
        ConfigError: the number of actions is not a multiple of `block`.
    """
    *lead, num_steps, width = actions_BTE.shape
    if block < 1 or num_steps % block:
        raise ConfigError(f"{num_steps} actions cannot be joined into blocks of {block}; give a multiple of it")
    return actions_BTE.reshape(*lead, num_steps // block, block * width)


@config
class ControllerConfig:
    """How a plan is used.

    horizon: H, in plan steps (blocks). execute: plan steps executed before planning again; the horizon itself is open
    loop. block: K, actions that one plan step holds. warm_start: the tail of the last plan begins the next search.
    budget: actions allowed in all. shrink: the horizon never reaches past the budget (needs one), so that a cost at the
    end of the horizon means the end of the episode and not a moment that recedes for ever.
    deadline_s: wall time of one plan, in seconds.
    """

    horizon: int = 5
    execute: int = 5
    block: int = 1
    warm_start: bool = True
    budget: int | None = None
    shrink: bool = False
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if min(self.horizon, self.execute, self.block) < 1 or self.execute > self.horizon:
            raise ConfigError(
                f"horizon is {self.horizon}, execute {self.execute} and block {self.block}; all are at least 1 and "
                "execute is at most the horizon"
            )
        if (self.shrink and self.budget is None) or (self.budget is not None and self.budget < 1):
            raise ConfigError(f"budget is {self.budget}; a shrinking horizon needs one, of at least 1 action")
        if self.deadline_s is not None and not self.deadline_s > 0.0:
            raise ConfigError(f"deadline_s is {self.deadline_s}; it must be positive")


@dataclass(frozen=True)
class Moment:
    """When a plan is wanted: what the function that states the problem is given.

    observation: what `act` was given. step: actions executed so far. horizon: H wanted now.
    executed_BTA: the plan steps executed so far, (B, T, A); None before the first.
    """

    observation: Any
    step: int
    horizon: int
    executed_BTA: Tensor | None


class Controller:
    """Turns a planner into a policy: `act(observation)` gives the next action of every environment.

    state_problem: builds the `Problem` of a moment (encodes the observation, names the goal).
    on_plan: called with every plan, for logs and latency figures.
    The generator of plan number i is the coordinate (seed, "plan", i): the same observations give the same actions.
    """

    def __init__(
        self,
        planner: Planner,
        state_problem: Callable[[Moment], Problem],
        settings: ControllerConfig | None = None,
        *,
        seed: int = 0,
        on_plan: Callable[[Plan], None] | None = None,
    ) -> None:
        self.settings = settings or ControllerConfig()
        self._planner, self._state_problem = planner, state_problem
        self._seed, self._on_plan = seed, on_plan
        self.reset()

    def reset(self) -> None:
        """Forget plans and history, as at the start of an episode; the first plan is number 0 again."""
        self.plan: Plan | None = None
        self.num_plans = 0
        self.num_actions = 0
        self._executed: list[Tensor] = []
        self._queue: list[Tensor] = []
        self._used = 0

    def flush(self) -> None:
        """Drop the actions that wait, so that the next `act` plans anew (a new objective, a surprise).

        A block of which only some actions were executed leaves the history with the actions that waited.
        """
        done = self._used - -(-len(self._queue) // self.settings.block)
        del self._executed[len(self._executed) - self._used + done :]
        self._used = done
        self._queue.clear()

    @torch.no_grad()
    def act(self, observation: Any) -> Tensor:
        """Return the next action of every environment, (B, E); plans when no action of the last plan waits.

        Raises:
            ConfigError: the budget is spent, or the problem does not fit the settings.
        """
        budget = self.settings.budget
        if budget is not None and self.num_actions >= budget:
            raise ConfigError(f"the budget of {budget} actions is spent; call reset() to begin another episode")
        if not self._queue:
            self._replan(observation)
        self.num_actions += 1
        return self._queue.pop(0)

    def _replan(self, observation: Any) -> None:
        settings = self.settings
        history = torch.stack(self._executed, dim=1) if self._executed else None
        moment = Moment(observation, self.num_actions, self._horizon(), history)
        problem = self._state_problem(moment)
        if problem.horizon != moment.horizon or problem.action_dim % settings.block:
            raise ConfigError(
                f"the problem has horizon {problem.horizon} and action_dim {problem.action_dim}; this controller asked "
                f"for horizon {moment.horizon} and needs whole actions in blocks of {settings.block}"
            )
        generator = torch_generator(self._seed, "plan", self.num_plans)
        warm = self._tail() if settings.warm_start else None
        self.plan = self._planner(problem, generator, warm_BHA=warm, deadline_s=settings.deadline_s)
        self.num_plans += 1
        if self._on_plan is not None:
            self._on_plan(self.plan)
        self._used = min(settings.execute, moment.horizon)
        blocks = self.plan.actions_BHA[:, : self._used]
        self._executed.extend(blocks.unbind(dim=1))
        self._queue = list(from_blocks(blocks, settings.block).unbind(dim=1))

    def _horizon(self) -> int:
        settings = self.settings
        if not settings.shrink or settings.budget is None:
            return settings.horizon
        left = settings.budget - self.num_actions
        return max(1, min(settings.horizon, -(-left // settings.block)))

    def _tail(self) -> Tensor | None:
        """Return what the last plan meant to do next; None where nothing of it is left."""
        if self.plan is None or self._used >= self.plan.actions_BHA.shape[1]:
            return None
        return self.plan.actions_BHA[:, self._used :]
