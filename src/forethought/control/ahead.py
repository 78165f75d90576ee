"""Planning ahead: while a chunk of actions executes, plans are made for the states that it will likely lead to.

The dynamics say where the chunk ends; what they usually get wrong, learned from nominal episodes, says where else. A
plan is prepared for each of these states and kept in the outcome cache (`lookahead`, the one that decoding uses for the
verdicts of its verifier). When the chunk ends, the state that came is looked up: inside the tube around a foreseen one
the prepared plan starts at once, anywhere else the agent plans anew, as it would have done.

Legend: M residuals, K foreseen states, O numbers an observation, A numbers an action, C executed chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from forethought.control.agent import Agent
from forethought.control.agent_store import read_agent, save_agent
from forethought.control.models import situation_of
from forethought.control.models.stepwise import advanced
from forethought.control.planning import SSRPlanner
from forethought.control.situation import Situation
from forethought.core.errors import ArtefactError, ConfigError, DataError
from forethought.core.rng import generator as host_generator
from forethought.core.rng import torch_generator
from forethought.data.episodes import Episodes, WindowConfig, WindowCutter
from forethought.lookahead import CacheStatistics, OutcomeCache
from forethought.plan import Plan

Floats = NDArray[np.float32]
_CAPACITY = 64
_ROUNDS = 20


@dataclass(frozen=True)
class Tube:
    """Where a chunk ends, beside where it was foreseen to: centres_KO of residuals and one radius, in standard units.

    A state is inside if it lies within `radius` (root mean square over its numbers) of a centre.
    """

    centres_KO: NDArray[np.float64]
    radius: float
    scale_O: Floats

    @classmethod
    def calibrate(
        cls, residuals_MO: ArrayLike, scale_O: Floats, *, num_centres: int = 1, coverage: float = 0.9, seed: int = 0
    ) -> Tube:
        """Calibrate on residuals of nominal chunk ends: a new one lies inside with probability at least `coverage`.

        Centres are k-means of one half of the residuals, likeliest first; the radius is the split-conformal quantile of
        the other half's distances, so its promise needs nothing of the dynamics but that chunks are exchangeable.

        Raises:
            ConfigError: the coverage or the number of centres cannot be had.
            DataError: there are too few residuals.
        """
        residuals = np.asarray(residuals_MO, np.float64)
        if not 0 < coverage < 1 or num_centres < 1:
            raise ConfigError(f"coverage {coverage} over {num_centres} centres: give between 0 and 1, and at least 1")
        order = host_generator(seed, "control.tube").permutation(len(residuals))
        first, second = residuals[order[::2]], residuals[order[1::2]]
        rank = int(np.ceil((len(second) + 1) * coverage))
        if len(first) < 2 * num_centres or rank > len(second):
            raise DataError(
                f"{len(residuals)} chunk ends cannot calibrate {num_centres} centres at coverage {coverage}; give more "
                "nominal episodes, or less of both"
            )
        centres = _centres(first, num_centres)
        distances = np.sort(_distances(second, centres).min(1))
        return cls(centres, float(distances[rank - 1]), np.asarray(scale_O, np.float32))

    @property
    def num_centres(self) -> int:
        """States that are foreseen for the end of a chunk (K)."""
        return len(self.centres_KO)

    def foreseen(self, predicted_O: Floats, number: int) -> Floats:
        """Return the number-th likeliest state at the end of a chunk that is predicted to end at predicted_O."""
        return (predicted_O + self.centres_KO[number] * self.scale_O).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        scale = [float(value) for value in self.scale_O]
        return {"centres": self.centres_KO.tolist(), "radius": self.radius, "scale": scale}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tube:
        """Return the tube that `to_dict` described.

        Raises:
            ArtefactError: the values are not those of a tube.
        """
        try:
            centres, radius = np.asarray(values["centres"], np.float64), float(values["radius"])
            scale = np.asarray(values["scale"], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"not a tube: {error!r}; write one with Tube.to_dict") from error
        if centres.ndim != 2 or not centres.size or scale.shape != centres.shape[1:] or not radius >= 0:
            raise ArtefactError(f"not a tube: centres {centres.shape}, scale {scale.shape}, radius {radius}")
        return cls(centres, radius, scale)

    def outcome(self, predicted_O: Floats, observed_O: Floats) -> int:
        """Return which foreseen state came true, or -1 outside the tube."""
        residual = (np.asarray(observed_O, np.float64) - predicted_O) / self.scale_O
        distances_K = _distances(residual[None], self.centres_KO)[0]
        nearest = int(distances_K.argmin())
        return nearest if distances_K[nearest] <= self.radius else -1


@torch.no_grad()
def chunk_residuals(dynamics: Any, nominal: Episodes, *, execute: int) -> NDArray[np.float64]:
    """Return what is wrong with the predicted ends of chunks along episodes, (M, O), in standard units.

    Raises:
        DataError: no chunk of this length is whole.
    """
    cutter = WindowCutter(nominal, WindowConfig(history=dynamics.settings.history, horizon=dynamics.settings.horizon))
    batch = cutter.cut(cutter.anchors[::execute])
    states = dynamics(situation_of(batch), torch.as_tensor(batch.actions, dtype=torch.float32)[:, None])
    reached = torch.as_tensor(batch.next_observations[:, execute - 1], dtype=torch.float32)
    whole = batch.next_mask_BF[:, execute - 1].astype(bool)
    if not whole.any():
        raise DataError(f"{nominal.source} holds no chunk of {execute} steps; give longer episodes")
    return ((reached - states[:, 0, execute - 1]) / dynamics.observation.scale).double().numpy()[whole]


class AheadAgent(Agent):
    """An agent of one robot that plans ahead: `prepare` while a chunk executes, and the next plan is often there.

    With background=True a thread prepares by itself after each new plan; `close` ends it. Acting gives the same
    guarantees as Agent's: what was prepared for a state that did not come is never used.

    Raises:
        ConfigError: more than one robot, or no tube of this body.
    """

    def __init__(
        self, proposal: Any, dynamics: Any, *arguments: Any, tube: Tube, background: bool = False, **options: Any
    ):
        if options.get("num_robots", 1) != 1 or len(tube.scale_O) != dynamics.body.obs_dim:
            raise ConfigError("planning ahead drives one robot, with a tube calibrated on that robot's episodes")
        self.tube = tube
        self.cache: OutcomeCache[int, Plan] = OutcomeCache(_CAPACITY)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="planning-ahead") if background else None
        self._pending: Future[int] | None = None
        self._epoch, self._foresaw = 0, False
        self._end: tuple[Situation, Floats] | None = None
        super().__init__(proposal, dynamics, *arguments, **options)
        # Its own planner: the one of `act` may be at work at the same time.
        self._scout = SSRPlanner(self.proposal, self.settings.planner)

    def save(self, directory: Path | str, *, replace: bool = False) -> Path:
        """Publish the agent with its tube (see `Agent.save`); `Agent.load` opens it as one that does not plan ahead.

        Raises:
            ConfigError: proposal or dynamics is no model of this room.
            RunExistsError: the directory exists and replace is False.
        """
        return save_agent(self, directory, replace=replace, facts={"tube": self.tube.to_dict()})

    @classmethod
    def load(cls, directory: Path | str, **options: Any) -> AheadAgent:
        """Open an agent that `save` wrote, or any saved agent together with `tube`; `options` are those of AheadAgent.

        Raises:
            ConfigError: the agent was saved without a tube, and none is given.
            ArtefactError: the directory holds no agent, or it is damaged.
        """
        parts, defaults, description = read_agent(directory)
        if "tube" in description:
            defaults["tube"] = Tube.from_dict(description["tube"])
        if "tube" not in {**defaults, **options}:
            raise ConfigError(
                f"{directory} was saved without a tube, so what ends of chunks to plan ahead for is not known; give "
                "tube=Tube.calibrate(chunk_residuals(dynamics, nominal, execute=...), dynamics.body.observation.scale)"
            )
        return cls(parts["proposal"], parts["dynamics"], parts.get("value"), **{**defaults, **options})

    @property
    def statistics(self) -> CacheStatistics:
        """How often the next plan was there."""
        return self.cache.statistics

    def reset(self, robot: int | None = None) -> None:
        """Begin a new episode; what was prepared is dropped."""
        super().reset(robot)
        self._drop()

    def flush(self) -> None:
        """Drop the rest of the present chunk and everything that was prepared for its end."""
        super().flush()
        self._drop()

    def act(self, observation: ArrayLike) -> Floats:
        """Return the next action (see `Agent.act`) and, with a background, begin to prepare where a chunk began."""
        epoch = self._epoch
        action = super().act(observation)
        if self._pool is not None and self._epoch != epoch:
            self._pending = self._pool.submit(self.prepare)
        return action

    def prepare(self, num: int | None = None) -> int:
        """Plan for the likeliest ends of the present chunk, `num` of them or all, and return how many were kept."""
        end, epoch = self._end, self._epoch
        if end is None:
            return 0
        start, predicted_O = end
        kept = 0
        for number in range(min(num or self.tube.num_centres, self.tube.num_centres)):
            if self._epoch != epoch:
                break  # The chunk is over: what is not there by now comes too late.
            seen = torch.from_numpy(self.tube.foreseen(predicted_O, number))[None]
            random = torch_generator(self.settings.seed, "control.ahead", epoch, number)
            plan = self._scout(self.problem(_standing(start, seen)), random)
            if bool(plan.cost_B.isfinite().all()):
                kept += self.cache.prepare("robot", epoch, {number: plan})
        return kept

    def close(self) -> None:
        """End the background thread, where there is one."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _plan(self, robots: list[int]) -> Plan:
        prepared = self._prepared()
        self._foresaw = prepared is not None
        if prepared is None:
            return super()._plan(robots)
        self.num_plans += 1
        self._all_rejected = False
        return prepared

    def _prepared(self) -> Plan | None:
        if self._end is None:
            return None
        outcome = self.tube.outcome(self._end[1], self._history.obs[0])
        return self.cache.take("robot", self._epoch, outcome)

    def _keep(self, robot: int, plan: Plan, place: int) -> None:
        super()._keep(robot, plan, place)
        self._epoch += 1
        execute = self.settings.execute
        states = self._foreseen_states(plan.actions_BHA[place], robot, execute)
        self._end = advance(self._history.situation([robot]), plan.actions_BHA[place, :execute].cpu(), states)

    def _foreseen_states(self, actions_HA: Tensor, robot: int, execute: int) -> Tensor:
        expected = self._expected[robot]
        if len(expected) == execute and not self._foresaw:
            return torch.from_numpy(np.stack(list(expected)))
        # From where the robot stands: a prepared plan was foreseen from where it was to stand, and the tube knows what
        # goes wrong in one chunk, not in two. An executed plan that is a mean of candidates is asked for here too.
        states = self.dynamics(self._history.situation([robot]), actions_HA[None, None])[0, 0, :execute].cpu()
        expected.clear()
        expected.extend(states.numpy().astype(np.float32))
        return states

    def _drop(self) -> None:
        self._end = None
        self._epoch += 1
        if self._pending is not None:
            self._pending.cancel()
        self.cache.forget("robot")


