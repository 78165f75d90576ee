"""The agent: history in, plan, execute a part, look again; a new objective or new dynamics at any time.

Whatever goes wrong while a robot runs (an observation that is not finite, an objective that raises, no usable
candidate), `act` still returns a safe action and says what happened: the rest of the last plan, then the rest position.

Legend: B robots, O numbers an observation, A numbers an action, F horizon, C executed chunk.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from torch import Tensor

from forethought.control.body import Body
from forethought.control.border import observed, planned
from forethought.control.fitting import (
    at_precision,
    check_parts,
    check_spaces,
    default_objective,
    longest_history,
    rest_action_of,
    shared_body,
    shared_horizon,
)
from forethought.control.models import ControlModel, ReturnValue, load_model
from forethought.control.objectives import Constraint, Objective
from forethought.control.objectives.judge import Judge
from forethought.control.planning import SSRConfig, SSRPlanner
from forethought.control.situation import History, Situation
from forethought.core.config import config
from forethought.core.errors import ConfigError, InputError
from forethought.core.rng import torch_generator
from forethought.plan import Plan, Planner, Problem

_LOG = logging.getLogger(__name__)
Floats = NDArray[np.float32]
# The largest residual that is told, in standard deviations.
_MOST = 1e6


@config
class AgentConfig:
    """How plans are made and used."""

    planner: SSRConfig = SSRConfig()
    execute: int = Field(default=1, ge=1)
    """Actions of a plan that are executed before the next one (C); the horizon is the models' own."""
    on_fault: Literal["safe", "raise"] = "safe"
    """What `act` does when it cannot plan: return a safe action, or raise what went wrong."""
    coast: int = Field(default=4, ge=0)
    """Steps that the rest of the last plan may be followed when no new one can be made, before the rest action."""
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of proposal and dynamics while planning; bfloat16 is faster where the processor has it. The value stays fp32: its
    small differences decide (Hopper: what a pick loses falls from 0.029 to 0.010 standard deviations of scores)."""


@dataclass(frozen=True)
class Decision:
    """What `act` did for its robots: the plan where one was made, how each action came about, and what went wrong.

    source: for each robot plan (the first action of a new plan), chunk (a later one), coast (the rest of an old plan)
    or rest (the safe action). all_rejected: every candidate broke a hard constraint, so the least bad one was taken.
    residual_B: error of the prediction of this observation, in standard deviations; NaN where there was none.
    """

    plan: Plan | None
    source: tuple[str, ...]
    faults: tuple[str, ...]
    all_rejected: bool
    late: bool
    residual_B: Floats


class Agent:
    """A robot's policy by planning: `act(observation)` gives the next action, in real units and inside the bounds.

    `proposal` and `dynamics` are models of one body, or any functions of `forethought.plan`; `value` is the learned
    value, which is the objective where none is given. `ended(observations) -> bool` tells where an episode would end.
    One agent may drive several robots of one body (`num_robots`): then observations and actions have a first axis.

    Raises:
        ConfigError: the models are of different bodies or horizons, there is nothing to make large, or the settings
            contradict the horizon.
    """

    def __init__(
        self,
        proposal: Any,
        dynamics: Any,
        value: ReturnValue | None = None,
        *,
        body: Body | None = None,
        objective: Objective | None = None,
        constraints: Sequence[Constraint] = (),
        ended: Callable[..., Any] | None = None,
        settings: AgentConfig | None = None,
        rest_action: ArrayLike | None = None,
        refine: Planner | None = None,
        num_robots: int = 1,
    ) -> None:
        self.settings = settings or AgentConfig()
        self.proposal, self.dynamics = (at_precision(part, self.settings.precision) for part in (proposal, dynamics))
        self.value = value
        self.body = shared_body(body, proposal, dynamics)
        self.horizon = shared_horizon(proposal, dynamics, value)
        check_parts(self.body, (proposal, dynamics, value))
        if self.settings.execute > self.horizon:
            raise ConfigError(f"execute {self.settings.execute} exceeds the horizon {self.horizon}; lower it")
        self.rest_A = rest_action_of(self.body, rest_action)
        self.constraints, self.ended, self.num_robots = tuple(constraints), ended, num_robots
        self._planner = SSRPlanner(self.proposal, self.settings.planner, refine=refine)
        self._single = num_robots == 1
        self.set_objective(objective if objective is not None else default_objective(value))
        self.reset()

    # ------------------------------------------------------------------ what it is told

    @property
    def objective(self) -> Objective:
        """What the agent makes large."""
        return self._judge.objective

    @property
    def judge(self) -> Judge:
        """The cost that the planner sees: objective, constraints and end."""
        return self._judge

    @property
    def planner(self) -> SSRPlanner:
        """The planner, with its budget of time."""
        return self._planner

    def set_objective(self, objective: Objective | Callable[..., Any]) -> None:
        """Make something else large from the very next plan on; a function of a step becomes an Objective.

        Nothing that was learned is touched, and what is left of the present plan is dropped.

        Raises:
            ConfigError: the objective is neither an Objective nor a function.
        """
        chosen = objective if isinstance(objective, Objective) else Objective(objective)
        self._judge = Judge(chosen, self.constraints, self.ended)
        self.flush()

    def set_constraints(self, constraints: Sequence[Constraint]) -> None:
        """Keep to other constraints from the very next plan on."""
        self.constraints = tuple(constraints)
        self.set_objective(self.objective)

    def swap_dynamics(self, dynamics: ControlModel | Path | str) -> None:
        """Predict with other dynamics of the same body from the very next plan on; proposal and value stay.

        Raises:
            ConfigError: the dynamics are of another body or horizon.
            ArtefactError: the directory holds no model.
        """
        found = load_model(dynamics) if isinstance(dynamics, str | Path) else dynamics
        if getattr(found, "part", "dynamics") != "dynamics":
            raise ConfigError(f"a {found.part} model predicts no states; give a dynamics model")
        check_parts(self.body, (self.proposal, found, self.value))
        shared_horizon(self.proposal, found, self.value)
        if longest_history((found,)) > self._history_length:
            raise ConfigError(
                f"the new dynamics want a history of {longest_history((found,))} steps, this agent keeps "
                f"{self._history_length}; build a new agent with them"
            )
        self.dynamics = at_precision(found, self.settings.precision)
        self.flush()

    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of the parameters of each learned part."""
        parts = {"proposal": self.proposal, "dynamics": self.dynamics, "value": self.value}
        return {name: part.fingerprint() for name, part in parts.items() if isinstance(part, ControlModel)}

    # ------------------------------------------------------------------ what it does

    def reset(self, robot: int | None = None) -> None:
        """Begin a new episode of one robot, or of all: history and plans are forgotten."""
        if robot is None:
            self._history_length = longest_history((self.proposal, self.dynamics, self.value))
            sizes = (self.num_robots, self.body.obs_dim, self.body.act_dim, self._history_length)
            self._history = History(*sizes)
            self._queues: list[deque[Floats]] = [deque() for _ in range(self.num_robots)]
            self._plans: list[Tensor | None] = [None] * self.num_robots
            self._expected: list[deque[Floats]] = [deque() for _ in range(self.num_robots)]
            self._last: list[Floats | None] = [None] * self.num_robots
            self._begun = [False] * self.num_robots
            self._coasted = [0] * self.num_robots
            self.num_plans = self.num_faults = 0
            self.decision: Decision | None = None
            return
        self._queues[robot].clear()
        self._expected[robot].clear()
        self._plans[robot] = self._last[robot] = None
        self._begun[robot], self._coasted[robot] = False, 0

    def flush(self) -> None:
        """Drop the rest of the present chunks, so that the next action comes of a new plan."""
        for queue in getattr(self, "_queues", ()):
            queue.clear()

    def act(self, observation: ArrayLike) -> Floats:
        """Return the next action (A,), or (B, A) for several robots; see `decision` for how it came about.

        Raises:
            InputError: with on_fault="raise", whatever kept the agent from planning.
        """
        faults: list[str] = []
        obs_BO, seen_B = self._observed(observation, faults)
        residual_B = self._look(obs_BO, seen_B)
        waiting = [robot for robot in range(self.num_robots) if not self._queues[robot]]
        able = [robot for robot in waiting if seen_B[robot] and self._begun[robot]]
        plan = self._try_plan(able, faults) if able else None
        sources, actions = zip(*(self._next(robot, plan, able) for robot in range(self.num_robots)), strict=True)
        if faults:
            self.num_faults += 1
            _LOG.warning("no plan, safe action instead: %s", "; ".join(faults))
        verdict_all = plan is not None and self._all_rejected
        late = plan is not None and plan.timed_out
        self.decision = Decision(plan, tuple(sources), tuple(faults), verdict_all, late, residual_B)
        act_BA = np.stack(actions).astype(np.float32)
        return act_BA[0] if self._single and np.ndim(observation) == 1 else act_BA

    def executed(self, actions_BA: ArrayLike) -> None:
        """Say what the robots really did, where it differs from what `act` returned (exploration, an override).

        Raises:
            InputError: not one action a robot.
        """
        done = np.asarray(actions_BA, np.float32)
        wanted = (self.num_robots, self.body.act_dim)
        if done.shape not in (wanted, wanted[1:] if self._single else wanted):
            raise InputError(f"executed actions of shape {done.shape}; give {wanted}")
        for robot, action in enumerate(done.reshape(wanted)):
            last = self._last[robot]
            if last is None or not np.array_equal(last, action):
                # What was predicted was predicted for another action.
                self._expected[robot].clear()
                self._last[robot] = action

    def save(self, directory: Path | str, *, replace: bool = False) -> Path:
        """Publish the agent, all parts and settings, as one artefact directory; the objective is code and stays out.

        Raises:
            ConfigError: proposal or dynamics is no model of this room.
            RunExistsError: the directory exists and replace is False.
            StorageError: the disk refused.
        """
        from forethought.control.agent_store import save_agent

        return save_agent(self, directory, replace=replace)

    @classmethod
    def load(cls, directory: Path | str, **options: Any) -> Agent:
        """Open an agent that `save` wrote; `options` are those of Agent. Where its environment is known, so is its end.

        Raises:
            ArtefactError: the directory holds no agent, or it is damaged.
        """
        from forethought.control.agent_store import load_agent

        return load_agent(directory, **options)

    def situation(self) -> Situation:
        """Return where all robots stand."""
        return self._history.situation(range(self.num_robots))

    def check_spaces(self, observation_space: Any, action_space: Any) -> None:
        """Compare the spaces of an environment with the body's, before a robot moves.

        Raises:
            ConfigError: shapes or bounds differ; the message gives both.
        """
        check_spaces(self.body, observation_space, action_space)

    # ------------------------------------------------------------------ how

    def _observed(self, observation: ArrayLike, faults: list[str]) -> tuple[Floats, NDArray[np.bool_]]:
        obs_BO, seen_B, errors = observed(observation, (self.num_robots, self.body.obs_dim))
        for error in errors:
            self._fault(error, faults)
        return obs_BO, seen_B

    def _look(self, obs_BO: Floats, seen_B: NDArray[np.bool_]) -> Floats:
        """Take the observations into the history and return how well they were predicted."""
        residual_B = np.full(self.num_robots, np.nan, np.float32)
        for robot in range(self.num_robots):
            expected = self._expected[robot].popleft() if self._expected[robot] else None
            if not seen_B[robot]:
                self._history.pass_time(robot)
                continue
            if not self._begun[robot]:
                self._history.begin(robot, obs_BO[robot])
                self._begun[robot] = True
                continue
            if expected is not None:
                # In double precision: a reading far out of range must give a large number, not an overflow.
                error = (obs_BO[robot].astype(np.float64) - expected) / self.body.observation.scale
                residual_B[robot] = min(float(np.sqrt(np.mean(np.square(error)))), _MOST)
            last = self._last[robot]
            self._history.step(robot, self.rest_A if last is None else last, obs_BO[robot])
        return residual_B

    def _try_plan(self, robots: list[int], faults: list[str]) -> Plan | None:
        plan = planned(lambda: self._plan(robots))
        if isinstance(plan, InputError):
            self._fault(plan, faults)
            return None
        usable_B = plan.cost_B.isfinite() & plan.actions_BHA.isfinite().flatten(1).all(1)
        for place, robot in enumerate(robots):
            if bool(usable_B[place]):
                self._keep(robot, plan, place)
            else:
                self._fault(
                    InputError(f"robot {robot}: no candidate has a finite score; look at the objective"), faults
                )
        return plan

    def problem(self, start: Situation) -> Problem:
        """Return the question that a plan answers, for robots that stand in a situation."""
        low, high = self.body.bounds()
        return Problem(
            dynamics=self.dynamics,
            objective=self._judge,
            start=start,
            horizon=self.horizon,
            action_dim=self.body.act_dim,
            num_environments=len(start.obs_BO),
            low=low,
            high=high,
            step=int(start.time_B[0]),
        )

    def _plan(self, robots: list[int]) -> Plan:
        problem = self.problem(self._history.situation(robots))
        generator = torch_generator(self.settings.seed, "control.plan", self.num_plans)
        self.num_plans += 1
        plan = self._planner(problem, generator, warm_BHA=self._warm(robots))
        self._all_rejected = self._planner.all_rejected
        return plan

    def _warm(self, robots: list[int]) -> Tensor | None:
        plans = [self._plans[robot] for robot in robots]
        known = [plan for plan in plans if plan is not None]
        # Robots that just began have no plan to go on with; the shapes of a batch leave no half measures.
        return torch.stack(known) if len(known) == len(robots) else None

    def _keep(self, robot: int, plan: Plan, place: int) -> None:
        execute, actions_HA = self.settings.execute, plan.actions_BHA[place].cpu()
        self._queues[robot] = deque(actions_HA[:execute].numpy().astype(np.float32))
        # At least one action stays, so that there is something to follow when the next plan fails.
        self._plans[robot] = actions_HA[min(execute, self.horizon - 1) :]
        self._coasted[robot] = 0
        self._expected[robot].clear()
        population = plan.population
        if population is not None and torch.equal(plan.actions_BHA[place], plan.best_BHA[place]):
            chosen = int(population.chosen_B[place])
            states = population.candidates.states_BNHS[place, chosen, :execute]
            self._expected[robot].extend(states.cpu().numpy().astype(np.float32))

    def _next(self, robot: int, plan: Plan | None, planned: list[int]) -> tuple[str, Floats]:
        queue, rest = self._queues[robot], self._plans[robot]
        if queue:
            fresh = plan is not None and robot in planned
            action, source = queue.popleft(), "plan" if fresh else "chunk"
        elif rest is not None and self._coasted[robot] < min(self.settings.coast, len(rest)):
            action, source = rest[self._coasted[robot]].numpy().astype(np.float32), "coast"
            self._coasted[robot] += 1
        else:
            action, source = self.rest_A, "rest"
        # What leaves here is finite and inside the bounds, whatever came before.
        action = np.clip(np.where(np.isfinite(action), action, self.rest_A), self.body.low_A, self.body.high_A)
        self._last[robot] = action
        return source, action

    def _fault(self, error: InputError, faults: list[str]) -> None:
        if self.settings.on_fault == "raise":
            raise error
        faults.append(str(error))
