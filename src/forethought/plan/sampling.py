"""Sampling planners: the cross-entropy method, its improved form, path integrals and predictive sampling.

Each is a frozen config that is also a `Planner`: `CEM(num_iterations=10)(problem, generator)`.

Legend: B environments, N candidates, K elites, H horizon, A action.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.plan.noise import coloured_noise
from forethought.plan.problem import Plan, Problem
from forethought.plan.search import SearchState, first_state, search


class _Searching:
    """What every planner that searches by rounds of candidates does alike."""

    needs_gradient = False

    @property
    def num_averaged(self) -> int:
        """How many of the best candidates the trace averages over."""
        return getattr(self, "num_elites", 1)

    def __call__(
        self,
        problem: Problem,
        generator: torch.Generator,
        *,
        warm_BHA: Tensor | None = None,
        deadline_s: float | None = None,
    ) -> Plan:
        """Plan (see `Planner`)."""
        return search(self, problem, generator, warm_BHA=warm_BHA, deadline_s=deadline_s)  # pyright: ignore[reportArgumentType]


class SamplingPlanner(_Searching):
    """What the sampling planners share: sizes that are checked, a population around the mean, the call."""

    num_candidates: int
    num_iterations: int
    initial_std: float

    def __post_init__(self) -> None:
        if self.num_candidates < 1 or self.num_iterations < 1:
            raise ConfigError(
                f"num_candidates is {self.num_candidates} and num_iterations {self.num_iterations}; both are at least 1"
            )
        if not self.initial_std > 0.0:
            raise ConfigError(f"initial_std is {self.initial_std}; it must be positive")
        num_elites = getattr(self, "num_elites", 1)
        if not 1 <= num_elites <= self.num_candidates:
            raise ConfigError(f"num_elites is {num_elites}; it must be from 1 to num_candidates {self.num_candidates}")

    def begin(self, problem: Problem, mean_BHA: Tensor, std_BHA: Tensor, generator: torch.Generator) -> SearchState:
        """Return the state before the first iteration: the mean given and the prior's spread times `initial_std`."""
        return first_state(mean_BHA, std_BHA * self.initial_std)

    def sample(self, problem: Problem, state: SearchState, iteration: int, generator: torch.Generator) -> Tensor:
        """Return candidates around the mean; number 0 is the mean itself."""
        return self.around(state, self.num_candidates, generator)

    def around(self, state: SearchState, num_candidates: int, generator: torch.Generator, beta: float = 0.0) -> Tensor:
        """Return `num_candidates` draws of the search distribution, the first of them its mean: (B, N, H, A)."""
        num_environments, horizon, action_dim = state.mean_BHA.shape
        shape = (num_environments, num_candidates, horizon, action_dim)
        noise = coloured_noise(shape, beta, generator, state.mean_BHA)
        actions = state.mean_BHA[:, None] + state.std_BHA[:, None] * noise
        actions[:, 0] = state.mean_BHA
        return actions

    def answer(self, problem: Problem, state: SearchState) -> Tensor:
        """Return the mean of the search distribution, or the best candidate where `output` says so."""
        return state.best_BHA if getattr(self, "output", "mean") == "best" else state.mean_BHA