def advance(start: Situation, actions_CA: Tensor, states_CO: Tensor) -> tuple[Situation, Floats]:
    """Return the situation after a chunk as it is foreseen, and its observation."""
    for action, state in zip(actions_CA, states_CO, strict=True):
        start = advanced(start, action[None], state[None])
    return start, start.obs_BO[0].numpy().astype(np.float32)


def _standing(start: Situation, obs_BO: Tensor) -> Situation:
    return Situation(obs_BO, start.history_obs_BKO, start.history_act_BKA, start.history_mask_BK, start.time_B)


def _distances(residuals_MO: NDArray[np.float64], centres_KO: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.square(residuals_MO[:, None] - centres_KO[None]).mean(2))


def _centres(residuals_MO: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """Return k-means centres, the likeliest first; farthest-first from the mean, so that no seed decides."""
    centres: Sequence[Any] = [residuals_MO.mean(0)]
    while len(centres) < num:
        centres = [*centres, residuals_MO[_distances(residuals_MO, np.stack(centres)).min(1).argmax()]]
    found = np.stack(centres)
    for _ in range(_ROUNDS if num > 1 else 0):
        nearest_M = _distances(residuals_MO, found).argmin(1)
        groups = [residuals_MO[nearest_M == number] for number in range(num)]
        found = np.stack([group.mean(0) if len(group) else found[index] for index, group in enumerate(groups)])
    counts = np.bincount(_distances(residuals_MO, found).argmin(1), minlength=num)
    return found[np.argsort(-counts, kind="stable")]
