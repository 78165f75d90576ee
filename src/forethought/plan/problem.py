"""The vocabulary of planning: dynamics, proposal, objective, problem and plan, with the shape of every field.

A planner never imports a model. It receives functions of tensors, and everything about the world stands in the opaque
`start` that it hands on to them. All tensors are batched over environments and candidates, in that order.

Shapes: B environments (independent problems solved in lock-step), N candidates, H steps of the horizon (blocks of
actions where a model takes blocks), A numbers an action (or a block), S whatever a state is made of (any further axes).

Costs are minimised everywhere: an objective that speaks of scores or rewards returns them with the sign turned, or goes
through `from_score`. A cost that is not finite loses against every finite one; it never spreads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from forethought.core.errors import ConfigError


class Dynamics(Protocol):
    """Predicts the states that actions lead to: `(start, actions_BNHA) -> states_BNHS`.

    `states[:, :, k]` is the state after action k, so the last one is the end of the horizon. Candidate n of environment
    b depends on `start` of b and on its own actions only. No argument is changed in place. A planner that uses
    gradients needs them to flow from the states to the actions; no other planner calls it with gradients enabled.
    """

    def __call__(self, start: Any, actions_BNHA: Tensor, /) -> Tensor:
        """Return the predicted states, (B, N, H, ...)."""
        ...


class Proposal(Protocol):
    """Draws whole action sequences: `(start, num_candidates, generator) -> actions_BNHA`, inside the bounds or not."""

    def __call__(self, start: Any, num_candidates: int, generator: torch.Generator, /) -> Tensor:
        """Return the proposed actions, (B, N, H, A)."""
        ...


@dataclass(frozen=True)
class Candidates:
    """Action sequences and what they are predicted to do: all that an objective sees.

    start: what the problem was given, unchanged (an encoded frame, a state with its history, ...).
    actions_BNHA: (B, N, H, A), inside the bounds of the problem.
    states_BNHS: (B, N, H, ...), the prediction of the dynamics.
    step: the time at which the first action would be executed, for objectives that vary in time.
    """

    start: Any
    actions_BNHA: Tensor
    states_BNHS: Tensor
    step: int = 0


class Objective(Protocol):
    """Costs of candidates: `(candidates) -> costs_BN`, lower is better; black box, gradients only where asked for."""

    def __call__(self, candidates: Candidates, /) -> Tensor:
        """Return the costs, (B, N)."""
        ...


@dataclass(frozen=True)
class Problem:
    """One question to a planner: which actions from `start` make the objective small?

    dynamics, objective: the functions above.
    start: handed to them unchanged.
    horizon: H. action_dim: A. num_environments: B.
    low, high: bounds of an action, (A,) or (H, A), or None for unbounded; no candidate ever leaves them.
    step: the time of the first action, handed on in `Candidates`.
    device, dtype: where candidates are made.
    prior_mean, prior_std: where a search begins, (A,) or (H, A); None for 0 and 1, right for z-scored actions.

    Raises:
        ConfigError: a size is not positive, or the bounds do not fit the actions or cross.
    """

    dynamics: Dynamics
    objective: Objective
    start: Any
    horizon: int
    action_dim: int
    num_environments: int = 1
    low: Tensor | None = None
    high: Tensor | None = None
    step: int = 0
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    prior_mean: Tensor | None = None
    prior_std: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = (self.horizon, self.action_dim, self.num_environments)
        if min(sizes) < 1:
            raise ConfigError(f"horizon, action_dim and num_environments are {sizes}; each must be at least 1")
        for name in ("low", "high", "prior_mean", "prior_std"):
            given = getattr(self, name)
            if given is not None and tuple(given.shape) not in (self.shape[2:], self.shape[1:]):
                raise ConfigError(
                    f"{name} has the shape {tuple(given.shape)}; it must be (A,) = {self.shape[2:]} "
                    f"or (H, A) = {self.shape[1:]}"
                )
        if self.low is not None and self.high is not None and not bool((self.low <= self.high).all()):
            raise ConfigError("a lower bound lies above its upper bound; give low <= high in every number of an action")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one plan for every environment: (B, H, A)."""
        return (self.num_environments, self.horizon, self.action_dim)

    def prior(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation at which a search without a warm start begins, both (B, H, A)."""
        mean = torch.zeros(self.shape, device=self.device, dtype=self.dtype)
        std = torch.ones_like(mean)
        if self.prior_mean is not None:
            mean = mean + self.prior_mean.to(mean)
        if self.prior_std is not None:
            std = std * self.prior_std.to(std)
        return self.clip(mean), std

    def clip(self, actions: Tensor) -> Tensor:
        """Return actions (..., H, A) moved inside the bounds."""
        if self.low is None and self.high is None:
            return actions
        low = None if self.low is None else self.low.to(actions)
        high = None if self.high is None else self.high.to(actions)
        return torch.clamp(actions, low, high)


@dataclass(frozen=True)
class Iteration:
    """What one iteration of a planner saw; all on the CPU.

    best_B: lowest cost in this population. mean_B: mean of its finite costs. elite_B: mean cost of the elites (equal to
    best where a rule has none). spread_B: mean standard deviation of the search distribution after the update.
    num_rejected: candidates whose cost was not finite, over all environments. seconds: since the plan began.
    """

    best_B: Tensor
    mean_B: Tensor
    elite_B: Tensor
    spread_B: Tensor
    num_rejected: int
    seconds: float


@dataclass(frozen=True)
class Population:
    """The last candidates that were evaluated: their prediction, costs (B, N) and the index chosen (B,)."""

    candidates: Candidates
    costs_BN: Tensor
    chosen_B: Tensor


@dataclass(frozen=True)
class Plan:
    """What a planner returns.

    actions_BHA: the actions to execute, (B, H, A), inside the bounds.
    best_BHA, cost_B: the best candidate that was evaluated and its cost; infinite where no cost was finite.
    mean_BHA, std_BHA: the search distribution at the end, from which a warm start begins.
    iterations: one record an iteration. seconds: wall time. timed_out: the deadline cut the search short.
    population: the last population, for diagnostics; None where a planner was told not to keep it.
    """

    actions_BHA: Tensor
    best_BHA: Tensor
    cost_B: Tensor
    mean_BHA: Tensor
    std_BHA: Tensor
    iterations: tuple[Iteration, ...] = ()
    seconds: float = 0.0
    timed_out: bool = False
    population: Population | None = field(default=None, repr=False)

    @property
    def num_iterations(self) -> int:
        """How many iterations were completed."""
        return len(self.iterations)


class Planner(Protocol):
    """Solves a problem: `(problem, generator, warm, deadline) -> Plan`.

    warm_BHA is a first guess of the actions, (B, h, A) with any h: the planner cuts it or continues it to its horizon.
    deadline_s bounds the wall time in seconds: the best so far is returned, after at least one iteration.
    """

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        warm_BHA: Tensor | None = None,
        deadline_s: float | None = None,
    ) -> Plan:
        """Return a plan; the same problem, generator state and warm start give the same plan."""
        ...
