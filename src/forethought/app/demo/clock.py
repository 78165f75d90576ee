"""Planning ahead on a virtual clock: what a robot does while a plan takes half a control period, or four.

The clock is virtual: a plan takes as many periods as it is told, whatever this machine needs, and the body moves on
meanwhile. Every arm meets the same starts and the same weather. Arms:

    ideal      plans take no time
    blocking   at the end of a chunk the robot rests while it plans for where resting will lead
    one        one plan is prepared for the foreseen end of a chunk (as Speculative Policy Orchestration, arXiv
               2603.19418); outside the tube the robot rests and plans
    several    as many plans as fit into a chunk's time, each for a likely end, kept in the outcome cache of `lookahead`
    rtc        planning begins early, with the actions frozen that will have been executed by the time it is done (as
               Real-Time Chunking, arXiv 2506.07339)

Legend: F horizon, C chunk, A numbers an action, O numbers an observation, d frozen actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.control import Agent, Tube
from forethought.control.ahead import advance
from forethought.control.situation import Situation
from forethought.core.rng import torch_generator
from forethought.diffusion import Inpaint, draw_noise, sample
from forethought.lookahead import CacheStatistics, OutcomeCache
from forethought.plan import Candidates

ARMS = ("blocking", "one", "several", "rtc")
_CAPACITY = 64
Planned = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Ride:
    """One episode so far: what it earned, and how long the robot idled."""

    env: Any
    agent: Agent
    state: NDArray[np.float32]
    seed: int
    steps: int
    rewards: list[float] = field(default_factory=list)
    idle: int = 0
    plans: int = 0
    cache: OutcomeCache[int, Planned] = field(default_factory=lambda: OutcomeCache(_CAPACITY))

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return len(self.rewards) >= self.steps

    @property
    def statistics(self) -> CacheStatistics:
        """How often the next plan was there."""
        return self.cache.statistics

    def situation(self) -> Situation:
        """Return where the robot stands."""
        return Situation.first(torch.from_numpy(self.state)[None], 1, 0)

    def step(self, action: Any) -> None:
        """Live one control period."""
        if not self.over:
            self.state, reward, *_ = self.env.step(np.asarray(action, np.float32).reshape(1))
            self.rewards.append(reward)

    def plan(self, start: Situation) -> Planned:
        """Return the actions (F, A) and the foreseen states (F, O) of a plan."""
        self.plans += 1
        plan = self.agent.planner(self.agent.problem(start), torch_generator(self.seed, "demo.clock.plan", self.plans))
        population: Any = plan.population
        return plan.actions_BHA[0], population.candidates.states_BNHS[0, int(population.chosen_B[0])]

    def rest(self, periods: int) -> Planned:
        """Idle for some periods, and return the plan for where that was foreseen to lead."""
        actions = torch.zeros(1, 1, self.agent.horizon, 1)
        states = self.agent.dynamics(self.situation(), actions)[0, 0, :periods]
        start, _ = advance(self.situation(), torch.zeros(periods, 1), states)
        for _ in range(periods):
            self.idle += not self.over
            self.step(0.0)
        return self.plan(start)

    def chunk(self, actions: Sequence[torch.Tensor] | torch.Tensor) -> None:
        """Execute some actions."""
        for action in actions:
            self.step(action)


def ideal(ride: Ride, _periods: int, _tube: Tube) -> None:
    """Plans take no time."""
    while not ride.over:
        actions, _ = ride.plan(ride.situation())
        ride.chunk(actions[: ride.agent.settings.execute])


def blocking(ride: Ride, periods: int, _tube: Tube) -> None:
    """Rest while planning."""
    actions, _ = ride.plan(ride.situation())
    while not ride.over:
        ride.chunk(actions[: ride.agent.settings.execute])
        actions, _ = ride.rest(periods)


def ahead(ride: Ride, periods: int, tube: Tube) -> None:
    """Prepare plans for likely ends of each chunk; rest and plan where none of them came true."""
    length, epoch = ride.agent.settings.execute, 0
    actions, states = ride.plan(ride.situation())
    while not ride.over:
        end, foreseen_O = advance(ride.situation(), actions[:length], states[:length])
        epoch += 1
        for number in range(tube.num_centres):
            seen = torch.from_numpy(tube.foreseen(foreseen_O, number))[None]
            ride.cache.prepare("robot", epoch, {number: ride.plan(replace(end, obs_BO=seen))})
        ride.chunk(actions[:length])
        if ride.over:
            return
        found = ride.cache.take("robot", epoch, tube.outcome(foreseen_O, ride.state))
        actions, states = ride.rest(periods) if found is None else found


def rtc(ride: Ride, periods: int, _tube: Tube) -> None:
    """Plan from the present with the next actions frozen, and go over to the new plan when it is there."""
    length = ride.agent.settings.execute
    actions, _ = ride.plan(ride.situation())
    queue = list(actions[:length])
    while not ride.over:
        ride.chunk(queue[: max(0, len(queue) - periods)])
        queue = queue[max(0, len(queue) - periods) :]
        fresh = frozen_plan(ride, torch.stack(queue))
        ride.chunk(queue)
        queue = list(fresh[len(queue) : len(queue) + length])


@torch.no_grad()
def frozen_plan(ride: Ride, committed_dA: torch.Tensor) -> torch.Tensor:
    """Return the actions (F, A) of a plan whose first ones are committed already."""
    ride.plans += 1
    agent, start = ride.agent, ride.situation()
    rho, draw = agent.proposal, torch_generator(ride.seed, "demo.clock.plan", ride.plans)
    noise, between = draw_noise((agent.settings.planner.num_samples, agent.horizon, 1), rho.sampler, draw)
    held = torch.zeros(1, agent.horizon, 1)
    held[0, : len(committed_dA)] = rho.action.normalise(committed_dA)
    mask = (torch.arange(agent.horizon) < len(committed_dA))[None, :, None]
    drawn = sample(
        rho.inference().bind(rho.context(start)),
        noise,
        process=rho.settings.process,
        sampler=rho.sampler,
        between=between,
        inpaint=Inpaint(held, mask, clean=False),
    )
    actions = rho.action.restore(drawn).clamp(-1.0, 1.0)[None]
    verdict = agent.judge.verdict(Candidates(start, actions, agent.dynamics(start, actions)))
    return actions[0, int(verdict.costs_BN[0].argmin())]


POLICIES: dict[str, Callable[[Ride, int, Tube], None]] = {
    "ideal": ideal,
    "blocking": blocking,
    "one": ahead,
    "several": ahead,
    "rtc": rtc,
}


def centres_for(arm: str, delay: float, chunk: int) -> int:
    """Return how many plans an arm prepares: one, or as many as a chunk's time gives room for, one after another."""
    return max(1, int(chunk / max(delay, 1.0))) if arm == "several" else 1