def elite_statistics(
    actions_BNHA: Tensor, costs_BN: Tensor, num_elites: int, state: SearchState
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and unbiased standard deviation of the elites (B, H, A), and their indices (B, K), best first.

    Candidates with an infinite cost are no elites: where fewer than two are left the old spread stays, where none is
    left the old mean stays too.
    """
    values_BK, index_BK = costs_BN.topk(num_elites, dim=1, largest=False)
    elites = torch.gather(actions_BNHA, 1, index_BK[:, :, None, None].expand(-1, -1, *actions_BNHA.shape[2:]))
    kept_BK = torch.isfinite(values_BK)
    weights = kept_BK[:, :, None, None].to(actions_BNHA.dtype)
    count = weights.sum(dim=1)
    mean = (elites * weights).sum(dim=1) / count.clamp(min=1.0)
    variance = ((elites - mean[:, None]).square() * weights).sum(dim=1) / (count - 1.0).clamp(min=1.0)
    mean = torch.where(count > 0, mean, state.mean_BHA)
    return mean, torch.where(count > 1, variance.sqrt(), state.std_BHA), index_BK


@config
class CEM(SamplingPlanner):
    """The cross-entropy method with the settings of arXiv 2603.19312 (300 candidates, 30 elites, 30 iterations).

    Candidate 0 is the current mean; the update is the plain mean and the unbiased standard deviation of the elites,
    unless `momentum` (the share of the old mean and spread that stays) or `min_std` say otherwise; the answer is the
    final mean, or the best candidate seen with `output="best"`.
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 30
    initial_std: float = 1.0
    min_std: float = 0.0
    momentum: float = 0.0
    output: Literal["mean", "best"] = "mean"

    def update(self, problem: Problem, state: SearchState, actions_BNHA: Tensor, costs_BN: Tensor) -> SearchState:
        """Return the state with the elites' mean and spread."""
        mean, std, _ = elite_statistics(actions_BNHA, costs_BN, self.num_elites, state)
        return replace(
            state,
            mean_BHA=state.mean_BHA.lerp(mean, 1.0 - self.momentum),
            std_BHA=state.std_BHA.lerp(std, 1.0 - self.momentum).clamp(min=self.min_std),
        )


@config
class ICEM(SamplingPlanner):
    """The improved cross-entropy method (Pinneri et al. 2020): coloured noise, kept elites, momentum, fewer each time.

    noise_beta: exponent of the noise's spectrum. num_kept: elites that join the next population unchanged.
    decay: the population shrinks by this factor an iteration, to no fewer than twice the elites; 1 keeps its size.
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 30
    initial_std: float = 1.0
    min_std: float = 0.0
    momentum: float = 0.1
    noise_beta: float = 2.0
    num_kept: int = 5
    decay: float = 1.0
    output: Literal["mean", "best"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.num_kept <= self.num_elites or self.decay < 1.0:
            raise ConfigError(
                f"num_kept is {self.num_kept} and decay {self.decay}; num_kept is from 0 to num_elites "
                f"{self.num_elites}, decay at least 1"
            )

    def sample(self, problem: Problem, state: SearchState, iteration: int, generator: torch.Generator) -> Tensor:
        """Return the mean, coloured draws around it, and the elites that were kept."""
        shrunk = int(self.num_candidates * self.decay**-iteration)
        drawn = max(shrunk, min(2 * self.num_elites, self.num_candidates))
        actions = self.around(state, drawn, generator, self.noise_beta)
        return actions if state.memory is None else torch.cat([actions, state.memory], dim=1)

    def update(self, problem: Problem, state: SearchState, actions_BNHA: Tensor, costs_BN: Tensor) -> SearchState:
        """Return the state with the elites' mean and spread, some of the elites kept."""
        mean, std, index_BK = elite_statistics(actions_BNHA, costs_BN, self.num_elites, state)
        index = index_BK[:, : self.num_kept, None, None].expand(-1, -1, *actions_BNHA.shape[2:])
        return replace(
            state,
            mean_BHA=state.mean_BHA.lerp(mean, 1.0 - self.momentum),
            std_BHA=state.std_BHA.lerp(std, 1.0 - self.momentum).clamp(min=self.min_std),
            memory=torch.gather(actions_BNHA, 1, index) if self.num_kept else None,
        )


@config
class MPPI(SamplingPlanner):
    """Model-predictive path integral control (Williams et al. 2017) over the best `num_elites` candidates.

    Weights are exp(-(cost - lowest) / temperature). With `relative` costs are first divided by their standard deviation
    among the elites, so that the temperature has no unit. With `adapt_std` the spread follows the weighted candidates,
    not under `min_std`; without it stays as it began.
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 30
    initial_std: float = 1.0
    min_std: float = 0.0
    temperature: float = 0.5
    relative: bool = True
    adapt_std: bool = True
    output: Literal["mean", "best"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0.0:
            raise ConfigError(f"temperature is {self.temperature}; it must be positive")

    def update(self, problem: Problem, state: SearchState, actions_BNHA: Tensor, costs_BN: Tensor) -> SearchState:
        """Return the state with the weighted mean and spread."""
        values_BK, index_BK = costs_BN.topk(self.num_elites, dim=1, largest=False)
        elites = torch.gather(actions_BNHA, 1, index_BK[:, :, None, None].expand(-1, -1, *actions_BNHA.shape[2:]))
        weights_BK = self.weights(values_BK)
        weights = weights_BK[:, :, None, None]
        mean = (weights * elites).sum(dim=1)
        std = (weights * (elites - mean[:, None]).square()).sum(dim=1).sqrt().clamp(min=self.min_std)
        found = torch.isfinite(values_BK[:, 0])[:, None, None]
        std = torch.where(found, std, state.std_BHA) if self.adapt_std else state.std_BHA
        return replace(state, mean_BHA=torch.where(found, mean, state.mean_BHA), std_BHA=std)

    def weights(self, costs_BK: Tensor) -> Tensor:
        """Return the weights of elites by their costs, each row adding up to 1 (or to 0 where no cost is finite)."""
        finite = torch.isfinite(costs_BK)
        excess = torch.where(finite, costs_BK - costs_BK[:, :1], 0.0)
        if self.relative:
            count = finite.sum(dim=1, keepdim=True).clamp(min=1)
            centred = torch.where(finite, excess - excess.sum(dim=1, keepdim=True) / count, 0.0)
            spread = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
            excess = excess / spread.clamp(min=torch.finfo(excess.dtype).tiny)
        raw = torch.exp(-excess / self.temperature) * finite
        return raw / raw.sum(dim=1, keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)


@config
class PredictiveSampling(SamplingPlanner):
    """Predictive sampling (Howell et al. 2022): the best of noisy copies of the plan becomes the plan.

    With one iteration and no warm start this is random shooting. The spread shrinks by `shrink` an iteration.
    """

    num_candidates: int = 300
    num_iterations: int = 1
    initial_std: float = 1.0
    noise_beta: float = 0.0
    shrink: float = 1.0
    output: Literal["mean", "best"] = "best"

    def sample(self, problem: Problem, state: SearchState, iteration: int, generator: torch.Generator) -> Tensor:
        """Return the plan and noisy copies of it."""
        return self.around(state, self.num_candidates, generator, self.noise_beta)

    def update(self, problem: Problem, state: SearchState, actions_BNHA: Tensor, costs_BN: Tensor) -> SearchState:
        """Return the state around the best candidate so far."""
        return replace(state, mean_BHA=state.best_BHA, std_BHA=state.std_BHA * self.shrink)


@config
class Categorical(_Searching):
    """The cross-entropy method over discrete actions; a problem's actions are one-hot rows of A categories.

    The distribution begins at the prior's mean if its rows are probabilities, else uniform. Each update takes the
    frequencies among the elites, mixed with the old ones by `momentum` and kept above `floor`.
    """

    num_candidates: int = 300
    num_elites: int = 30
    num_iterations: int = 10
    momentum: float = 0.1
    floor: float = 1e-3
    output: Literal["mean", "best"] = "best"

    def __post_init__(self) -> None:
        if not 1 <= self.num_elites <= self.num_candidates or self.num_iterations < 1:
            raise ConfigError(
                f"num_elites is {self.num_elites}, num_candidates {self.num_candidates}, num_iterations "
                f"{self.num_iterations}; all are at least 1 and elites at most the candidates"
            )

    def begin(self, problem: Problem, mean_BHA: Tensor, std_BHA: Tensor, generator: torch.Generator) -> SearchState:
        """Return uniform probabilities, or those of the warm start with a tenth of uniform mixed in."""
        uniform = torch.full_like(mean_BHA, 1.0 / problem.action_dim)
        proper = ((mean_BHA >= 0).all(-1) & ((mean_BHA.sum(-1) - 1.0).abs() < 1e-3))[..., None]
        chances = torch.where(proper, 0.9 * mean_BHA + 0.1 * uniform, uniform)
        return first_state(chances, _spread(chances))

    def sample(self, problem: Problem, state: SearchState, iteration: int, generator: torch.Generator) -> Tensor:
        """Return one-hot draws (B, N, H, A); number 0 is the most likely sequence."""
        num_environments, horizon, action_dim = problem.shape
        chances = state.mean_BHA.reshape(-1, action_dim).to(generator.device)
        drawn = torch.multinomial(chances, self.num_candidates, replacement=True, generator=generator)
        drawn = drawn.reshape(num_environments, horizon, self.num_candidates).permute(0, 2, 1).clone()
        drawn[:, 0] = state.mean_BHA.argmax(dim=-1)
        return torch.nn.functional.one_hot(drawn, action_dim).to(state.mean_BHA)

    def update(self, problem: Problem, state: SearchState, actions_BNHA: Tensor, costs_BN: Tensor) -> SearchState:
        """Return the state with the elites' frequencies."""
        mean, _, _ = elite_statistics(actions_BNHA, costs_BN, self.num_elites, state)
        chances = state.mean_BHA.lerp(mean, 1.0 - self.momentum).clamp(min=self.floor)
        chances = chances / chances.sum(dim=-1, keepdim=True)
        return replace(state, mean_BHA=chances, std_BHA=_spread(chances))

    def answer(self, problem: Problem, state: SearchState) -> Tensor:
        """Return the best sequence seen, or the most likely one, as one-hot rows."""
        if self.output == "best":
            return state.best_BHA
        return torch.nn.functional.one_hot(state.mean_BHA.argmax(dim=-1), problem.action_dim).to(state.mean_BHA)


def _spread(chances: Tensor) -> Tensor:
    return (chances * (1.0 - chances)).sqrt()
